//! A byte stream from one thread to another, in large pieces, with bounded memory.
//!
//! The end must be announced: a producer that vanishes (an error, a panic) is an error for the consumer, never the end of
//! the stream, so that half a layer can't pass for a whole one.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Bytes per piece: what lies in one whole goes on to the store without another copy.
pub const PIECE: usize = 512 << 10;
/// Pieces waiting at most.
const DEPTH: usize = 4;

/// A buffer that is never cleared or grown, only filled anew: the bytes up to `len` are the piece.
struct Piece {
    buffer: Box<[u8]>,
    len: usize,
}

impl Piece {
    fn new(capacity: usize) -> Self {
        Self {
            buffer: vec![0; capacity].into(),
            len: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// The producer's end.
pub struct PumpWriter {
    full: SyncSender<Piece>,
    empty: Receiver<Piece>,
    piece: Piece,
}

/// The consumer's end.
pub struct PumpReader {
    full: Receiver<Piece>,
    empty: Sender<Piece>,
    piece: Piece,
    at: usize,
    ended: bool,
}

/// A new stream.
pub fn pump() -> (PumpWriter, PumpReader) {
    let (full_in, full_out) = sync_channel(DEPTH);
    let (empty_in, empty_out) = channel();
    let writer = PumpWriter {
        full: full_in,
        empty: empty_out,
        piece: Piece::new(PIECE),
    };
    let reader = PumpReader {
        full: full_out,
        empty: empty_in,
        piece: Piece::new(0),
        at: 0,
        ended: false,
    };
    (writer, reader)
}

impl PumpWriter {
    /// Reads one piece from `input`, filling it as far as the input goes; `tap` sees it before it is sent. `Ok(false)` at
    /// the end of the input.
    pub fn fill_from(
        &mut self,
        input: &mut dyn Read,
        tap: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let piece = &mut self.piece;
        while piece.len < PIECE {
            match input.read(&mut piece.buffer[piece.len..]) {
                Ok(0) => break,
                Ok(n) => piece.len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
        }
        let full = piece.len == PIECE;
        tap(piece.bytes())?;
        self.send()?;
        Ok(full)
    }

    /// Announces the end.
    pub fn finish(mut self) -> io::Result<()> {
        self.send()?;
        // An empty piece is the end mark.
        self.full.send(Piece::new(0)).map_err(|_| reader_gone())
    }

    fn send(&mut self) -> io::Result<()> {
        if self.piece.len == 0 {
            return Ok(());
        }
        let mut next = self.empty.try_recv().unwrap_or_else(|_| Piece::new(PIECE));
        next.len = 0;
        let piece = std::mem::replace(&mut self.piece, next);
        self.full.send(piece).map_err(|_| reader_gone())
    }
}

/// Nobody listens any more.
#[derive(Debug, thiserror::Error)]
#[error("the reader of the stream stopped")]
struct ReaderGone;

/// For a producer. The consumer knows why.
fn reader_gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, ReaderGone)
}

/// Whether a producer's error only says that its consumer stopped.
pub fn is_reader_gone(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|inner| inner.is::<ReaderGone>())
}

/// For a consumer: the stream broke off. The producer knows why.
fn writer_gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "the writer of the stream stopped",
    )
}

impl Write for PumpWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let start = self.piece.len;
        let take = buf.len().min(PIECE - start);
        self.piece.buffer[start..start + take].copy_from_slice(&buf[..take]);
        self.piece.len += take;
        if self.piece.len == PIECE {
            self.send()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl BufRead for PumpReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len && !self.ended {
            let next = self.full.recv().map_err(|_| writer_gone())?;
            self.ended = next.len == 0;
            let old = std::mem::replace(&mut self.piece, next);
            self.at = 0;
            if !old.buffer.is_empty() {
                // A producer that has ended needs no buffers.
                let _ = self.empty.send(old);
            }
        }
        Ok(&self.piece.bytes()[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at += len;
    }
}

impl Read for PumpReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let take = bytes.len().min(buf.len());
        buf[..take].copy_from_slice(&bytes[..take]);
        self.consume(take);
        Ok(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carries_bytes_and_tells_the_end_from_a_loss() {
        let data: Vec<u8> = (0..PIECE * 9 + 17).map(|i| (i * 7) as u8).collect();
        for announce in [true, false] {
            let (mut writer, mut reader) = pump();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    writer.write_all(&data[..PIECE / 3]).unwrap();
                    let mut rest = &data[PIECE / 3..];
                    writer.flush().unwrap();
                    while writer.fill_from(&mut rest, &mut |_| Ok(())).unwrap() {}
                    if announce {
                        writer.finish().unwrap();
                    } else {
                        drop(writer);
                    }
                });
                let mut got = Vec::new();
                let result = reader.read_to_end(&mut got);
                assert_eq!(result.is_ok(), announce);
                assert!(got == data);
            });
        }
    }
}
