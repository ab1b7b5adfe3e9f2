//! Power cuts under an upper: whatever of the writes that were not synced reached the disk, a name shows the old object or
//! the whole copy, never a part of it.
//!
//! A real ext4 (and XFS, and btrfs) lies on a disk that remembers every write and every flush (`disk_support`). Lower files
//! are changed on a mount whose upper is there, while somebody else has the journal committed all the time. Then the disk
//! is set to what a cut could have left, mounted, and every copy compared with what it is a copy of.
//!
//! `OVL_UPPER_CUTS` sets how many cuts are tried on each file system; `make torture` tries 400.

mod common;
mod disk_support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Sandbox, require_mounting};
use disk_support::{Disk, Luck, Op, Rng, Tree};
use rustix::fs::XattrFlags;

/// Changed files.
const FILES: usize = 72;
const PAGE: usize = 4096;
const TAIL: &[u8] = b"and a tail";
const KEPT: (&str, &[u8]) = ("user.kept", b"from below");

/// What is done to the file with a number, and so how much of the old content its copy has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Mode,
    Owner,
    Append,
    /// Of a file that has two names.
    OtherName,
    Rename,
    Cut,
}

fn change_of(number: usize) -> Change {
    [
        Change::Mode,
        Change::Append,
        Change::Owner,
        Change::OtherName,
        Change::Rename,
        Change::Cut,
    ][number % 6]
}

fn content(number: usize) -> Vec<u8> {
    let len = [120, 5_000, 40_000, 4096, 300_000, 1][number / 6 % 6];
    // Never a zero: those are what a block has that was not written.
    (0..len)
        .map(|at| (at * 7 + number * 31) as u8 | 1)
        .collect()
}

fn name(number: usize) -> String {
    format!("dir{}/file{number}", number % 5)
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("this test needs {command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A file system to lie below the upper.
struct Kind {
    mkfs: &'static [&'static str],
    megabytes: u64,
    mount: &'static str,
    /// A name that moves and the whiteout it leaves become durable together: not on btrfs, docs/limits.md.
    moves_whole: bool,
}

const EXT4: Kind = Kind {
    mkfs: &[
        "mkfs.ext4",
        "-q",
        "-E",
        "nodiscard,lazy_itable_init=0",
        "-J",
        "size=4",
    ],
    megabytes: 64,
    mount: "loop",
    moves_whole: true,
};
/// Small files in their inodes, and commits of single changes where the journal can.
const EXT4_UNUSUAL: Kind = Kind {
    mkfs: &[
        "mkfs.ext4",
        "-q",
        "-O",
        "inline_data,fast_commit",
        "-E",
        "nodiscard,lazy_itable_init=0",
        "-J",
        "size=4",
    ],
    ..EXT4
};
const XFS: Kind = Kind {
    mkfs: &["mkfs.xfs", "-q", "-K"],
    megabytes: 304,
    mount: "loop,nouuid",
    moves_whole: true,
};
const BTRFS: Kind = Kind {
    mkfs: &["mkfs.btrfs", "-q", "-K", "--mixed"],
    megabytes: 64,
    mount: "loop",
    moves_whole: false,
};

/// A mounted file system; unmounted when dropped, with what is on it.
struct Volume(PathBuf);

impl Volume {
    fn mount(image: &Path, at: &Path, options: &str) -> Self {
        run(Command::new("mount")
            .args(["-o", options])
            .arg(image)
            .arg(at));
        Self(at.to_owned())
    }

    fn unmount(self) {
        run(Command::new("umount").arg(&self.0));
        std::mem::forget(self);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A test has failed. Its mount may still use this one.
        let mnt = self.0.with_file_name("mnt");
        for point in [&mnt, &self.0] {
            let _ = Command::new("umount").arg("-l").arg(point).output();
        }
    }
}

/// How lower files are changed.
#[derive(Clone, Copy)]
struct Setting {
    options: &'static str,
    /// The lower lies beside the upper: data may be shared, or copied by the file system itself.
    lower_inside: bool,
}

const USUAL: Setting = Setting {
    options: "fsync=1",
    lower_inside: false,
};
const METACOPY: Setting = Setting {
    options: "metacopy=on,redirect_dir=on",
    lower_inside: false,
};

/// The disk from the moment its upper was empty, and all that was written to it while lower files were changed.
struct Recording<'a> {
    sandbox: Sandbox,
    kind: &'a Kind,
    setting: Setting,
    before: Tree,
    log: Vec<Op>,
}

