//! The transport by io_uring (Linux 6.14): the kernel puts a request into a buffer of ours and is given the answer and
//! asked for the next request by one call, on the processor of whoever waits for it.
//!
//! The kernel has a queue for each processor it could ever have, and hands a request to the one the asking program runs
//! on. Each queue has threads of its own, bound to that processor, with one buffer each: a thread that is at work has
//! none to be given a request in, so nobody waits behind it while another is free. FORGET and INTERRUPT still come by
//! `/dev/fuse`, and notifications leave by it: it is served beside this.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::EventfdFlags;
use rustix::thread::CpuSet;

use super::answers::{Answer, Answers};
use super::dispatch::{self, Outcome};
use super::wire::Head;
use super::{seek, wire_out};
use crate::sys::uring::{Event, Ring};

/// Threads for each processor: one long request there (a large copy-up, fsync) does not stop the others.
const THREADS: usize = 2;
/// The least the kernel takes for the payload of an entry (`FUSE_MIN_READ_BUFFER`).
const LEAST_PAYLOAD: usize = 8192;

/// Everything that can fail without the kernel's having been told: once it has agreed to use the ring, it waits for it.
pub struct Prepared {
    workers: Vec<Worker>,
    queues: usize,
}

/// Threads at work.
pub struct Serving {
    complete: bool,
    end: Sender<io::Result<()>>,
    ended: Receiver<io::Result<()>>,
}

/// One thread to be.
struct Worker {
    ring: Ring,
    queues: Vec<u16>,
    /// `None`: wherever it likes.
    processor: Option<usize>,
    wake: Arc<OwnedFd>,
}

impl Prepared {
    /// Rings for all queues of the mount on `device`, an open `/dev/fuse`.
    pub fn new(device: OwnedFd) -> io::Result<Self> {
        let queues = possible_processors()?;
        let device = Arc::new(device);
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let ours = |cpu: &usize| *cpu < CpuSet::MAX_CPU && allowed.is_set(*cpu);
        let mut served: Vec<(Option<usize>, Vec<u16>)> = (0..queues)
            .filter(ours)
            .map(|cpu| (Some(cpu), vec![cpu as u16]))
            .collect();
        if served.is_empty() {
            served.push((None, Vec::new()));
        }
        // Processors that are not there, or not for us: nobody asks from them, or somebody else's thread answers.
        let others = (0..queues).filter(|cpu| !ours(cpu));
        for (at, cpu) in others.enumerate() {
            let at = at % served.len();
            served[at].1.push(cpu as u16);
        }
        let mut workers = Vec::new();
        for (processor, queues) in served {
            for _ in 0..THREADS {
                workers.push(Worker {
                    ring: Ring::new(queues.len() as u32, Arc::clone(&device))?,
                    queues: queues.clone(),
                    processor,
                    wake: Arc::new(rustix::event::eventfd(
                        0,
                        EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
                    )?),
                });
            }
        }
        Ok(Self { workers, queues })
    }

