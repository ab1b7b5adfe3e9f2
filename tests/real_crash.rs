//! `kill -9` of the daemon in the middle of work, a lazy unmount, and a new mount of the same upper.
//!
//! While git commits and clones, dpkg unpacks, and threads write, rename, remove and copy up, the daemon is killed at a
//! random point; several times over the same upper. Each worker keeps a record of what it was told had succeeded, and the
//! next mount must agree: what returned is there, what was synced has its bytes, a copied-up file is the old one or the
//! changed one and never half of it, no file has bytes nobody wrote, nothing else changed, and the tools carry on.

mod common;
mod real_support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::daemon_of;
use common::{Sandbox, command, images, require_mounting};
use real_support::{Tree, chroot, look_at_all, sha256};

const ROUNDS: u32 = 6;

/// A generator that needs no seed file: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Bytes that tell which file and place they belong to; never 0.
fn pattern(file: u64, length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|at| (Random(file << 32 | at >> 3).next() >> (at & 7)) as u8 | 1)
        .collect()
}

/// What the writer was told of its files, which it makes below `srv/files`.
#[derive(Default)]
struct Written {
    /// Files that were made, by number: length written, and whether fsync returned.
    files: BTreeMap<u64, (usize, bool)>,
    /// Begun but not heard of since.
    begun: BTreeMap<u64, usize>,
    /// Removals that returned.
    removed: Vec<u64>,
    removing: Option<u64>,
    /// Last version of `srv/current`, replaced by rename, that is known to be there.
    current: u64,
}

impl Written {
    /// Writes, syncs, removes, renames until something fails, which is the daemon's end.
    fn work(&mut self, mnt: &Path, random: &mut Random, next: &mut u64) -> std::io::Result<()> {
        let dir = mnt.join("srv/files");
        loop {
            *next += 1;
            let number = *next;
            let length = random.below(if number.is_multiple_of(20) {
                3_000_000
            } else {
                30_000
            }) as usize;
            self.begun.insert(number, length);
            let mut file = File::create_new(dir.join(number.to_string()))?;
            file.write_all(&pattern(number, length))?;
            let synced = number.is_multiple_of(3);
            if synced {
                file.sync_all()?;
            }
            drop(file);
            self.begun.remove(&number);
            self.files.insert(number, (length, synced));
            match random.below(4) {
                0 => {
                    let (&old, _) = self.files.iter().next().unwrap();
                    self.removing = Some(old);
                    fs::remove_file(dir.join(old.to_string()))?;
                    self.removing = None;
                    self.files.remove(&old);
                    self.removed.push(old);
                }
                1 => {
                    let mut file = File::create(mnt.join("srv/next"))?;
                    file.write_all(&pattern(number, 5000))?;
                    file.sync_all()?;
                    fs::rename(mnt.join("srv/next"), mnt.join("srv/current"))?;
                    self.current = number;
                }
                _ => {}
            }
        }
    }

    fn check(&mut self, mnt: &Path, last: u64) {
        let dir = mnt.join("srv/files");
        for (&number, &(length, synced)) in &self.files {
            let path = dir.join(number.to_string());
            if self.removing == Some(number) && !path.exists() {
                continue;
            }
            let bytes =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let wanted = pattern(number, length);
            if synced {
                assert!(
                    bytes == wanted,
                    "{} was synced: {} of {length} bytes",
                    path.display(),
                    bytes.len()
                );
            } else {
                assert_written(&path, &bytes, &wanted);
            }
        }
        for (&number, &length) in &self.begun {
            let path = dir.join(number.to_string());
            if let Ok(bytes) = fs::read(&path) {
                assert_written(&path, &bytes, &pattern(number, length));
                fs::remove_file(&path).unwrap();
            }
        }
        for number in &self.removed {
            assert!(
                !dir.join(number.to_string()).exists(),
                "file {number} was removed and is back"
            );
        }
        let known = self.files.len()
            - usize::from(
                self.removing
                    .is_some_and(|n| !dir.join(n.to_string()).exists()),
            );
        assert_eq!(fs::read_dir(&dir).unwrap().count(), known);
        if let Some(number) = self.removing.take() {
            let _ = fs::remove_file(dir.join(number.to_string()));
            self.files.remove(&number);
        }
        self.begun.clear();
        if self.current > 0 {
            let bytes = fs::read(mnt.join("srv/current")).unwrap();
            let version = (self.current..=last).find(|version| bytes == pattern(*version, 5000));
            assert!(
                version.is_some(),
                "srv/current is no version from {} on",
                self.current
            );
        }
    }
}

