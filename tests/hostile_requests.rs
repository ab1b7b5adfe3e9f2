//! T39: any request with any argument gets an answer, an errno where it makes no sense, and never a panic. The kernel is played
//! by the test, so that also what a real one would not pass on arrives; then the same by system calls on a real mount.

mod hostile_support;
mod mount_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use hostile_support::kernel::*;
use hostile_support::requests::*;
use mount_support::{Site, complaint};
use ovl::fuse::Config;
use ovl::layer::{DirLayer, Layer};
use ovl::overlay::{Options, Overlay, Stack, UpperDirs};
use rustix::io::Errno;

/// Requests of the random run; OVL_REQUESTS asks for more.
fn rounds() -> u64 {
    std::env::var("OVL_REQUESTS").map_or(30_000, |n| n.parse().expect("a number"))
}

/// Mode, owner, links, size, time and bytes.
type Facts = (u32, u32, u64, u64, i64, Vec<u8>);

struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        let ground = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        for dir in ["lower/dir/deep", "upper", "work", "outside"] {
            fs::create_dir_all(ground.at(dir)).unwrap();
        }
        for (name, content) in [
            ("lower/file", vec![1; 10_000]),
            ("lower/big", vec![2; 60_000]),
            ("lower/dir/inner", vec![3; 10]),
            ("lower/twice", vec![4; 5]),
            ("outside/canary", b"untouched".to_vec()),
            ("canary", b"untouched".to_vec()),
        ] {
            fs::write(ground.at(name), content).unwrap();
        }
        fs::hard_link(ground.at("lower/twice"), ground.at("lower/again")).unwrap();
        std::os::unix::fs::symlink("../canary", ground.at("lower/link")).unwrap();
        let made = Command::new("mkfifo").arg(ground.at("lower/fifo")).status();
        assert!(made.unwrap().success());
        ground
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn engine(&self) -> Arc<Overlay> {
        let lower: Arc<dyn Layer> = Arc::new(DirLayer::open(&self.at("lower")).unwrap());
        let upper = UpperDirs {
            upper: self.at("upper"),
            work: self.at("work"),
        };
        let stack = Stack {
            lowers: vec![lower],
            upper: Some(upper),
        };
        Arc::new(Overlay::new(stack, &Options::default()).unwrap())
    }

    /// Everything but upper and work.
    fn others(&self) -> BTreeMap<PathBuf, Facts> {
        let walk = walkdir::WalkDir::new(self.dir.path()).into_iter();
        let mine = |path: &Path| {
            path == self.at("upper") || path == self.at("work") || path == self.dir.path()
        };
        walk.filter_entry(|entry| entry.path() == self.dir.path() || !mine(entry.path()))
            .map(|entry| {
                let path = entry.unwrap().into_path();
                let meta = path.symlink_metadata().unwrap();
                let bytes = match meta.is_file() {
                    true => fs::read(&path).unwrap(),
                    false => Vec::new(),
                };
                let (mode, links) = match path == self.dir.path() {
                    true => (0, 0),
                    false => (meta.mode(), meta.nlink()),
                };
                let facts = (
                    mode,
                    meta.uid(),
                    links,
                    meta.size(),
                    meta.mtime() * i64::from(links != 0),
                    bytes,
                );
                (path, facts)
            })
            .collect()
    }
}

/// Opcodes there are (linux/fuse.h), and some that there are not.
fn opcodes() -> Vec<u32> {
    (1..=60)
        // INIT and DESTROY are the beginning and the end.
        .filter(|opcode| ![26, 38].contains(opcode))
        .chain([100, 4095, 4096, u32::MAX])
        .collect()
}

/// Not answered: the kernel only tells.
const TOLD: [u32; 2] = [2, 42];

