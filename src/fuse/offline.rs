//! The ring's codec without a kernel: any bytes in, the answer's bytes out.

use std::sync::Arc;

use super::answers::Answers;
use super::dispatch::{self, Outcome};
use super::wire::Head;
use super::{Config, Counters, seek};
use crate::overlay::Overlay;

/// Bytes of the room for a request's payload and its answer's: what a kernel with 64 KiB requests would give.
const ROOM: usize = 64 << 10;

/// An engine behind the codec, for fuzzing.
pub struct Offline {
    answers: Answers,
    counters: Arc<Counters>,
    room: Vec<u8>,
    /// Keeps what is to be answered later from being refused at once.
    _seeker: seek::Seeker,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered<'a> {
    /// The bytes behind the answer's header.
    Bytes(&'a [u8]),
    /// An errno.
    Error(i32),
    /// Another thread would answer it.
    Later,
}

impl Offline {
    pub fn new(engine: Arc<Overlay>, config: &Config) -> Self {
        let (seek, seeker) = seek::channel();
        let counters = Arc::new(Counters::default());
        Self {
            answers: Answers::new(engine, config, Arc::clone(&counters), seek),
            counters,
            room: vec![0; ROOM],
            _seeker: seeker,
        }
    }

    /// One request in the three parts in which a ring has it: header, the operation's own structure, and the rest, of
    /// which the first 64 KiB count. `None`: too short for a header.
    pub fn request(&mut self, head: &[u8], words: &[u8], rest: &[u8]) -> Option<Answered<'_>> {
        let head = Head::parse(head)?;
        let len = rest.len().min(ROOM);
        self.room[..len].copy_from_slice(&rest[..len]);
        let never: seek::Reply = Box::new(|_| ());
        let outcome = dispatch::answer(&self.answers, &head, words, &mut self.room, len, || never);
        Some(match outcome {
            Outcome::Done(Ok(len)) => Answered::Bytes(&self.room[..len]),
            Outcome::Done(Err(code)) => Answered::Error(code.get()),
            Outcome::Later => Answered::Later,
        })
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
