//! A disk that remembers: a file system in memory, mounted by FUSE, that writes down every change and every sync in the
//! order they come, can make any of them fail, and can say what a power cut at any moment might have left of it.
//!
//! What a cut leaves: everything that was synced before it; of the rest any part, for a real disk writes in the order it
//! likes: each write whole, not at all, or some of its sectors; each truncation, each change of a directory or none.
//! Stricter than most file systems, a file's sync does not make its name in the directory last.
#![allow(dead_code, unused_imports)] // Each test binary uses its own part of this.

pub mod fs;
pub mod tree;

pub use fs::{Disk, Fault, Kind};
pub use tree::{Luck, Op, Rng, Tree};