    /// To be called once the kernel has agreed, with the most bytes that a request or answer takes. Requests are served
    /// from here on.
    pub fn start(self, answers: &Arc<Answers>, payload: usize) -> io::Result<Serving> {
        let (end, ended) = channel();
        let (register, registered) = channel();
        let payload = payload.max(LEAST_PAYLOAD);
        for worker in self.workers {
            let (answers, register, end) = (Arc::clone(answers), register.clone(), end.clone());
            let name = match worker.processor {
                Some(cpu) => format!("ovl-ring-{cpu}"),
                None => "ovl-ring".to_owned(),
            };
            std::thread::Builder::new().name(name).spawn(move || {
                let serve = || Thread::new(worker, payload, answers).serve(register);
                let panicked = |_| Err(io::Error::other("a thread of the ring panicked"));
                let outcome = catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(panicked);
                let _ = end.send(outcome);
            })?;
        }
        drop(register);
        let mut queues = vec![Queue::Unknown; self.queues];
        for (queue, accepted) in registered {
            let queue = &mut queues[usize::from(queue)];
            if *queue != Queue::Ready {
                *queue = if accepted {
                    Queue::Ready
                } else {
                    Queue::Refused
                };
            }
        }
        if queues.contains(&Queue::Unknown) {
            // The kernel waits for the rest of the ring, and everybody else for the kernel.
            return Err(io::Error::other("a thread of the ring did not start"));
        }
        Ok(Serving {
            complete: !queues.contains(&Queue::Refused),
            end,
            ended,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Queue {
    Unknown,
    Refused,
    Ready,
}

impl Serving {
    /// Else the kernel has taken back its word and uses `/dev/fuse` alone: it refused something.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Waits until `device`, which serves the rest, and all threads have come to their end; not for the others once one
    /// has failed, since what it should have answered would be waited for for ever.
    pub fn run(self, device: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
        let Self { end, ended, .. } = self;
        std::thread::Builder::new()
            .name("ovl-device".into())
            .spawn(move || {
                let panicked = |_| Err(io::Error::other("the thread of /dev/fuse panicked"));
                let outcome = catch_unwind(AssertUnwindSafe(device)).unwrap_or_else(panicked);
                let _ = end.send(outcome);
            })?;
        ended.into_iter().collect()
    }
}

/// Processors the kernel may ever have: it wants a queue for each.
fn possible_processors() -> io::Result<usize> {
    let path = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    count_of_ranges(&text)
        .filter(|count| (1..=usize::from(u16::MAX)).contains(count))
        .ok_or_else(|| io::Error::other(format!("{path}: {:?} is no list", text.trim())))
}

/// `0-3,8`: five.
fn count_of_ranges(list: &str) -> Option<usize> {
    list.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            last.checked_sub(first)?.checked_add(1)
        })
        .sum()
}

/// The end of a connection, as its commands tell it.
const fn is_end(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOTCONN | libc::ECONNABORTED | libc::ECANCELED | libc::ENODEV
    )
}

/// An answer that another thread has found.
struct Found {
    slot: usize,
    unique: u64,
    answer: Answer<i64>,
}

struct Thread {
    worker: Worker,
    payload: usize,
    answers: Arc<Answers>,
    found: Receiver<Found>,
    finder: Sender<Found>,
    slots: Vec<Slot>,
    /// For each queue, how many slots the kernel has or gets back once this thread is through with what is at hand.
    ready: HashMap<u16, usize>,
}

/// What is known of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// No request has come in it yet.
    New,
    Used,
    Refused,
}

impl Thread {
    fn new(worker: Worker, payload: usize, answers: Arc<Answers>) -> Self {
        let (finder, found) = channel();
        Self {
            worker,
            payload,
            answers,
            found,
            finder,
            slots: Vec::new(),
            ready: HashMap::new(),
        }
    }

    /// Until the connection is at its end. Tells of each queue whether the kernel takes requests from it to here.
    fn serve(mut self, registered: Sender<(u16, bool)>) -> io::Result<()> {
        if let Some(processor) = self.worker.processor {
            let mut only = CpuSet::new();
            only.set(processor);
            if let Err(error) = rustix::thread::sched_setaffinity(None, &only) {
                tracing::debug!(processor, %error, "a thread is not bound");
            }
        }
        self.worker.ring.enable()?;
        for queue in self.worker.queues.clone() {
            self.register(queue)?;
        }
        let wake = Arc::clone(&self.worker.wake);
        self.worker.ring.watch(wake.as_fd())?;
        // What is refused is so at once.
        self.worker.ring.submit()?;
        let mut going = self.take_all()?;
        for (slot, queue) in self.worker.queues.iter().enumerate() {
            let _ = registered.send((*queue, self.slots[slot] != Slot::Refused));
        }
        drop(registered);
        while going {
            self.worker.ring.wait()?;
            going = self.take_all()?;
        }
        Ok(())
    }