#[test]
fn t39_any_request_gets_an_answer() {
    let ground = Ground::new();
    let before = ground.others();
    for no_open in [true, false] {
        let config = Config {
            no_open,
            ..Config::default()
        };
        let engine = ground.engine();
        let mut kernel = Kernel::new(Arc::clone(&engine), &config);
        let seed = 0x9e37_79b9_7f4a_7c15 ^ u64::from(no_open);
        let mut dice = Dice(seed);
        let mut nodes = vec![1, 0, 2, u64::MAX, 1 << 63, 12345];
        let mut succeeded = BTreeMap::<u32, u32>::new();
        for round in 0..rounds() / 2 {
            let opcode = dice.pick(&opcodes());
            // Half of them go to the root, where the names are.
            let any = dice.pick(&nodes);
            let node = dice.pick(&[1, any]);
            if round.is_multiple_of(64) {
                for name in [&b"file"[..], b"dir", b"link", b"fifo", b"twice", b"big"] {
                    nodes.extend(kernel.lookup(1, name));
                }
                nodes.dedup();
                if nodes.len() > 64 {
                    nodes.drain(6..30);
                }
            }
            kernel.uid = dice.pick(&[0, 0, 1000, 65_534, u32::MAX - 1]);
            let body = body(&mut dice, opcode, &nodes);
            let what = || {
                format!(
                    "seed {seed:#x} round {round}: opcode {opcode} node {node:#x} uid {} {:02x?}",
                    kernel.uid,
                    &body.0[..body.0.len().min(120)]
                )
            };
            if TOLD.contains(&opcode) {
                // The root is never forgotten: its count is the mount's.
                if node != 1 && opcode == 2 {
                    kernel.send(opcode, node, &body);
                }
                continue;
            }
            let what = what();
            let (errno, reply) = kernel.ask(opcode, node, &body);
            assert!((0..512).contains(&errno), "{what}: errno {errno}");
            assert_ne!(errno, libc::EIO, "{what}");
            assert_eq!(kernel.counters.panics(), 0, "{what}");
            if errno == 0 {
                *succeeded.entry(opcode).or_default() += 1;
                if [1, 6, 8, 9, 13, 35, 51].contains(&opcode)
                    && let Some(node) = reply.first_chunk()
                {
                    nodes.push(u64::from_ne_bytes(*node));
                }
            }
        }
        // It did something, and it still does.
        for opcode in [1, 3, 4, 6, 8, 9, 12, 13, 15, 16, 21, 22, 23, 44, 45, 46, 51] {
            assert!(
                succeeded.contains_key(&opcode),
                "opcode {opcode} never succeeded: {succeeded:?}"
            );
        }
        kernel.uid = 0;
        assert_eq!(kernel.ask(GETATTR, 1, &Body::default().u64(0).u64(0)).0, 0);
        kernel.end();
        engine.shutdown();
        drop(engine);
        assert_eq!(ground.others(), before, "outside the upper");
        for dir in ["upper", "work"] {
            fs::remove_dir_all(ground.at(dir)).unwrap();
            fs::create_dir(ground.at(dir)).unwrap();
        }
    }
}

/// A name is one name: with a slash in it, or `..`, it would lead out of its directory.
#[test]
fn t39_names_that_lead_elsewhere() {
    let ground = Ground::new();
    let before = ground.others();
    let engine = ground.engine();
    let mut kernel = Kernel::new(Arc::clone(&engine), &Config::default());
    let dir = kernel.lookup(1, b"dir").expect("a directory");
    let file = kernel.lookup(1, b"file").expect("a file");
    let b = Body::default;
    for bad in [
        &b"../outside/canary"[..],
        b"..",
        b".",
        b"",
        b"deep/../../..",
        b"/etc",
        b"a/b",
    ] {
        for (opcode, node, body) in [
            (
                8,
                dir,
                b().u32(libc::S_IFREG | 0o644).u32(0).u64(0).name(bad),
            ),
            (9, dir, b().u32(0o755).u32(0).name(bad)),
            (10, dir, b().name(bad)),
            (11, dir, b().name(bad)),
            (6, dir, b().name(bad).name(b"target")),
            (13, dir, b().u64(file).name(bad)),
            (12, 1, b().u64(dir).name(b"file").name(bad)),
            (12, dir, b().u64(1).name(bad).name(b"file2")),
            (45, 1, b().u64(dir).u32(2).u32(0).name(b"file").name(bad)),
        ] {
            let (errno, _) = kernel.ask(opcode, node, &body);
            assert_ne!(errno, 0, "opcode {opcode} took {:?}", bad.escape_ascii());
        }
        let (errno, entry) = kernel.ask(LOOKUP, dir, &b().name(bad));
        let node = entry.first_chunk().map_or(0, |n| u64::from_ne_bytes(*n));
        assert!(errno != 0 || node == 0, "{:?} found", bad.escape_ascii());
    }
    kernel.end();
    engine.shutdown();
    assert_eq!(ground.others(), before);
    assert_eq!(fs::read_dir(ground.at("upper")).unwrap().count(), 0);
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|e| e.raw_os_error())
}

