//! What a tree holds, in a form that can be compared.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Rng;

/// Every time set on purpose lies before this; what comes after is "now" and differs between the systems.
pub const NOW_BEGINS: i64 = 1_500_000_000;

/// Two lowers with something of everything: directories on one or both sides, files, holes, hard links, symlinks,
/// xattrs, odd modes and owners, whiteouts and opaque directories in the upper one of the two.
pub fn populate(one: &Path, two: &Path, rng: &mut Rng) {
    for (index, root) in [one, two].into_iter().enumerate() {
        fs::create_dir(root).unwrap();
        for dir in ["d0", "d1", "d0/d0", "d0/d1", "d1/d0", "d0/d0/d0"] {
            if rng.chance(65) {
                fs::create_dir_all(root.join(dir)).unwrap();
            }
        }
        let dirs = directories(root);
        for _ in 0..6 + rng.below(8) {
            let path = root
                .join(rng.pick(&dirs))
                .join(rng.pick(&["f0", "f1", "f2", "f3"]));
            if fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            match rng.below(10) {
                0 => symlink(rng.pick(&["f0", "d0/f1", "none"]), &path).unwrap(),
                1 => {
                    let file = fs::File::create(&path).unwrap();
                    file.set_len(300_000).unwrap();
                    std::os::unix::fs::FileExt::write_all_at(&file, b"island", 200_000).unwrap();
                }
                // Only in the top lower: elsewhere a name may be hidden, and both overlays count it all the same.
                2 | 3 if index == 1 => {
                    fs::write(&path, format!("linked {index} {}", rng.draw())).unwrap();
                    let other = root
                        .join(rng.pick(&dirs))
                        .join(rng.pick(&["f0", "f1", "f2", "f3", "f4"]));
                    let _ = fs::hard_link(&path, other);
                }
                _ => fs::write(
                    &path,
                    format!("{} of layer {index} {}", path.display(), rng.draw()),
                )
                .unwrap(),
            }
            if rng.chance(20) && !path.is_symlink() {
                rustix::fs::lsetxattr(
                    &path,
                    "user.mark",
                    b"lower",
                    rustix::fs::XattrFlags::empty(),
                )
                .unwrap();
                std::os::unix::fs::chown(&path, Some(1000), Some(1001)).unwrap();
            }
        }
        if index == 1 {
            for dir in &directories(root) {
                if rng.chance(12) && !dir.as_os_str().is_empty() {
                    let dir = root.join(dir);
                    rustix::fs::setxattr(
                        &dir,
                        "trusted.overlay.opaque",
                        b"y",
                        rustix::fs::XattrFlags::empty(),
                    )
                    .unwrap();
                }
            }
            let wh = root.join(rng.pick(&["f3", "d1", "f2"]));
            let kind = rustix::fs::FileType::CharacterDevice;
            if rng.chance(40) && fs::symlink_metadata(&wh).is_err() {
                rustix::fs::mknodat(rustix::fs::CWD, &wh, kind, rustix::fs::Mode::empty(), 0)
                    .unwrap();
            }
        }
        age(root, rng);
    }
}

/// Gives everything below `root` times of long ago, with fractions, some before 1970.
fn age(root: &Path, rng: &mut Rng) {
    let mut paths = paths(root);
    paths.reverse();
    paths.push(PathBuf::new());
    for path in paths {
        let secs = *rng.pick(&[-5_000_000_i64, -1, 0, 1_000_000_000, 1_234_567_890]);
        let time = rustix::fs::Timespec {
            tv_sec: secs,
            tv_nsec: rng.below(1_000_000_000) as _,
        };
        let times = rustix::fs::Timestamps {
            last_access: time,
            last_modification: time,
        };
        let at = root.join(path);
        rustix::fs::utimensat(
            rustix::fs::CWD,
            at,
            &times,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    }
}

/// All directories below `root`, as relative paths; the root itself is "".
pub fn directories(root: &Path) -> Vec<PathBuf> {
    let mut out = vec![PathBuf::new()];
    out.extend(
        paths(root)
            .into_iter()
            .filter(|p| fs::symlink_metadata(root.join(p)).is_ok_and(|m| m.is_dir())),
    );
    out
}

/// All paths below `root`, relative, parents first, sorted.
pub fn paths(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let Ok(list) = fs::read_dir(root.join(&dir)) else {
            continue;
        };
        for entry in list {
            let entry = entry.unwrap_or_else(|e| panic!("{}: {e}", root.join(&dir).display()));
            let path = dir.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            out.push(path);
        }
    }
    out.sort();
    out
}

/// The merged content of both lowers, copied into a plain directory.
pub fn clone_merged(base: &Path, to: &Path) {
    let merged = base.join("merged");
    fs::create_dir(&merged).unwrap();
    let options = format!("lowerdir={0}/lower2:{0}/lower1", base.display());
    let sh = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    sh(Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(&merged));
    let copied = Command::new("cp")
        .args(["-a", "--sparse=always"])
        .arg(merged.join("."))
        .arg(to)
        .status();
    sh(Command::new("umount").arg(&merged));
    assert!(copied.unwrap().success());
}

