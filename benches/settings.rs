//! How much work each mode of the benchmark does. The rows are the same in every mode, but for those only full mode has.

use serde::{Deserialize, Serialize};

/// Which of the three sizes was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// To see whether the benchmark itself works; its figures mean nothing.
    Smoke,
    /// Under ten minutes.
    Quick,
    Full,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Smoke, Self::Quick, Self::Full];

    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }

    pub fn sizes(self) -> Sizes {
        let part = PART_OF_ROOT.map(str::to_owned).to_vec();
        match self {
            Self::Smoke => Sizes {
                unpack: vec!["./var/lib/dpkg".to_owned()],
                ..SMOKE
            },
            Self::Quick => Sizes {
                unpack: part,
                ..QUICK
            },
            Self::Full => FULL,
        }
    }
}

/// The amounts of one mode. Counts are files, sizes bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Repetitions of the file system rows.
    pub repetitions: usize,
    /// Two repetitions of the file system rows being done, no further one is begun that would end later than this many seconds
    /// after the first began; 0: no such bound.
    pub row_seconds: u64,
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
    /// Entries of the one big directory.
    pub big_directory: usize,
    /// Of the small files, how many are stat'ed.
    pub stats: usize,
    /// Of these, how many are opened, read and closed.
    pub opens: usize,
    /// Files created, renamed, unlinked.
    pub creates: usize,
    /// Lower files unlinked, chmod'ed, appended to.
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
    /// How long dbench runs; it warms up for a while before.
    pub dbench_seconds: u64,
    /// Transactions of SQLite.
    pub transactions: usize,
    /// Files of the repository that is cloned.
    pub clone_files: usize,
    /// Files of the Debian package that is installed.
    pub package_files: usize,
    /// Modules of the crate that is built.
    pub crate_modules: usize,
    /// Files walked before memory is looked at, and in the second image whose mount is timed.
    pub walk_files: usize,
    /// Files in the third image whose mount is timed; 0: none.
    pub huge_files: usize,
    /// Members of the Debian root that are unpacked; none: all of it.
    pub unpack: Vec<String>,
}

impl Sizes {
    /// Whether figures of both may stand in one table: all is the same but how often it was repeated.
    pub fn same_work(&self, other: &Self) -> bool {
        let once = |sizes: &Self| Self {
            repetitions: 1,
            store_repetitions: 1,
            row_seconds: 0,
            ..sizes.clone()
        };
        once(self) == once(other)
    }
}

const MIB: u64 = 1 << 20;

macro_rules! sizes {
    ($name:ident, $($field:ident: $value:expr),* $(,)?) => {
        const $name: Sizes = Sizes { $($field: $value,)* unpack: Vec::new() };
    };
}

sizes!(SMOKE,
    repetitions: 1, row_seconds: 0, store_repetitions: 1, mounts: 2, disk: 8192 * MIB, inodes: 60_000, small_files: 300,
    big_directory: 200, stats: 100, opens: 100, creates: 50, lower_changes: 20, big_file: 8 * MIB, sequential_write: 8 * MIB,
    random_write: 4 * MIB, fio_ms: 50, fsyncs: 5, dbench_seconds: 2, transactions: 5, clone_files: 50, package_files: 10,
    crate_modules: 2, walk_files: 1500, huge_files: 0,
);
sizes!(QUICK,
    repetitions: 5, row_seconds: 320, store_repetitions: 2, mounts: 10, disk: 6144 * MIB, inodes: 400_000,
    small_files: 10_000, big_directory: 10_000, stats: 5000, opens: 2000, creates: 1500, lower_changes: 600, big_file: 128 * MIB,
    sequential_write: 128 * MIB, random_write: 64 * MIB, fio_ms: 150, fsyncs: 150, dbench_seconds: 2, transactions: 100,
    clone_files: 1500, package_files: 200, crate_modules: 6, walk_files: 100_000, huge_files: 0,
);
sizes!(FULL,
    repetitions: 5, row_seconds: 0, store_repetitions: 5, mounts: 20, disk: 16_384 * MIB, inodes: 2_500_000,
    small_files: 40_000, big_directory: 10_000, stats: 20_000, opens: 12_000, creates: 20_000, lower_changes: 3000,
    big_file: 1024 * MIB, sequential_write: 512 * MIB, random_write: 256 * MIB, fio_ms: 1000, fsyncs: 500, dbench_seconds: 5,
    transactions: 100, clone_files: 10_000, package_files: 2000, crate_modules: 40, walk_files: 100_000, huge_files: 1_000_000,
);

/// What quick mode unpacks instead of the whole root, which takes some peers over ten seconds each time.
const PART_OF_ROOT: [&str; 3] = ["./usr/share/perl", "./usr/share/man", "./var"];