impl<'a> Recording<'a> {
    fn new(kind: &'a Kind, setting: Setting) -> Self {
        require_mounting();
        let sandbox = Sandbox::new();
        let disk = Disk::mount(Tree::new(), &sandbox.mkdir("disk"));
        let image = sandbox.path("disk/image");
        make(kind, &image);
        let volume = Volume::mount(&image, &sandbox.mkdir("volume"), kind.mount);
        let lower = sandbox.mkdir(setting.lower());
        fill(&lower);
        let (upper, mnt) = (sandbox.mkdir("volume/upper"), sandbox.mkdir("mnt"));
        mount(&sandbox, setting, &lower, &upper, &mnt);
        rustix::fs::syncfs(File::open(&volume.0).unwrap()).unwrap();
        let before = {
            let mut state = disk.state();
            state.log.clear();
            state.tree.clone()
        };
        let committer = Committer::default();
        let log = std::thread::scope(|scope| {
            let _stop = committer.stop_at_the_end();
            scope.spawn(|| committer.run(&volume.0));
            for number in 0..FILES {
                change(&mnt, number, setting);
                if number % 3 == 0 {
                    committer.wait_for_another();
                }
            }
            // Before the mount's end syncs it all.
            disk.state().log.clone()
        });
        sandbox.run(["umount", mnt.to_str().unwrap()]);
        volume.unmount();
        drop(disk);
        Self {
            sandbox,
            kind,
            setting,
            before,
            log,
        }
    }

    /// Looks at what cuts left, at random moments and with any luck; how many copies were there, and what was wrong.
    fn cuts(&self, count: usize, seed: u64) -> (usize, Vec<String>) {
        let mut rng = Rng(seed);
        let syncs: Vec<usize> = (0..self.log.len())
            .filter(|at| self.log[*at].is_sync())
            .collect();
        assert!(syncs.len() > 20, "nobody committed: {}", syncs.len());
        let (mut copies, mut wrong) = (0, Vec::new());
        for round in 0..count {
            // Right behind a sync is where the most is there that nobody waited for.
            let at = if rng.below(3) == 0 {
                rng.below(self.log.len() as u64) as usize
            } else {
                syncs[rng.below(syncs.len() as u64) as usize] + 1
            };
            let mut luck = match round % 4 {
                0 => Luck::None,
                1 => Luck::All,
                _ => Luck::Random(Rng(seed ^ round as u64)),
            };
            let left = self.before.after_cut(&self.log[..at], &mut luck);
            let (found, complaints) = self.look_at(left);
            copies += found;
            wrong.extend(
                complaints
                    .into_iter()
                    .map(|what| format!("cut {at}: {what}")),
            );
        }
        (copies, wrong)
    }

    fn look_at(&self, mut left: Tree) -> (usize, Vec<String>) {
        let image = self.sandbox.path("cut");
        let root = left.dir(disk_support::tree::ROOT).unwrap();
        let number = *root.values().next().unwrap();
        write_sparse(&image, left.file(number).unwrap());
        let volume = Volume::mount(&image, &self.sandbox.path("volume"), self.kind.mount);
        let (mut copies, mut wrong) = (0, Vec::new());
        for number in 0..FILES {
            match check_copy(&volume.0.join("upper"), number) {
                Ok(found) => copies += found,
                Err(what) => wrong.push(format!("{}: {what}", name(number))),
            }
        }
        // And the next mount takes it as it is.
        let [lower, upper, mnt] =
            [self.setting.lower(), "volume/upper", "mnt"].map(|name| self.sandbox.path(name));
        mount(&self.sandbox, self.setting, &lower, &upper, &mnt);
        for number in 0..FILES {
            if let Err(what) = check_shown(&mnt, number, self.kind) {
                wrong.push(format!("{} on the mount: {what}", name(number)));
            }
        }
        self.sandbox.run(["umount".as_ref(), mnt.as_os_str()]);
        volume.unmount();
        fs::remove_file(&image).unwrap();
        (copies, wrong)
    }
}

fn write_sparse(path: &Path, data: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(data.len() as u64).unwrap();
    for (number, page) in data.chunks(PAGE).enumerate() {
        if page.iter().any(|byte| *byte != 0) {
            file.write_all_at(page, (number * PAGE) as u64).unwrap();
        }
    }
}

impl Setting {
    fn lower(self) -> &'static str {
        if self.lower_inside {
            "volume/lower"
        } else {
            "lower"
        }
    }

    fn is_metacopy(self) -> bool {
        self.options.contains("metacopy=on")
    }
}

fn make(kind: &Kind, image: &Path) {
    File::create(image)
        .and_then(|file| file.set_len(kind.megabytes << 20))
        .unwrap();
    run(Command::new(kind.mkfs[0]).args(&kind.mkfs[1..]).arg(image));
}