/// What the system calls let through, on a real mount.
#[test]
fn t39_system_calls_with_the_worst_arguments() {
    let site = Site::new();
    let output = site.try_mount(&site.task());
    assert!(output.status.success(), "{}", complaint(&output));
    let mnt = site.path("mnt");
    let long = "n".repeat(256);
    assert_eq!(
        errno(fs::write(mnt.join(&long), "")),
        Some(libc::ENAMETOOLONG)
    );
    assert_eq!(
        errno(fs::create_dir(mnt.join(&long))),
        Some(libc::ENAMETOOLONG)
    );
    fs::write(mnt.join(&long[..255]), "").unwrap();
    for name in [".", "..", "sub/.", "sub/.."] {
        assert!(fs::remove_dir(mnt.join(name)).is_err(), "{name}");
        assert!(fs::rename(mnt.join(name), mnt.join("x")).is_err(), "{name}");
    }
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(mnt.join("hello"))
        .unwrap();
    let mut buf = [0; 16];
    for at in [i64::MAX as u64, i64::MAX as u64 - 16, 1 << 62, 1 << 45] {
        assert_eq!(file.read_at(&mut buf, at).unwrap_or(0), 0, "read at {at}");
    }
    // Beyond what the upper's file system holds, an error, with write or with fsync; never a lost mount.
    for at in [i64::MAX as u64 - 16, 1 << 62] {
        let written = file.write_at(b"x", at).and_then(|_| file.sync_all());
        assert!(written.is_err(), "write at {at}");
    }
    for size in [i64::MAX as u64, 1 << 62] {
        assert!(file.set_len(size).is_err(), "{size}");
    }
    file.set_len(11).unwrap();
    let huge = vec![5; 16 << 20];
    let big = fs::File::create_new(mnt.join("big")).unwrap();
    big.write_all_at(&huge, 3).unwrap();
    big.sync_all().unwrap();
    assert_eq!(
        fs::metadata(mnt.join("big")).unwrap().len(),
        huge.len() as u64 + 3
    );
    let read = fs::read(mnt.join("big")).unwrap();
    assert!(read[3..] == huge[..] && read[..3] == [0; 3]);
    for secs in [i64::MIN, i64::MIN + 1, -1, 0, i64::MAX] {
        for nanos in [0, 1, 999_999_999] {
            let time = rustix::fs::Timespec {
                tv_sec: secs,
                tv_nsec: nanos,
            };
            let times = rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            };
            let flags = rustix::fs::AtFlags::empty();
            // Taken and cut to what the file system has, or refused.
            match rustix::fs::utimensat(rustix::fs::CWD, mnt.join("hello"), &times, flags) {
                Ok(()) | Err(Errno::INVAL | Errno::OVERFLOW) => {}
                Err(e) => panic!("{secs}.{nanos}: {e}"),
            }
        }
    }
    for flags in 0..16 {
        let how = rustix::fs::RenameFlags::from_bits_retain(flags);
        let cwd = rustix::fs::CWD;
        let (from, to) = (mnt.join("big"), mnt.join("other"));
        if rustix::fs::renameat_with(cwd, &from, cwd, &to, how).is_ok() {
            fs::rename(&to, &from).unwrap();
        }
    }
    for name in XATTRS {
        let name = std::ffi::OsStr::from_bytes(name);
        for value in VALUES {
            for how in [0, 1, 2] {
                let how = rustix::fs::XattrFlags::from_bits_retain(how);
                let _ = rustix::fs::setxattr(mnt.join("hello"), name, value, how);
            }
        }
        let _ = rustix::fs::removexattr(mnt.join("hello"), name);
    }
    // The daemon met none of it as a bug, and serves.
    let record = site.record().expect("a record");
    assert_eq!(record.panics, 0);
    let log = record.log.expect("a log").0;
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("bug") && !log.contains("panicked"), "{log}");
    assert_eq!(fs::read(mnt.join("sub/inner")).unwrap(), b"deep");
}
