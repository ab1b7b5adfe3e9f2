//! Whether a listing brings the attributes of its files along.
//!
//! Programs that want them (`ls -l`, tar, du, chmod -R) are spared a LOOKUP for each file. To those that do not (find, a shell's
//! patterns) they are a system call or query for each file: little where the layer has inodes in memory, several times the
//! listing itself where they are read from a disk. Requests do not tell which program it is. So attributes come along as long
//! as they are cheap. Where they are not, files come bare until somebody asks for one of a directory so listed by its name;
//! from then on directories not listed before (the kernel keeps the others' listings) come with attributes at any price, but for
//! one file of every few: when nobody has asked for several of those in turn, files are bare again. Subdirectories always come with attributes: whoever walks a tree enters them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Attributes of a file that take less on average are cheap: a third of the way of a LOOKUP to the daemon and back.
const CHEAP: Duration = Duration::from_micros(10);
/// One that takes longer counts as this.
const DEAR: Duration = Duration::from_micros(200);
/// The average follows each file by this part.
const SHARE: u32 = 8;
/// While they are dear, of so many listings one has the attributes of so many files, to see whether they still are.
const LISTINGS_FOR_A_TRIAL: u32 = 8;
const FILES_OF_A_TRIAL: u32 = 8;
/// While they are wanted, of so many listings one leaves out those of one file.
const LISTINGS_FOR_A_SAMPLE: u32 = 4;
/// So many samples that nobody asks for end it.
const PATIENCE: u32 = 4;

/// Whether one directory's listing left out something since it was last read from its beginning.
#[derive(Debug, Default)]
pub(super) struct LeftOut(AtomicBool);

#[derive(Debug, Default)]
pub(super) struct Foresight {
    /// Samples that may go unasked for until files are not wanted any more; 0: they are not.
    patience: AtomicU32,
    /// Average cost of a file's attributes, nanoseconds.
    cost: AtomicU32,
    listings: AtomicU32,
}

/// One request's part of a listing.
pub(super) struct Course<'a> {
    all: &'a Foresight,
    dir: &'a LeftOut,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Wanted {
        /// The next file is left out.
        sample: bool,
    },
    /// So many files are looked at, whatever it costs.
    IfCheap { trials: u32 },
}

impl Foresight {
    /// A directory is read from its beginning, or on from where an earlier request ended.
    pub fn list<'a>(&'a self, dir: &'a LeftOut, from_beginning: bool) -> Course<'a> {
        let wanted = self.patience.load(Ordering::Relaxed) > 0;
        let is_turn = |of| {
            from_beginning
                && self
                    .listings
                    .fetch_add(1, Ordering::Relaxed)
                    .is_multiple_of(of)
        };
        if from_beginning {
            dir.0.store(false, Ordering::Relaxed);
        }
        let kind = if wanted {
            Kind::Wanted {
                sample: is_turn(LISTINGS_FOR_A_SAMPLE),
            }
        } else {
            Kind::IfCheap {
                trials: match is_turn(LISTINGS_FOR_A_TRIAL) {
                    true => FILES_OF_A_TRIAL,
                    false => 0,
                },
            }
        };
        Course {
            all: self,
            dir,
            kind,
        }
    }

    /// A file of this directory was asked for by its name.
    pub fn asked(&self, dir: &LeftOut) {
        let left_out = dir.0.load(Ordering::Relaxed);
        if left_out && self.patience.load(Ordering::Relaxed) != PATIENCE {
            self.patience.store(PATIENCE, Ordering::Relaxed);
        }
    }
}

impl Course<'_> {
    /// Whether the next file, no directory, is to have attributes.
    pub fn takes_next(&mut self) -> bool {
        let takes = match &mut self.kind {
            Kind::Wanted { sample } => {
                let left_out = std::mem::take(sample);
                if left_out {
                    let less = |patience: u32| Some(patience.saturating_sub(1));
                    let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
                    let _ = self.all.patience.fetch_update(set, read, less);
                }
                !left_out
            }
            Kind::IfCheap { trials } => {
                let trial = *trials > 0;
                *trials = trials.saturating_sub(1);
                trial || self.all.cost.load(Ordering::Relaxed) < CHEAP.as_nanos() as u32
            }
        };
        if !takes {
            self.dir.0.store(true, Ordering::Relaxed);
        }
        takes
    }

    /// What the attributes of a file have cost.
    pub fn took(&self, cost: Duration) {
        let cost = cost.min(DEAR).as_nanos() as u32;
        let average = self.all.cost.load(Ordering::Relaxed);
        let average = average - average / SHARE + cost / SHARE;
        self.all.cost.store(average, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LITTLE: Duration = Duration::from_micros(2);

    /// Lists so many files at this cost each, and gives back how many had attributes.
    fn list(all: &Foresight, dir: &LeftOut, files: u32, cost: Duration) -> u32 {
        let mut course = all.list(dir, true);
        let mut taken = 0;
        for _ in 0..files {
            if course.takes_next() {
                course.took(cost);
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn what_is_cheap_comes_along() {
        let (all, dir) = (Foresight::default(), LeftOut::default());
        assert_eq!(list(&all, &dir, 1000, LITTLE), 1000);
        // One that took long, because somebody else had the processor, changes little.
        assert_eq!(list(&all, &dir, 1, DEAR), 1);
        let taken: u32 = (0..64).map(|_| list(&all, &dir, 100, LITTLE)).sum();
        assert!(taken > 4000, "{taken}");
        assert_eq!(list(&all, &dir, 1000, LITTLE), 1000);
        // Nothing was left out, so that nobody had to ask.
        all.asked(&dir);
        assert_eq!(all.patience.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_dear_comes_along_while_somebody_asks_for_it() {
        let (all, dir, other) = (Foresight::default(), LeftOut::default(), LeftOut::default());
        let dear: u32 = (0..80).map(|_| list(&all, &dir, 100, DEAR)).sum();
        assert!((80..=160).contains(&dear), "{dear} of 8000");
        // What was not listed tells nothing about those who list.
        all.asked(&other);
        assert_eq!(all.patience.load(Ordering::Relaxed), 0);
        all.asked(&dir);
        let mut listed = 0;
        for _ in 0..20 {
            let taken = list(&all, &dir, 100, DEAR);
            assert!(taken >= 99, "{taken}");
            listed += taken;
            all.asked(&dir);
        }
        assert_eq!(listed, 20 * 100 - 5, "a file of every fourth is left out");
        let unasked: Vec<u32> = (0..24).map(|_| list(&all, &dir, 100, DEAR)).collect();
        assert!(
            unasked[..12].iter().all(|taken| *taken >= 99),
            "{unasked:?}"
        );
        assert!(unasked[16..].iter().all(|taken| *taken <= 8), "{unasked:?}");
    }

    #[test]
    fn a_listing_that_goes_on_is_the_same_listing() {
        let (all, dir) = (Foresight::default(), LeftOut::default());
        all.cost.store(CHEAP.as_nanos() as u32, Ordering::Relaxed);
        all.listings.store(1, Ordering::Relaxed);
        assert!(!all.list(&dir, true).takes_next());
        // Cheap by now; but somebody may ask for what was left out before.
        all.cost.store(0, Ordering::Relaxed);
        assert!(all.list(&dir, false).takes_next());
        all.asked(&dir);
        assert!(matches!(
            all.list(&dir, false).kind,
            Kind::Wanted { sample: false }
        ));
        assert_eq!(all.listings.load(Ordering::Relaxed), 2);
    }
}
