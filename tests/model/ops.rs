//! The operations, how one is chosen, and what it answers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use crate::systems::System;
use crate::{Rng, tree};

/// An open file.
pub struct Hand(File);

#[derive(Clone, Debug)]
pub enum Op {
    Create {
        path: PathBuf,
        mode: u32,
        len: usize,
        /// It is written before it has a name (O_TMPFILE).
        unnamed: bool,
    },
    Write {
        path: PathBuf,
        offset: u64,
        len: usize,
        append: bool,
    },
    Truncate {
        path: PathBuf,
        len: u64,
    },
    Mkdir {
        path: PathBuf,
        mode: u32,
    },
    Rmdir {
        path: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        flags: u8,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    Symlink {
        target: PathBuf,
        path: PathBuf,
    },
    Fifo {
        path: PathBuf,
    },
    Device {
        path: PathBuf,
    },
    Chmod {
        path: PathBuf,
        mode: u32,
    },
    Chown {
        path: PathBuf,
        uid: u32,
        gid: u32,
    },
    Utimes {
        path: PathBuf,
        secs: i64,
        nanos: u32,
    },
    SetXattr {
        path: PathBuf,
        name: &'static str,
        flags: u8,
    },
    RemoveXattr {
        path: PathBuf,
        name: &'static str,
    },
    Punch {
        path: PathBuf,
        offset: u64,
        len: u64,
    },
    Extend {
        path: PathBuf,
        offset: u64,
        len: u64,
    },
    CopyRange {
        from: PathBuf,
        to: PathBuf,
        len: usize,
    },
    SeekData {
        path: PathBuf,
    },
    Stat {
        path: PathBuf,
    },
    List {
        path: PathBuf,
    },
    Read {
        path: PathBuf,
    },
    HandOpen {
        path: PathBuf,
    },
    HandRead {
        hand: usize,
    },
    HandWrite {
        hand: usize,
        offset: u64,
        len: usize,
    },
    HandStat {
        hand: usize,
    },
    HandTruncate {
        hand: usize,
        len: u64,
    },
    HandClose {
        hand: usize,
    },
}

const NAMES: [&str; 7] = ["f0", "f1", "f2", "f3", "f4", "d0", "d1"];

fn some_path(rng: &mut Rng, root: &Path) -> PathBuf {
    let existing = tree::paths(root);
    if rng.chance(75) && !existing.is_empty() {
        return rng.pick(&existing).clone();
    }
    let dirs = tree::directories(root);
    let mut path = rng.pick(&dirs).join(rng.pick(&NAMES));
    if rng.chance(5) {
        path.push("below");
    }
    path
}

fn new_path(rng: &mut Rng, root: &Path) -> PathBuf {
    let dirs = tree::directories(root);
    rng.pick(&dirs).join(rng.pick(&NAMES))
}

pub fn choose(rng: &mut Rng, plain: &Path, hands: usize) -> Op {
    let path = some_path(rng, plain);
    let fresh = new_path(rng, plain);
    let offset = *rng.pick(&[0, 1, 4095, 4096, 100_000, 199_990, 260_000]);
    let len = *rng.pick(&[1_usize, 10, 4096, 70_000]);
    let hand = rng.below(hands.max(1));
    match rng.below(if hands > 0 { 52 } else { 44 }) {
        0..=4 => Op::Create {
            path: fresh,
            mode: *rng.pick(&[0o644, 0o600, 0o755, 0o6755]),
            len,
            unnamed: rng.chance(25),
        },
        5..=8 => Op::Write {
            path,
            offset,
            len,
            append: rng.chance(30),
        },
        9 | 10 => Op::Truncate {
            path,
            len: *rng.pick(&[0, 1, 5000, 250_000]),
        },
        11..=13 => Op::Mkdir {
            path: fresh,
            mode: *rng.pick(&[0o755, 0o700, 0o1777, 0o2775]),
        },
        14 | 15 => Op::Rmdir { path },
        16..=18 => Op::Unlink { path },
        19..=25 => {
            let to = if rng.chance(50) {
                some_path(rng, plain)
            } else {
                fresh
            };
            Op::Rename {
                from: path,
                to,
                flags: *rng.pick(&[0, 0, 0, 0, 1, 2]),
            }
        }
        26..=28 => Op::Link {
            from: path,
            to: fresh,
        },
        29 => Op::Symlink {
            target: path,
            path: fresh,
        },
        30 => Op::Fifo { path: fresh },
        31 => Op::Device { path: fresh },
        32 | 33 => Op::Chmod {
            path,
            mode: *rng.pick(&[0o400, 0o644, 0o4711, 0o2755, 0o1777]),
        },
        34 => Op::Chown {
            path,
            uid: *rng.pick(&[0, 7, 1000]),
            gid: *rng.pick(&[0, 8, 1001]),
        },
        35 => Op::Utimes {
            path,
            secs: *rng.pick(&[-77_777, -1, 5, 1_400_000_000]),
            nanos: rng.below(1_000_000_000) as u32,
        },
        36 => {
            let name = *rng.pick(&[
                "user.mark",
                "user.other",
                "trusted.mine",
                "trusted.overlay.opaque",
            ]);
            Op::SetXattr {
                path,
                name,
                flags: *rng.pick(&[0, 0, 1, 2]),
            }
        }
        37 => Op::RemoveXattr {
            path,
            name: rng.pick::<&str>(&["user.mark", "user.other", "trusted.mine"]),
        },
        38 => match rng.below(4) {
            0 => Op::Extend {
                path,
                offset,
                len: len as u64,
            },
            1 => Op::SeekData { path },
            _ => Op::Punch {
                path,
                offset,
                len: len as u64,
            },
        },
        39 => Op::CopyRange {
            from: path,
            to: some_path(rng, plain),
            len,
        },
        40 => Op::Stat { path },
        41 => Op::List { path },
        42 => Op::Read { path },
        43 => Op::HandOpen { path },
        44 => Op::HandOpen { path },
        45 | 46 => Op::HandWrite { hand, offset, len },
        47 | 48 => Op::HandRead { hand },
        49 => Op::HandStat { hand },
        50 => Op::HandTruncate { hand, len: offset },
        _ => Op::HandClose { hand },
    }
}

/// The visible result: what was read, or the error.
pub type Answer = Result<Vec<u8>, Errno>;

/// Long answers are compared by hash, for the reader's sake.
fn brief(bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() <= 200 {
        return bytes;
    }
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    format!("{} bytes, hash {:x}", bytes.len(), hasher.finish()).into_bytes()
}

fn io<T>(r: std::io::Result<T>) -> Result<T, Errno> {
    r.map_err(|e| Errno::from_io_error(&e).unwrap_or_else(|| panic!("no errno in {e}")))
}

fn data(len: usize, salt: u64) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u64 * 7 + salt * 31 + 1) as u8)
        .collect()
}