/// Bytes that were written and not synced may be missing, at the end or as whole blocks of zeros, but are never others.
fn assert_written(path: &Path, bytes: &[u8], wanted: &[u8]) {
    assert!(
        bytes.len() <= wanted.len(),
        "{}: {} bytes of {}",
        path.display(),
        bytes.len(),
        wanted.len()
    );
    for (at, (got, wanted)) in bytes.chunks(4096).zip(wanted.chunks(4096)).enumerate() {
        let zeros = got.iter().all(|byte| *byte == 0);
        assert!(
            zeros || *got == wanted[..got.len()],
            "{}: block {at} was never written so",
            path.display()
        );
    }
}

/// A file of the image before its change.
struct Before {
    path: PathBuf,
    change: Change,
    mode: u32,
    first: Vec<u8>,
    /// SHA-256 of what comes after the first four bytes.
    rest: String,
    length: u64,
    /// The change returned; and was synced.
    done: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Append,
    Overwrite,
    Mode,
}

const MARK: &[u8; 4] = b"ovl!";

impl Before {
    fn new(mnt: &Path, path: &Path, change: Change) -> std::io::Result<Self> {
        let mut file = File::open(mnt.join(path))?;
        let meta = file.metadata()?;
        let mut first = vec![0; 4];
        file.read_exact(&mut first)?;
        let rest = sha256(file)?;
        Ok(Self {
            path: path.to_owned(),
            change,
            mode: meta.mode(),
            first,
            rest,
            length: meta.len(),
            done: false,
        })
    }

    fn change(&mut self, mnt: &Path) -> std::io::Result<()> {
        let path = mnt.join(&self.path);
        match self.change {
            Change::Mode => {
                fs::set_permissions(&path, Permissions::from_mode(self.mode & 0o7777 ^ 0o020))?
            }
            Change::Append => {
                let file = OpenOptions::new().append(true).open(&path)?;
                (&file).write_all(MARK)?;
                file.sync_all()?;
            }
            Change::Overwrite => {
                let file = OpenOptions::new().write(true).open(&path)?;
                file.write_all_at(MARK, 0)?;
                file.sync_all()?;
            }
        }
        self.done = true;
        Ok(())
    }

    fn check(&self, mnt: &Path) {
        let path = mnt.join(&self.path);
        let mut file =
            File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let meta = file.metadata().unwrap();
        let what = format!(
            "{} after {:?} (done: {})",
            path.display(),
            self.change,
            self.done
        );
        let changed_mode = self.change == Change::Mode && meta.mode() == self.mode ^ 0o020;
        assert!(
            meta.mode() == self.mode || changed_mode,
            "{what}: mode {:o}, was {:o}",
            meta.mode(),
            self.mode
        );
        let mut first = vec![0; 4];
        file.read_exact(&mut first)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let overwritten = self.change == Change::Overwrite && first == MARK;
        assert!(
            first == self.first || overwritten,
            "{what}: begins {first:?}"
        );
        let mut rest = vec![0; self.length as usize - 4];
        file.read_exact(&mut rest)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(sha256(&rest[..]).unwrap(), self.rest, "{what}: other bytes");
        let mut tail = Vec::new();
        file.read_to_end(&mut tail).unwrap();
        // (The size is moved before the bytes arrive.)
        let appended = self.change == Change::Append
            && (tail == MARK || !self.done && tail.iter().all(|byte| *byte == 0));
        assert!(tail.is_empty() || appended, "{what}: ends {tail:?}");
        if self.done {
            assert!(
                changed_mode || overwritten || tail == MARK,
                "{what}: the change is gone"
            );
        }
    }
}