fn fill(lower: &Path) {
    for number in 0..FILES {
        let file = lower.join(name(number));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content(number)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        rustix::fs::setxattr(&file, KEPT.0, KEPT.1, XattrFlags::empty()).unwrap();
        if change_of(number) == Change::OtherName {
            fs::hard_link(&file, file.with_extension("other")).unwrap();
        }
    }
}

fn mount(sandbox: &Sandbox, setting: Setting, lower: &Path, upper: &Path, mnt: &Path) {
    let words = ["mount".as_ref(), "-o".as_ref(), setting.options.as_ref()];
    let places = [lower, upper, mnt].map(Path::as_os_str);
    sandbox.run(words.into_iter().chain(places));
}

/// Another user of the file system, who has the journal committed all the time.
#[derive(Default)]
struct Committer {
    done: AtomicUsize,
    stop: AtomicBool,
}

impl Committer {
    fn run(&self, volume: &Path) {
        let mut file = File::create(volume.join("another's")).unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            file.write_all(b"x").unwrap();
            file.sync_all().unwrap();
            self.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wait_for_another(&self) {
        let (before, begun) = (self.done.load(Ordering::Relaxed), Instant::now());
        while self.done.load(Ordering::Relaxed) == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody commits");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Whatever happens.
    fn stop_at_the_end(&self) -> impl Drop {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Stop(&self.stop)
    }
}

fn change(mnt: &Path, number: usize, setting: Setting) {
    let file = mnt.join(name(number));
    if setting.is_metacopy() && !matches!(change_of(number), Change::Cut | Change::OtherName) {
        // A copy without data, which gets it with the change.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    }
    match change_of(number) {
        Change::Mode => fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).unwrap(),
        Change::Owner => std::os::unix::fs::chown(&file, Some(4711), None).unwrap(),
        Change::Append => File::options()
            .append(true)
            .open(&file)
            .and_then(|mut file| file.write_all(TAIL))
            .unwrap(),
        Change::OtherName => {
            let other = file.with_extension("other");
            fs::set_permissions(other, fs::Permissions::from_mode(0o604)).unwrap();
        }
        Change::Rename => fs::rename(&file, file.with_extension("renamed")).unwrap(),
        Change::Cut => File::options()
            .write(true)
            .open(&file)
            .and_then(|file| file.set_len(content(number).len() as u64 / 2))
            .unwrap(),
    }
}

/// Names the file may have after its change, in the upper or on a mount.
fn names(dir: &Path, number: usize) -> Vec<PathBuf> {
    let file = dir.join(name(number));
    match change_of(number) {
        Change::Rename => vec![file.with_extension("renamed"), file],
        Change::OtherName => vec![file.with_extension("other"), file],
        _ => vec![file],
    }
}

/// Whether a file is what it was, or that with its change. What the change itself wrote need not be there: nobody synced.
fn check_file(path: &Path, number: usize) -> Result<(), String> {
    let whole = content(number);
    let data = fs::read(path).map_err(|e| e.to_string())?;
    let right = match change_of(number) {
        Change::Append => {
            data.starts_with(&whole)
                && (whole.len()..=whole.len() + TAIL.len()).contains(&data.len())
        }
        Change::Cut => data == whole || data == whole[..whole.len() / 2],
        _ => data == whole,
    };
    if !right {
        let zeros = data.iter().filter(|byte| **byte == 0).count();
        return Err(format!(
            "{:?}: {} bytes, {zeros} of them zeros, of {}",
            change_of(number),
            data.len(),
            whole.len()
        ));
    }
    let about = fs::metadata(path).map_err(|e| e.to_string())?;
    let mode = about.mode() & 0o7777;
    let modes: &[u32] = match change_of(number) {
        Change::Mode | Change::OtherName => &[0o640, 0o604],
        _ => &[0o640],
    };
    if !modes.contains(&mode) {
        return Err(format!("mode {mode:o}"));
    }
    if ![0, 4711].contains(&about.uid()) {
        return Err(format!("owner {}", about.uid()));
    }
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(path, KEPT.0, &mut value).map_err(|e| e.to_string())?;
    if value[..len] != *KEPT.1 {
        return Err("another xattr".into());
    }
    Ok(())
}

/// How many copies there are.
fn check_copy(upper: &Path, number: usize) -> Result<usize, String> {
    let mut found = 0;
    for path in names(upper, number) {
        // What has its data below is looked at on the mount.
        let mark = "trusted.overlay.metacopy";
        if rustix::fs::lgetxattr(&path, mark, &mut [0_u8; 16]).is_ok() {
            found += 1;
            continue;
        }
        if fs::symlink_metadata(&path).is_ok_and(|about| about.is_file()) {
            check_file(&path, number)?;
            found += 1;
        }
    }
    Ok(found)
}

fn check_shown(mnt: &Path, number: usize, kind: &Kind) -> Result<(), String> {
    let shown: Vec<PathBuf> = names(mnt, number)
        .into_iter()
        .filter(|path| fs::symlink_metadata(path).is_ok())
        .collect();
    let wanted = match change_of(number) {
        Change::OtherName => 2,
        _ => 1,
    };
    let also = change_of(number) == Change::Rename && !kind.moves_whole && shown.len() == 2;
    if shown.len() != wanted && !also {
        return Err(format!("{} names: {shown:?}", shown.len()));
    }
    shown.iter().try_for_each(|path| check_file(path, number))
}

fn count() -> usize {
    match std::env::var("OVL_UPPER_CUTS") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => 24,
    }
}

fn nothing_is_half_copied(kind: &Kind, setting: Setting) {
    let recording = Recording::new(kind, setting);
    let (copies, wrong) = recording.cuts(count(), 4711);
    assert!(copies > count(), "few copies to look at: {copies}");
    assert!(
        wrong.is_empty(),
        "{} things:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn on_ext4_nothing_is_half_copied() {
    nothing_is_half_copied(&EXT4, USUAL);
}

#[test]
fn on_an_unusual_ext4_nothing_is_half_copied() {
    nothing_is_half_copied(&EXT4_UNUSUAL, USUAL);
}

#[test]
fn on_ext4_no_data_comes_half_later() {
    nothing_is_half_copied(&EXT4, METACOPY);
}

/// Where copies share the data of the lower.
#[test]
fn on_xfs_nothing_is_half_copied() {
    let setting = Setting {
        lower_inside: true,
        ..USUAL
    };
    nothing_is_half_copied(&XFS, setting);
}

#[test]
fn on_btrfs_nothing_is_half_copied() {
    nothing_is_half_copied(&BTRFS, USUAL);
}

/// What the others hold against: copies that nobody waits for are broken by the same cuts.
#[test]
fn without_syncs_something_is() {
    let setting = Setting {
        options: "fsync=0",
        ..USUAL
    };
    let recording = Recording::new(&EXT4, setting);
    let (_, wrong) = recording.cuts(24, 4711);
    assert!(!wrong.is_empty(), "the cuts broke nothing");
}

/// Which call a copy waits for.
#[test]
fn each_file_system_gets_what_it_needs() {
    require_mounting();
    let without_journal = Kind {
        mkfs: &["mkfs.ext4", "-q", "-O", "^has_journal"],
        ..EXT4
    };
    let journalled = Kind {
        mount: "loop,data=journal",
        ..EXT4
    };
    for (what, kind, call, other) in [
        ("ext4", &EXT4, "sync_file_range", "fsync"),
        ("xfs", &XFS, "sync_file_range", "fsync"),
        ("btrfs", &BTRFS, "fsync", "sync_file_range"),
        ("no journal", &without_journal, "fsync", "sync_file_range"),
        ("data=journal", &journalled, "fsync", "sync_file_range"),
    ] {
        let sandbox = Sandbox::new();
        let image = sandbox.path("image");
        make(kind, &image);
        let volume = Volume::mount(&image, &sandbox.mkdir("volume"), kind.mount);
        let (lower, mnt) = (sandbox.mkdir("lower"), sandbox.mkdir("mnt"));
        fs::write(lower.join("file"), "from below").unwrap();
        mount(
            &sandbox,
            USUAL,
            &lower,
            &sandbox.mkdir("volume/upper"),
            &mnt,
        );
        let trace = sandbox.path("trace");
        let mut strace = Command::new("strace")
            .args(["-f", "-e", "trace=fsync,sync_file_range", "-o"])
            .arg(&trace)
            .args(["-p", &common::daemon_of(&sandbox).to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("this test needs strace: {e}"));
        let mut said = String::new();
        let mut stderr = BufReader::new(strace.stderr.take().unwrap());
        stderr.read_line(&mut said).unwrap();
        assert!(said.contains("attached"), "{said}");
        fs::set_permissions(mnt.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        let pid = rustix::process::Pid::from_child(&strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        strace.wait().unwrap();
        let calls = fs::read_to_string(&trace).unwrap();
        assert!(calls.contains(&format!("{call}(")), "{what}: {calls}");
        assert!(!calls.contains(&format!("{other}(")), "{what}: {calls}");
        sandbox.run(["umount".as_ref(), mnt.as_os_str()]);
        volume.unmount();
    }
}