/// Directories that are young in one tree become young in the other.
pub fn take_over_times(from: &Path, to: &Path) {
    let mut all = vec![PathBuf::new()];
    all.extend(paths(from));
    for path in all {
        let young = |root: &Path| {
            let meta = fs::symlink_metadata(root.join(&path)).ok()?;
            meta.is_dir().then(|| meta.mtime() >= NOW_BEGINS)
        };
        if young(from) == Some(true) && young(to) == Some(false) {
            let dir = fs::File::open(to.join(&path)).unwrap();
            dir.set_modified(std::time::SystemTime::now()).unwrap();
        }
    }
}

/// One object, as users see it. Times of the test's own making are compared, all later ones count as "now".
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    mode: u32,
    owner: (u32, u32),
    nlink: Option<u64>,
    size: Option<u64>,
    rdev: u64,
    mtime: Option<(i64, i64)>,
    target: Option<PathBuf>,
    xattrs: Vec<(OsString, Vec<u8>)>,
    /// A hash, for the reader's sake.
    content: Option<u64>,
    /// The first path of the same inode.
    same_as: Option<PathBuf>,
}

pub type Snapshot = BTreeMap<PathBuf, Seen>;

/// Everything below `root`. With `strict`, `d_ino` and `d_type` of each entry must agree with `stat` (the kernel's
/// overlayfs does not always manage that).
pub fn snapshot(root: &Path, strict: bool) -> Snapshot {
    let mut out = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut all = vec![PathBuf::new()];
    all.extend(paths(root));
    for path in all {
        let at = root.join(&path);
        let meta = fs::symlink_metadata(&at)
            .unwrap_or_else(|e| panic!("{} is listed, but: {e}", at.display()));
        let dir = meta.is_dir();
        let same_as = match (dir, first.get(&meta.ino())) {
            (false, Some(path)) => Some(PathBuf::clone(path)),
            _ => {
                let twin = first.insert(meta.ino(), path.clone());
                assert!(
                    twin.is_none() || path.as_os_str().is_empty(),
                    "{path:?} and {twin:?} share an inode number"
                );
                None
            }
        };
        if dir && strict {
            check_dirents(&at);
        }
        let mtime = (meta.mtime() < NOW_BEGINS).then(|| (meta.mtime(), meta.mtime_nsec()));
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            nlink: (!dir).then(|| meta.nlink()),
            size: (!dir).then(|| meta.size()),
            rdev: meta.rdev(),
            mtime,
            target: meta.is_symlink().then(|| fs::read_link(&at).unwrap()),
            xattrs: xattrs(&at),
            content: meta
                .is_file()
                .then(|| hash(&fs::read(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display())))),
            same_as,
        };
        out.insert(path, seen);
    }
    out
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn check_dirents(dir: &Path) {
    use std::os::unix::fs::DirEntryExt;
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        assert_eq!(
            entry.ino(),
            meta.ino(),
            "d_ino and st_ino of {}",
            entry.path().display()
        );
        assert_eq!(
            entry.file_type().unwrap(),
            meta.file_type(),
            "d_type of {}",
            entry.path().display()
        );
    }
}

fn xattrs(path: &Path) -> Vec<(OsString, Vec<u8>)> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut out: Vec<_> = names[..len]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|name| {
            let name = std::ffi::OsStr::from_bytes(name);
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, name, &mut value).unwrap();
            value.truncate(len);
            (name.to_os_string(), value)
        })
        // The kernel's overlayfs shows what belongs to the other privilege's overlays.
        .filter(|(name, _)| !name.as_bytes().starts_with(b"user.overlay."))
        .collect();
    out.sort();
    out
}

pub fn assert_same(got: &Snapshot, want: &Snapshot, when: &str) {
    for (path, seen) in want {
        match got.get(path) {
            None => panic!("{when}: {path:?} is missing: {seen:?}"),
            Some(other) if other != seen => {
                panic!("{when}: {path:?}\n is     {other:?}\n should {seen:?}")
            }
            Some(_) => {}
        }
    }
    if let Some((path, seen)) = got.iter().find(|(path, _)| !want.contains_key(*path)) {
        panic!("{when}: {path:?} should not be there: {seen:?}");
    }
}

/// Inode numbers by path.
pub fn inodes(root: &Path) -> BTreeMap<PathBuf, u64> {
    paths(root)
        .into_iter()
        .map(|p| {
            (
                p.clone(),
                fs::symlink_metadata(root.join(&p)).unwrap().ino(),
            )
        })
        .collect()
}

pub fn same_inodes(before: &BTreeMap<PathBuf, u64>, after: &BTreeMap<PathBuf, u64>) {
    for (path, ino) in before {
        assert_eq!(
            after.get(path),
            Some(ino),
            "the inode number of {path:?} changed with the remount"
        );
    }
}