/// A script in the chroot, its stdout read as it comes.
struct Script {
    child: Child,
    lines: std::thread::JoinHandle<Vec<String>>,
}

impl Script {
    fn start(mnt: &Path, script: &str) -> Self {
        let mut child = Command::new("chroot")
            .arg(mnt)
            .args(["/bin/sh", "-euc", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("chroot runs");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = std::thread::spawn(move || stdout.lines().map_while(Result::ok).collect());
        Self { child, lines }
    }

    /// Ends it, if its root's end did not; what it said.
    fn end(mut self) -> Vec<String> {
        let group = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        self.child.wait().unwrap();
        self.lines.join().unwrap()
    }
}

const PREPARE: &str = "
    git config --global user.name Nobody
    git config --global user.email nobody@example.org
    git config --global core.fsync all
    git config --global gc.auto 0
    mkdir /srv/files
    git init -q -b main /srv/repo
    git -C /srv/repo commit -q --allow-empty -m zero
    git init -q -b main /srv/source
    cd /srv/source
    cp -r /usr/share/perl5 .
    git add .
    git commit -q -m all
    mkdir -p /build/pkg/DEBIAN /build/pkg/usr/lib/ovl-test
    cd /build/pkg
    printf 'Package: ovl-test\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: Nobody <nobody@example.org>\\nDescription: test\\n' > DEBIAN/control
    for i in $(seq 100); do seq $i $((i * 3)) > usr/lib/ovl-test/$i; done
    dpkg-deb --root-owner-group --build /build/pkg /build/ovl-test.deb
";

const COMMIT: &str = "
    cd /srv/repo
    while :; do
        for i in 1 2 3 4 5; do date +%N%s > file$i; done
        git add -A && git commit -q -m next && git rev-parse HEAD
    done
";
const CLONE: &str = "while :; do rm -rf /srv/clone && git clone -q --no-local /srv/source /srv/clone && echo cloned; done";
const INSTALL: &str = "while :; do dpkg -i /build/ovl-test.deb > /dev/null && echo in && dpkg -P ovl-test > /dev/null && echo out; done";

/// What must work again after a crash, with the last commit that was told as `$1`.
const CARRY_ON: &str = "
    rm -f /srv/repo/.git/*.lock /srv/repo/.git/refs/heads/*.lock
    git -C /srv/repo fsck --full --strict 2>&1
    [ -z \"$LAST\" ] || git -C /srv/repo merge-base --is-ancestor \"$LAST\" HEAD
    git -C /srv/repo reset -q --hard
    git -C /srv/repo commit -q --allow-empty -m 'after the crash'
    git -C /srv/source fsck --full --strict 2>&1
    [ -z \"$(git -C /srv/source status --porcelain)\" ]
    rm -rf /srv/clone
    # A package that was just being unpacked is to be installed anew, says dpkg.
    dpkg --configure -a || dpkg --audit | grep -q ovl-test
    dpkg -i /build/ovl-test.deb
    dpkg --verify ovl-test
    [ -z \"$(dpkg --audit)\" ]
    cmp /build/pkg/usr/lib/ovl-test/100 /usr/lib/ovl-test/100
    dpkg -P ovl-test
    [ ! -e /usr/lib/ovl-test ]
";

/// Regular files of the image that the scripts do not need.
fn files_to_change(pristine: &Tree) -> Vec<PathBuf> {
    let dirs = [
        "usr/lib/gcc",
        "usr/libexec/gcc",
        "usr/lib/python3",
        "opt/app/pkg",
    ];
    let in_dirs = |path: &PathBuf| dirs.iter().any(|dir| path.starts_with(dir));
    let files = pristine
        .iter()
        .filter(|(path, facts)| in_dirs(path) && facts.size > Some(8) && facts.mode >> 12 == 0o10);
    files.map(|(path, _)| path.clone()).collect()
}

#[test]
fn a_killed_daemon_leaves_a_consistent_tree() {
    require_mounting();
    let sandbox = Sandbox::new();
    sandbox.run([
        "import".as_ref(),
        images("five").join("v1.docker.tar").as_os_str(),
        "--quiet".as_ref(),
    ]);
    let mnt = sandbox.mkdir("mnt");
    let seed = std::env::var("OVL_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed: u64 =
        seed.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("to run this again: OVL_SEED={seed}");
    let mut random = Random(seed);

    sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
    let pristine = look_at_all(&mnt);
    let mut candidates = files_to_change(&pristine);
    assert!(candidates.len() > 500, "{}", candidates.len());
    chroot(&mnt, PREPARE);
    let mut written = Written::default();
    let (mut next, mut changed, mut last_commit) = (0, Vec::<Before>::new(), String::new());
    let mut work_done = [0; 3];
    let mut half_installed = 0;
    for round in 0..ROUNDS {
        let daemon = daemon_of(&sandbox);
        let stop = AtomicBool::new(false);
        let delay = Duration::from_millis(200 + random.below(2000));
        let scripts = [COMMIT, CLONE, INSTALL].map(|script| Script::start(&mnt, script));
        let (mut of_writer, mut of_changer) = (Random(random.next()), Random(random.next()));
        std::thread::scope(|scope| {
            scope.spawn(|| written.work(&mnt, &mut of_writer, &mut next).unwrap_err());
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && !candidates.is_empty() {
                    let path =
                        candidates.swap_remove(of_changer.below(candidates.len() as u64) as usize);
                    let change = [Change::Append, Change::Overwrite, Change::Mode]
                        [of_changer.below(3) as usize];
                    let Ok(before) = Before::new(&mnt, &path, change) else {
                        break;
                    };
                    changed.push(before);
                    if changed.last_mut().unwrap().change(&mnt).is_err() {
                        break;
                    }
                }
            });
            std::thread::sleep(delay);
            let pid = rustix::process::Pid::from_raw(daemon as i32).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        let [commits, clones, installs] = scripts.map(Script::end);
        for (sum, lines) in work_done.iter_mut().zip([&commits, &clones, &installs]) {
            *sum += lines.len();
        }
        if let Some(commit) = commits.last() {
            last_commit = commit.clone();
        }
        command("umount", ["-l".as_ref(), mnt.as_os_str()]);
        let start = Instant::now();
        sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
        println!(
            "round {round}: killed after {delay:?}, {} changed, mounted in {:?}",
            changed.len(),
            start.elapsed()
        );

        let left: Vec<_> = fs::read_dir(sandbox.path(".upper.ovl-work/work"))
            .unwrap()
            .collect();
        assert!(left.is_empty(), "of the crash: {left:?}");
        let now = look_at_all(&mnt);
        half_installed += usize::from(now.contains_key(Path::new("usr/lib/ovl-test")));
        unchanged(&sandbox, &pristine, &now, &changed);
        changed.iter().for_each(|before| before.check(&mnt));
        written.check(&mnt, next);
        chroot(&mnt, &CARRY_ON.replace("$LAST", &last_commit));
    }
    let [commits, clones, installs] = work_done;
    println!(
        "{commits} commits, {clones} clones, {installs} installations and removals; {half_installed} were cut short"
    );
    assert!(
        commits > 0 && clones > 0 && installs + half_installed > 0 && changed.len() > 20,
        "not enough happened"
    );
    sandbox.run(["umount", "mnt"]);
}

/// What `ovl diff` does not tell of is as it was.
fn unchanged(sandbox: &Sandbox, pristine: &Tree, now: &Tree, changed: &[Before]) {
    let difference = sandbox.run(["diff", "mnt"]);
    let difference: std::collections::HashSet<&Path> = difference
        .lines()
        .map(|line| Path::new(line[2..].trim_start_matches('/')))
        .collect();
    for path in now
        .keys()
        .chain(pristine.keys())
        .filter(|path| !difference.contains(path.as_path()))
    {
        if !path.as_os_str().is_empty() {
            assert_eq!(now.get(path), pristine.get(path), "{}", path.display());
        }
    }
    for before in changed.iter().filter(|before| before.done) {
        assert!(
            difference.contains(before.path.as_path()),
            "{} is not in the difference",
            before.path.display()
        );
    }
}
