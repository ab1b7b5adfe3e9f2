//! A gzip blob taken apart and put together again in memory, for fuzzing.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use super::bits::BitWriter;
use super::gunzip::{Gunzip, Listener, Message};

/// The plain bytes of `blob`, and the blob as whoever keeps it makes it again; with `in_units`, of its blocks and matches.
///
/// # Errors
/// What is no gzip blob, or one that is cut off or damaged.
pub fn apart_and_together(blob: &[u8], in_units: bool) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (to, told) = sync_channel(4);
    let listener = Listener {
        to,
        stopped: Arc::default(),
        raw_only: Arc::new((!in_units).into()),
    };
    std::thread::scope(|scope| {
        let together = scope.spawn(move || {
            let mut made = Vec::new();
            for message in told {
                match message {
                    Message::Raw(bytes) => made.extend(bytes),
                    Message::Unit(taken) => {
                        let mut out = BitWriter::after(taken.begun.0, taken.begun.1);
                        let written = taken.unit.write(&mut out);
                        if written.is_none() || out.pending() != taken.next {
                            return Err(io::Error::other("a unit is not what it was"));
                        }
                        // The bits after the last block may be anything; whoever keeps the blob finds that out.
                        if let (Some(last), Some(was)) = (out.bytes.last_mut(), taken.raw.last())
                            && taken.unit.blocks.last().is_some_and(|block| block.last)
                        {
                            *last = *was;
                        }
                        made.extend(out.bytes);
                    }
                    Message::Begin | Message::End | Message::Done => {}
                }
            }
            Ok(made)
        });
        let mut plain = Vec::new();
        let read = Gunzip::new(blob, Some(listener)).read_to_end(&mut plain);
        let made = together
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        read?;
        Ok((plain, made?))
    })
}
