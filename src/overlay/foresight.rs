//! Whether whoever lists a directory will want the attributes of its files as well.
//!
//! Programs that do (`ls -l`, tar, du, git) are spared a LOOKUP for each file where the listing brings attributes along.
//! To those that do not (find, a shell's patterns, `ls`) attributes cost one system call or query for each file, and an
//! inode read from the disk where nothing is cached: several times the listing itself. Requests do not tell which it is, so it
//! is told by what came of the listings before: names of files first come bare, and whoever wants more asks for it. From
//! then on attributes come along, but for one file of every few directories. When nobody has asked for several of
//! those in turn, names are bare again. Subdirectories always come with attributes: whoever walks a tree enters them.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Of so many listings with attributes one leaves out those of one file.
const LISTINGS_FOR_A_SAMPLE: u32 = 4;
/// So many samples that nobody asks for end it.
const PATIENCE: u32 = 4;

/// What a listing leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Bare {
    Nothing,
    /// The first file.
    Sample,
    Files,
}

/// What one directory's listing left out when it was last read from its beginning.
#[derive(Debug, Default)]
pub(super) struct LeftOut(AtomicU8);

#[derive(Debug, Default)]
pub(super) struct Foresight {
    /// Samples that may go unasked for until attributes are left out; 0: they are.
    patience: AtomicU32,
    listings: AtomicU32,
}

impl LeftOut {
    fn note(&self, bare: Bare) {
        self.0.store(bare as u8, Ordering::Relaxed);
    }

    fn any(&self) -> bool {
        self.0.load(Ordering::Relaxed) != Bare::Nothing as u8
    }
}

impl Foresight {
    /// A directory is read from its beginning.
    pub fn begin(&self, dir: &LeftOut) -> Bare {
        let bare = self.now();
        dir.note(bare);
        bare
    }

    /// It is read on, which may be long after.
    pub fn go_on(&self, dir: &LeftOut) -> Bare {
        match self.patience.load(Ordering::Relaxed) {
            0 => {
                dir.note(Bare::Files);
                Bare::Files
            }
            _ => Bare::Nothing,
        }
    }

    fn now(&self) -> Bare {
        if self.patience.load(Ordering::Relaxed) == 0 {
            return Bare::Files;
        }
        let listing = self.listings.fetch_add(1, Ordering::Relaxed);
        match listing % LISTINGS_FOR_A_SAMPLE {
            0 => Bare::Sample,
            _ => Bare::Nothing,
        }
    }

    /// A file was listed without attributes although others have them.
    pub fn sampled(&self) {
        let less = |patience: u32| Some(patience.saturating_sub(1));
        let _ = self
            .patience
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// A file of this directory was asked for by its name.
    pub fn asked(&self, dir: &LeftOut) {
        if dir.any() && self.patience.load(Ordering::Relaxed) != PATIENCE {
            self.patience.store(PATIENCE, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_along_while_somebody_asks_for_them() {
        let (all, dir, other) = (Foresight::default(), LeftOut::default(), LeftOut::default());
        assert_eq!(all.begin(&dir), Bare::Files);
        // What was not listed tells nothing about those who list.
        all.asked(&other);
        assert_eq!(all.begin(&dir), Bare::Files);
        all.asked(&dir);
        let listed: Vec<Bare> = (0..8).map(|_| all.begin(&other)).collect();
        let samples = listed.iter().filter(|bare| **bare == Bare::Sample).count();
        assert_eq!(samples, 2);
        assert!(!listed.contains(&Bare::Files));
        for _ in 0..PATIENCE - 1 {
            all.sampled();
            assert_eq!(all.go_on(&dir), Bare::Nothing);
        }
        all.asked(&dir);
        for _ in 0..PATIENCE {
            all.sampled();
        }
        assert_eq!(all.go_on(&dir), Bare::Files);
        assert_eq!(all.begin(&dir), Bare::Files);
        all.sampled();
        assert_eq!(all.begin(&dir), Bare::Files);
    }

    #[test]
    fn a_directory_that_left_out_nothing_tells_nothing() {
        let (all, dir) = (Foresight::default(), LeftOut::default());
        all.begin(&dir);
        all.asked(&dir);
        all.begin(&dir);
        // The second of four has no sample.
        assert_eq!(all.begin(&dir), Bare::Nothing);
        all.sampled();
        all.asked(&dir);
        assert_eq!(all.patience.load(Ordering::Relaxed), PATIENCE - 1);
    }
}
