//! Threads that make segments of units: what takes most of the time of keeping a blob, and can be done for several units
//! at once where their encoder began afresh.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use super::bits::BitWriter;
use super::gunzip::TakenApart;
use super::unit::{self, Luck, State};

/// Threads at most. More would wait for the one that takes blobs apart.
const MOST: usize = 4;

/// The payload of a unit's segment and how much of it was foretold. `None`: it does not fit the model, or what would come
/// back is not what is here.
pub type Made = Option<(Vec<u8>, Luck)>;

type Reply = (Box<TakenApart>, Made);
type Job = (Box<TakenApart>, Sender<Reply>);

/// Units go in, and come out in the same order.
pub struct Makers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    most: usize,
    threads: Vec<Sender<Job>>,
    /// The one that has the latest unit.
    latest: usize,
    waiting: VecDeque<Receiver<Reply>>,
}

impl<'scope, 'env> Makers<'scope, 'env> {
    pub fn new(scope: &'scope Scope<'scope, 'env>) -> Self {
        let processors = std::thread::available_parallelism();
        Self {
            scope,
            most: processors.map_or(1, |n| n.get().min(MOST)),
            threads: Vec::new(),
            latest: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether enough units wait that the next one should.
    pub fn are_busy(&self) -> bool {
        self.waiting.len() > self.most
    }

    pub fn give(&mut self, taken: Box<TakenApart>) {
        // One that goes on with the model as it is must follow the one before.
        if taken.unit.reset || self.threads.is_empty() {
            if self.threads.len() < self.most {
                let (to, jobs) = channel();
                self.scope.spawn(move || work(&jobs));
                self.threads.push(to);
            }
            self.latest = (self.latest + 1) % self.threads.len();
        }
        let (reply, made) = channel();
        // Were the thread gone, the reply would be missing, too.
        let _ = self.threads[self.latest].send((taken, reply));
        self.waiting.push_back(made);
    }

    /// What was made of the unit given first, with the unit; `None` if there is no more.
    pub fn take(&mut self) -> Option<Reply> {
        self.waiting.pop_front()?.recv().ok()
    }
}

fn work(jobs: &Receiver<Job>) {
    let mut state = State::new();
    for (taken, reply) in jobs {
        let made = make(&taken, &mut state);
        // Nobody waits for it any more.
        let _ = reply.send((taken, made));
    }
}

fn make(taken: &TakenApart, state: &mut State) -> Made {
    let (begun, count) = taken.begun;
    let mut out = BitWriter::after(begun, count);
    out.bytes.reserve(taken.raw.len() + 16);
    taken.unit.write(&mut out)?;
    if out.bytes != taken.raw || out.pending() != taken.next {
        return None;
    }
    unit::encode(&taken.unit, state)
}
