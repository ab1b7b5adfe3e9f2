//! The soak: what people do all day (git, a compiler and make, dpkg and apt in a chroot, SQLite, and a load of files of our
//! own), all at once on several mounts: over a directory and over stored images, with our own merge and with the kernel's.
//! Meanwhile mounts come and go, daemons are killed (`kill -9`, only those of this test, by pid), the kernel's caches are
//! dropped, and images are imported, removed and collected in the store beside them. Each load keeps books of its own of what
//! must be there; after every round, and at the end from a fresh mount, all of it is compared byte by byte.
//!
//! `OVL_SOAK_SECONDS` sets how long (`make soak TIME=...`), `OVL_SOAK_SEED` which choices are made.

#[path = "../common/mod.rs"]
mod common;
mod compile;
mod files;
mod git;
mod packages;
mod place;
mod sqlite;

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Sandbox, images, require_mounting};
use place::{Place, Tally};
use rustix::process::{Pid, Signal};

const SECONDS: u64 = 15;
/// Set in the process that has a mount namespace of its own.
const INSIDE: &str = "OVL_SOAK_INSIDE";

/// What went wrong, in words; while a daemon is being killed nothing to wonder at.
pub type Outcome<T = ()> = Result<T, String>;

/// Something that works in a directory and knows what must be in it.
pub trait Load: Send + Sync {
    fn name(&self) -> &'static str;
    /// Makes what is in the lower from the beginning; `dir` is there and empty.
    fn prepare(&mut self, dir: &Path) -> Outcome;
    /// A piece of work.
    fn work(&mut self, dir: &Path) -> Outcome;
    /// All that is there must be what is known to be there.
    fn check(&mut self, dir: &Path) -> Outcome;
    /// The file system went away at any point of the work and is back: what was done for good must be there, what was under
    /// way may be. Afterwards all is known again.
    fn recover(&mut self, dir: &Path) -> Outcome;
    /// The work stopped and everything was written to disk.
    fn synced(&mut self) {}
}

/// splitmix64
pub struct Rng(pub u64);

impl Rng {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.draw().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}

/// An error of the operating system, with what it was about.
pub fn at<T>(what: &str, result: std::io::Result<T>) -> Outcome<T> {
    result.map_err(|e| format!("{what}: {e}"))
}

thread_local! {
    /// Set when the daemon under this thread's load was killed.
    pub static GONE: RefCell<Arc<AtomicBool>> = RefCell::default();
}

/// Runs a program; what it printed. Once its file system is gone it has a moment to notice: some never do, as git 2.39, which
/// goes on reading a directory for ever that only gives errors.
pub fn run(command: &mut Command) -> Outcome<String> {
    let gone = GONE.with_borrow(Arc::clone);
    let said = at("a temporary file", tempfile::tempfile())?;
    let words = at("a temporary file", tempfile::tempfile())?;
    let copy = |file: &File| at("a temporary file", file.try_clone());
    command
        .stdin(Stdio::null())
        .stdout(copy(&said)?)
        .stderr(copy(&words)?)
        .process_group(0);
    let mut child = at(&format!("{command:?}"), command.spawn())?;
    let mut patience = 200;
    let status = loop {
        if let Some(status) = at("wait", child.try_wait())? {
            break status;
        }
        if gone.load(Ordering::Relaxed) {
            patience -= 1;
            if patience == 0 {
                let group = Pid::from_child(&child);
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |mut file: File| -> std::io::Result<String> {
        let mut text = Vec::new();
        file.rewind()?;
        file.take(100_000).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let said = at("what was printed", read(said))?;
    if status.success() {
        return Ok(said);
    }
    let words = at("what was said", read(words))?;
    Err(format!("{command:?}: {status}\n{said}{words}"))
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| {
        n.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {n}"))
    })
}

#[test]
fn soak() {
    require_mounting();
    if std::env::var_os(INSIDE).is_none() {
        // Whoever copies the common namespace would keep our mounts, and so their uppers, busy.
        let status: std::io::Result<ExitStatus> = Command::new("unshare")
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "soak", "--nocapture"])
            .env(INSIDE, "1")
            .status();
        assert!(status.expect("unshare").success(), "see above");
        return;
    }
    let seconds = setting("OVL_SOAK_SECONDS", SECONDS);
    let seed = setting("OVL_SOAK_SEED", 1);
    let debian = images("five").join("v1.docker.tar");
    let sandbox = Sandbox::new();
    sandbox.run(["import".as_ref(), debian.as_os_str(), "--quiet".as_ref()]);
    let mut places = Place::all(&sandbox, &mut Rng(seed));
    eprintln!(
        "soak: {seconds} s, seed {seed}, {} mounts, {} loads",
        places.len(),
        places.iter().map(|place| place.loads.len()).sum::<usize>()
    );
    let started = Instant::now();
    let over = started + Duration::from_secs(seconds);
    let stop = AtomicBool::new(false);
    let collected = std::thread::scope(|scope| {
        let beside = scope.spawn(|| beside(&sandbox, &stop));
        let threads: Vec<_> = places
            .iter_mut()
            .map(|place| scope.spawn(|| (place.soak(&sandbox, over, &stop), &*place)))
            .collect();
        let mut failures = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok((Ok(()), _)) => {}
                Ok((Err(words), place)) => failures.push(format!("{}: {words}", place.name)),
                Err(_) => failures.push("a thread panicked".to_owned()),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let collected = beside.join();
        assert!(failures.is_empty(), "seed {seed}: {}", failures.join("\n"));
        collected.expect("gc and the caches")
    });
    // What the places did not need of the store is gone, and what they need is whole.
    sandbox.run(["gc"]);
    sandbox.run(["fsck"]);
    eprintln!("soak: done in {} s", started.elapsed().as_secs());
    let mut all = Tally::default();
    for place in &places {
        eprintln!("  {:12} {}", place.name, place.tally);
        all.add(&place.tally);
    }
    eprintln!("  {:12} {all}; {collected}", "all");
    assert!(all.work > 0 && all.mounts >= 2 * places.len() as u64);
}

/// What goes on in the store and the kernel meanwhile.
fn beside(sandbox: &Sandbox, stop: &AtomicBool) -> String {
    let (mut collections, mut imports, mut drops) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        sandbox.run([
            "import".as_ref(),
            common::busybox().as_os_str(),
            "-q".as_ref(),
        ]);
        imports += 1;
        // 3: data, names and inodes.
        std::fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
        drops += 1;
        place::nap(Duration::from_secs(2), stop);
        sandbox.run(["rmi", "busybox:latest"]);
        sandbox.run(["gc"]);
        collections += 1;
        place::nap(Duration::from_secs(4), stop);
    }
    format!("{imports} imports, {collections} collections, caches dropped {drops} times")
}