fn open(path: &Path, flags: OFlags) -> Result<File, Errno> {
    let nonblock = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    Ok(File::from(rustix::fs::open(path, nonblock, Mode::empty())?))
}

fn describe(meta: &fs::Metadata) -> Vec<u8> {
    let mtime = (meta.mtime() < tree::NOW_BEGINS).then(|| (meta.mtime(), meta.mtime_nsec()));
    let size = (!meta.is_dir()).then(|| (meta.size(), meta.nlink()));
    format!(
        "{:o} {}:{} {size:?} {mtime:?}",
        meta.mode(),
        meta.uid(),
        meta.gid()
    )
    .into_bytes()
}

const NOTHING: Answer = Ok(Vec::new());

pub fn apply(op: &Op, system: &mut System) -> Answer {
    let root = system.root.clone();
    let at = |p: &PathBuf| root.join(p);
    match op {
        Op::Create {
            path,
            mode,
            len,
            unnamed,
        } => {
            let path = at(path);
            let (place, how) = if *unnamed {
                (path.parent().unwrap_or(&root), OFlags::TMPFILE)
            } else {
                (path.as_path(), OFlags::CREATE | OFlags::EXCL)
            };
            let how = how | OFlags::WRONLY | OFlags::CLOEXEC;
            let file = File::from(rustix::fs::open(place, how, Mode::from_raw_mode(*mode))?);
            io(file.write_all_at(&data(*len, 1), 0))?;
            if *unnamed {
                let own = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, own, CWD, &path, AtFlags::SYMLINK_FOLLOW)?;
            }
            NOTHING
        }
        Op::Write {
            path,
            offset,
            len,
            append,
        } => {
            let mode = if *append {
                OFlags::APPEND | OFlags::WRONLY
            } else {
                OFlags::WRONLY
            };
            let mut file = open(&at(path), mode)?;
            io(if *append {
                std::io::Write::write_all(&mut file, &data(*len, 2))
            } else {
                file.write_all_at(&data(*len, 3), *offset)
            })?;
            NOTHING
        }
        Op::Truncate { path, len } => {
            rustix::fs::ftruncate(open(&at(path), OFlags::WRONLY)?, *len)?;
            NOTHING
        }
        Op::Mkdir { path, mode } => {
            rustix::fs::mkdirat(CWD, at(path), Mode::from_raw_mode(*mode))?;
            NOTHING
        }
        Op::Rmdir { path } => {
            rustix::fs::unlinkat(CWD, at(path), AtFlags::REMOVEDIR)?;
            NOTHING
        }
        Op::Unlink { path } => {
            rustix::fs::unlinkat(CWD, at(path), AtFlags::empty())?;
            NOTHING
        }
        Op::Rename { from, to, flags } => {
            let flags = match flags {
                1 => RenameFlags::NOREPLACE,
                2 => RenameFlags::EXCHANGE,
                _ => RenameFlags::empty(),
            };
            rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags)?;
            NOTHING
        }
        Op::Link { from, to } => {
            rustix::fs::linkat(CWD, at(from), CWD, at(to), AtFlags::empty())?;
            NOTHING
        }
        Op::Symlink { target, path } => {
            io(symlink(target, at(path)))?;
            NOTHING
        }
        Op::Fifo { path } => {
            rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::from_raw_mode(0o640), 0)?;
            NOTHING
        }
        Op::Device { path } => {
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(
                CWD,
                at(path),
                FileType::CharacterDevice,
                Mode::from_raw_mode(0o666),
                null,
            )?;
            NOTHING
        }
        Op::Chmod { path, mode } => {
            let meta = io(fs::symlink_metadata(at(path)))?;
            if !meta.is_symlink() {
                rustix::fs::chmod(at(path), Mode::from_raw_mode(*mode))?;
            }
            NOTHING
        }
        Op::Chown { path, uid, gid } => {
            io(std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid)))?;
            NOTHING
        }
        Op::Utimes { path, secs, nanos } => {
            let time = rustix::fs::Timespec {
                tv_sec: *secs,
                tv_nsec: (*nanos).into(),
            };
            let times = rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            };
            rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            NOTHING
        }
        Op::SetXattr { path, name, flags } => {
            let flags = match flags {
                1 => XattrFlags::CREATE,
                2 => XattrFlags::REPLACE,
                _ => XattrFlags::empty(),
            };
            rustix::fs::lsetxattr(at(path), *name, b"set by the test", flags)?;
            NOTHING
        }
        Op::RemoveXattr { path, name } => {
            rustix::fs::lremovexattr(at(path), *name)?;
            NOTHING
        }
        Op::Punch { path, offset, len } => {
            let file = open(&at(path), OFlags::RDWR)?;
            rustix::fs::fallocate(
                file,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                *offset,
                *len,
            )?;
            NOTHING
        }
        Op::Extend { path, offset, len } => {
            rustix::fs::fallocate(
                open(&at(path), OFlags::RDWR)?,
                FallocateFlags::empty(),
                *offset,
                *len,
            )?;
            NOTHING
        }
        Op::CopyRange { from, to, len } => {
            let (from, to) = (
                open(&at(from), OFlags::RDONLY)?,
                open(&at(to), OFlags::WRONLY)?,
            );
            let (mut a, mut b, mut left) = (0, 100, *len);
            while left > 0 {
                match rustix::fs::copy_file_range(&from, Some(&mut a), &to, Some(&mut b), left)? {
                    0 => break,
                    n => left -= n,
                }
            }
            Ok((len - left).to_string().into_bytes())
        }
        Op::SeekData { path } => {
            // Where data lies differs from one file system's blocks to another's; that a hole-only file has none, or
            // that the end is ENXIO, does not.
            let file = open(&at(path), OFlags::RDONLY)?;
            let meta = io(file.metadata())?;
            if !meta.is_file() {
                return NOTHING;
            }
            let size = meta.len();
            match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(size)) {
                Err(e) => Err(e),
                Ok(at) => Ok(at.to_string().into_bytes()),
            }
        }
        Op::Stat { path } => Ok(describe(&io(fs::symlink_metadata(at(path)))?)),
        Op::List { path } => {
            let mut names: Vec<_> = Vec::new();
            for entry in io(fs::read_dir(at(path)))? {
                names.push(io(entry)?.file_name());
            }
            names.sort();
            Ok(names.join(OsStr::new("/")).into_encoded_bytes())
        }
        Op::Read { path } => {
            let file = open(&at(path), OFlags::RDONLY)?;
            let meta = io(file.metadata())?;
            if !meta.is_file() {
                return Ok(describe(&meta));
            }
            let mut buf = vec![0; meta.len() as usize];
            io(file.read_exact_at(&mut buf, 0))?;
            Ok(brief(buf))
        }
        Op::HandOpen { path } => {
            let meta = io(fs::symlink_metadata(at(path)))?;
            if meta.is_file() && system.hands.len() < 4 {
                // Opened for reading only every other time: such a file must follow its copy-up.
                let flags = if system.hands.len().is_multiple_of(2) {
                    OFlags::RDWR
                } else {
                    OFlags::RDONLY
                };
                system.hands.push(Hand(open(&at(path), flags)?));
            }
            NOTHING
        }
        Op::HandRead { hand } => {
            let Some(Hand(file)) = system.hands.get(*hand) else {
                return NOTHING;
            };
            let mut buf = vec![0; io(file.metadata())?.len() as usize];
            io(file.read_exact_at(&mut buf, 0))?;
            Ok(brief(buf))
        }
        Op::HandWrite { hand, offset, len } => {
            let Some(Hand(file)) = system.hands.get(*hand) else {
                return NOTHING;
            };
            io(file.write_all_at(&data(*len, 5), *offset))?;
            NOTHING
        }
        Op::HandStat { hand } => {
            let Some(Hand(file)) = system.hands.get(*hand) else {
                return NOTHING;
            };
            Ok(describe(&io(file.metadata())?))
        }
        Op::HandTruncate { hand, len } => {
            let Some(Hand(file)) = system.hands.get(*hand) else {
                return NOTHING;
            };
            rustix::fs::ftruncate(file, *len)?;
            NOTHING
        }
        Op::HandClose { hand } => {
            if *hand < system.hands.len() {
                system.hands.swap_remove(*hand);
            }
            NOTHING
        }
    }
}