    fn register(&mut self, queue: u16) -> io::Result<()> {
        self.worker.ring.register(queue, self.payload)?;
        self.slots.push(Slot::New);
        *self.ready.entry(queue).or_default() += 1;
        Ok(())
    }

    /// Acts on all events that are there. False at the end.
    fn take_all(&mut self) -> io::Result<bool> {
        let mut first = true;
        while let Some(event) = self.worker.ring.event() {
            if !first {
                // The answer before this one does not wait for this one.
                self.worker.ring.submit()?;
            }
            first = false;
            match event {
                Event::Slot(slot, Ok(())) => {
                    self.slots[slot] = Slot::Used;
                    self.request(slot)?;
                }
                Event::Slot(_, Err(errno)) if is_end(errno) => return Ok(false),
                Event::Slot(slot, Err(errno)) => {
                    let error = io::Error::from_raw_os_error(errno);
                    if self.slots[slot] == Slot::Used {
                        // The request that was answered is still waited for.
                        return Err(error);
                    }
                    let queue = self.worker.ring.queue(slot);
                    tracing::warn!(queue, %error, "the kernel takes no entry of the ring");
                    self.slots[slot] = Slot::Refused;
                    self.add_ready(queue, -1);
                }
                Event::Watched => {
                    let wake = Arc::clone(&self.worker.wake);
                    // Emptied before what it stands for is looked at: nothing is missed.
                    let _ = rustix::io::read(&*wake, &mut [0; 8]);
                    while let Ok(found) = self.found.try_recv() {
                        let (_, _, payload, _) = self.worker.ring.request(found.slot);
                        let done = dispatch::sought(found.answer, payload);
                        self.add_ready(self.worker.ring.queue(found.slot), 1);
                        self.reply(found.slot, found.unique, done)?;
                    }
                    self.worker.ring.watch(wake.as_fd())?;
                }
            }
        }
        Ok(self.slots.iter().any(|slot| *slot != Slot::Refused))
    }

    fn add_ready(&mut self, queue: u16, change: isize) {
        let ready = self.ready.entry(queue).or_default();
        *ready = ready.saturating_add_signed(change);
    }

    fn request(&mut self, slot: usize) -> io::Result<()> {
        let (head, ..) = self.worker.ring.request(slot);
        let Some(head) = Head::parse(head) else {
            return Err(io::Error::other("a request without a head"));
        };
        let queue = self.worker.ring.queue(slot);
        // The answer will wait for WRITEs that the kernel may put into this queue: something must be left to take them.
        if head.is_answered_later() && self.ready.get(&queue).is_none_or(|ready| *ready < 2) {
            self.register(queue)?;
        }
        let (finder, wake) = (self.finder.clone(), Arc::clone(&self.worker.wake));
        let unique = head.unique;
        let later = || -> seek::Reply {
            Box::new(move |answer| {
                let found = Found {
                    slot,
                    unique,
                    answer,
                };
                if finder.send(found).is_ok() {
                    let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
                }
            })
        };
        let (_, words, payload, len) = self.worker.ring.request(slot);
        match dispatch::answer(&self.answers, &head, words, payload, len, later) {
            Outcome::Done(done) => self.reply(slot, unique, done),
            Outcome::Later => {
                self.add_ready(queue, -1);
                Ok(())
            }
        }
    }

    fn reply(&mut self, slot: usize, unique: u64, done: Answer<usize>) -> io::Result<()> {
        let (error, len) = match done {
            Ok(len) => (0, len),
            Err(code) => (code.get(), 0),
        };
        let head = wire_out::head(unique, error, len);
        self.worker.ring.commit(slot, &head, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        let table = [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8", Some(5)),
            ("0,2-4,6-7", Some(6)),
            ("", None),
            ("3-1", None),
            ("0-x", None),
            ("0-18446744073709551615", None),
        ];
        for (list, count) in table {
            assert_eq!(count_of_ranges(list), count, "{list:?}");
        }
        assert!(possible_processors().expect("the list of this machine") > 0);
    }
}
