//! How much work each mode of the benchmark does. The rows themselves are the same in every mode.

use serde::{Deserialize, Serialize};

/// Which of the three sizes was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// To see whether the benchmark itself works; its figures mean nothing.
    Tiny,
    /// Under ten minutes.
    Quick,
    Full,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    pub fn sizes(self) -> Sizes {
        match self {
            Self::Tiny => TINY,
            Self::Quick => QUICK,
            Self::Full => FULL,
        }
    }
}

/// The amounts of one mode. Counts are files, sizes bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Repetitions of the file system rows.
    pub repetitions: usize,
    /// Repetitions of the store rows.
    pub store_repetitions: usize,
    /// Mounts of each image whose latency is measured.
    pub mounts: usize,
    /// The image file behind the file system everything is measured on.
    pub disk: u64,
    /// Its inodes.
    pub inodes: u64,
    /// Small files in the lower tree.
    pub small_files: usize,
    /// Of these, how many are stat'ed.
    pub stats: usize,
    /// Of these, how many are opened, read and closed.
    pub opens: usize,
    /// Files created, renamed, unlinked.
    pub creates: usize,
    /// Lower files unlinked, and (not in quick mode) chmod'ed and appended to.
    pub lower_changes: usize,
    /// The one big incompressible lower file.
    pub big_file: u64,
    /// File written in sequence.
    pub sequential_write: u64,
    /// File written at random places.
    pub random_write: u64,
    /// How long fio runs where it is given a time.
    pub fio_ms: u64,
    /// 4 KiB writes each followed by an fsync.
    pub fsyncs: u64,
    /// Files of the repository that is cloned.
    pub clone_files: usize,
    /// Files walked before memory is looked at, and in the second image whose mount is timed.
    pub walk_files: usize,
    /// Files in the third image whose mount is timed; 0: none.
    pub huge_files: usize,
    /// Members of the Debian root that are unpacked; none: all of it.
    pub unpack: Vec<String>,
}

const MIB: u64 = 1 << 20;

macro_rules! sizes {
    ($name:ident, $($field:ident: $value:expr),* $(,)?) => {
        const $name: Sizes = Sizes { $($field: $value,)* unpack: Vec::new() };
    };
}

sizes!(TINY,
    repetitions: 1, store_repetitions: 1, mounts: 2, disk: 4096 * MIB, inodes: 150_000, small_files: 500, stats: 200, opens: 200,
    creates: 100, lower_changes: 50, big_file: 8 * MIB, sequential_write: 16 * MIB, random_write: 8 * MIB, fio_ms: 100, fsyncs: 10,
    clone_files: 100, walk_files: 2000, huge_files: 0,
);
sizes!(QUICK,
    repetitions: 5, store_repetitions: 3, mounts: 10, disk: 6144 * MIB, inodes: 400_000, small_files: 20_000, stats: 5000,
    opens: 5000, creates: 3000, lower_changes: 1000, big_file: 256 * MIB, sequential_write: 128 * MIB, random_write: 64 * MIB,
    fio_ms: 500, fsyncs: 200, clone_files: 5000, walk_files: 100_000, huge_files: 0,
);
sizes!(FULL,
    repetitions: 5, store_repetitions: 5, mounts: 20, disk: 16_384 * MIB, inodes: 2_500_000, small_files: 40_000, stats: 20_000,
    opens: 12_000, creates: 20_000, lower_changes: 3000, big_file: 1024 * MIB, sequential_write: 512 * MIB,
    random_write: 256 * MIB, fio_ms: 3000, fsyncs: 500, clone_files: 10_000, walk_files: 100_000, huge_files: 1_000_000,
);

/// What quick and tiny modes unpack instead of the whole root, which takes some peers over ten seconds each time.
const PART_OF_ROOT: [&str; 3] = ["./usr/share/perl", "./usr/share/man", "./var"];

impl Sizes {
    /// These sizes, unpacking only a part of the Debian root.
    pub fn part_of_root(self) -> Self {
        Self {
            unpack: PART_OF_ROOT.map(str::to_owned).to_vec(),
            ..self
        }
    }
}
