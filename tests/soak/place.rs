//! One mount with its loads: it is made, worked in, checked, and goes, in one of several ways, again and again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::Sandbox;
use crate::{GONE, Load, Outcome, Rng, at, compile, files, git, packages, run, sqlite};

pub struct Place {
    pub name: &'static str,
    pub loads: Vec<Box<dyn Load>>,
    lower: String,
    kernel: bool,
    rng: Rng,
    pub tally: Tally,
    said: Instant,
}

/// What was done.
#[derive(Default)]
pub struct Tally {
    pub work: u64,
    pub mounts: u64,
    kills_at_rest: u64,
    kills_at_work: u64,
    checks: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.work += other.work;
        self.mounts += other.mounts;
        self.kills_at_rest += other.kills_at_rest;
        self.kills_at_work += other.kills_at_work;
        self.checks += other.checks;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} pieces of work, {} mounts, {} daemons killed at rest and {} at work, {} checks",
            self.work, self.mounts, self.kills_at_rest, self.kills_at_work, self.checks
        )
    }
}

/// How a round ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Unmount,
    KillAtRest,
    KillAtWork,
}

/// Sleeps, but not on when it is over.
pub fn nap(long: Duration, stop: &AtomicBool) {
    let end = Instant::now() + long;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Place {
    /// The mounts of the soak: every kind of lower, each with our merge and with the kernel's.
    pub fn all(sandbox: &Sandbox, rng: &mut Rng) -> Vec<Self> {
        let mut place = |name, lower: &str, kernel, loads| Self {
            name,
            loads,
            lower: lower.to_owned(),
            kernel,
            rng: Rng(rng.draw()),
            tally: Tally::default(),
            said: Instant::now(),
        };
        let files = |seed| Box::new(files::Files::new(seed)) as Box<dyn Load>;
        let mut places = vec![
            place("directory", "lower-directory", false, {
                let compile = Box::new(compile::Compile::new(3));
                let sqlite = Box::new(sqlite::Sqlite::new(4));
                vec![files(1), Box::new(git::Git::new(2)), compile, sqlite]
            }),
            place("image", "soak:image", false, {
                vec![files(5), Box::new(git::Git::new(6)), files(7)]
            }),
            place("kernel", "soak:kernel", true, {
                let sqlite = Box::new(sqlite::Sqlite::new(10));
                vec![files(8), Box::new(compile::Compile::new(9)), sqlite]
            }),
            place("kernel-dir", "lower-kernel-dir", true, {
                vec![files(11), Box::new(git::Git::new(12))]
            }),
        ];
        for place in &mut places {
            let lower = sandbox.mkdir(&format!("lower-{}", place.name));
            for (n, load) in place.loads.iter_mut().enumerate() {
                let dir = lower.join(format!("{n}-{}", load.name()));
                std::fs::create_dir(&dir).expect("a directory");
                let prepared = load.prepare(&dir).and_then(|()| load.check(&dir));
                prepared.unwrap_or_else(|words| panic!("{}: {words}", load.name()));
            }
            if place.lower.starts_with("soak:") {
                let source = format!("dir:{}", lower.display());
                sandbox.run(["import", &source, "--tag", &place.lower, "--quiet"]);
            }
        }
        // The loads of this one begin with what is in the image, and an empty upper.
        places.push(place("debian", "localhost/five:1", false, {
            let sqlite = Box::new(sqlite::Sqlite::new(14));
            vec![Box::new(packages::Packages::new(13)), sqlite, files(15)]
        }));
        places
    }

    fn mount_point(&self, sandbox: &Sandbox) -> PathBuf {
        sandbox.path(format!("mnt-{}", self.name))
    }

    fn mount(&mut self, sandbox: &Sandbox) -> Outcome {
        let mut words = vec!["mount".to_owned()];
        if self.kernel {
            words.extend(["--merge".to_owned(), "kernel".to_owned()]);
        }
        sandbox.mkdir(&format!("mnt-{}", self.name));
        words.extend([
            self.lower.clone(),
            format!("upper-{}", self.name),
            format!("mnt-{}", self.name),
        ]);
        self.tally.mounts += 1;
        self.ovl(sandbox, &words).map(|_| ())
    }

    fn ovl(&self, sandbox: &Sandbox, words: &[String]) -> Outcome<String> {
        let output = at("ovl", sandbox.ovl(words).output())?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("ovl {}: {} {said}", words.join(" "), output.status))
    }

    /// The daemon's pid; `None`: the kernel alone serves the mount.
    fn daemon(&self, sandbox: &Sandbox) -> Outcome<Option<i32>> {
        let words = ["mounts", "--format", "json"].map(str::to_owned);
        let text = self.ovl(sandbox, &words)?;
        let mounts: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| format!("{e} in {text}"))?;
        let mine = self.mount_point(sandbox);
        let mine = (mounts.as_array().into_iter().flatten())
            .find(|mount| mount["MountPoint"].as_str().map(Path::new) == Some(&mine))
            .ok_or_else(|| format!("{} is not in {text}", mine.display()))?;
        Ok(mine["Pid"]
            .as_i64()
            .filter(|pid| *pid > 1)
            .map(|pid| pid as i32))
    }

    fn kill(&self, sandbox: &Sandbox) -> Outcome<bool> {
        let Some(pid) = self.daemon(sandbox)? else {
            return Ok(false);
        };
        let process = rustix::process::Pid::from_raw(pid).ok_or("no pid")?;
        rustix::process::kill_process(process, rustix::process::Signal::KILL)
            .map_err(|e| format!("kill {pid}: {e}"))?;
        Ok(true)
    }

    /// After a kill: the mount goes, whoever still has something open in it.
    fn detach(&self, sandbox: &Sandbox) -> Outcome {
        run(Command::new("umount")
            .arg("-l")
            .arg(self.mount_point(sandbox)))
        .map(|_| ())
    }

    fn unmount(&self, sandbox: &Sandbox) -> Outcome {
        let words = ["umount".to_owned(), format!("mnt-{}", self.name)];
        self.ovl(sandbox, &words).map(|_| ())
    }

    fn each(
        &mut self,
        sandbox: &Sandbox,
        mut act: impl FnMut(&mut dyn Load, &Path) -> Outcome,
    ) -> Outcome {
        let mount = self.mount_point(sandbox);
        for (n, load) in self.loads.iter_mut().enumerate() {
            let dir = mount.join(format!("{n}-{}", load.name()));
            act(load.as_mut(), &dir).map_err(|words| format!("{}: {words}", load.name()))?;
        }
        Ok(())
    }

    fn check(&mut self, sandbox: &Sandbox) -> Outcome {
        self.tally.checks += self.loads.len() as u64;
        self.each(sandbox, |load, dir| load.check(dir))
    }

    /// Until `over`, or until somebody failed. In the end everything is looked at once more from a fresh mount.
    pub fn soak(&mut self, sandbox: &Sandbox, over: Instant, stop: &AtomicBool) -> Outcome {
        let soaked = self.rounds(sandbox, over, stop);
        if soaked.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        soaked
    }

    fn rounds(&mut self, sandbox: &Sandbox, over: Instant, stop: &AtomicBool) -> Outcome {
        self.mount(sandbox)?;
        self.each(sandbox, |load, dir| {
            if dir.exists() {
                return Ok(());
            }
            at("mkdir", std::fs::create_dir(dir))?;
            load.prepare(dir)
        })?;
        for round in 0.. {
            self.check(sandbox)
                .map_err(|w| format!("round {round}, at its beginning: {w}"))?;
            let long = Duration::from_millis(1500 + self.rng.below(6000) as u64);
            let left = over.saturating_duration_since(Instant::now());
            let end =
                [End::Unmount, End::KillAtRest, End::KillAtWork][(round + self.rng.below(2)) % 3];
            self.round(sandbox, long.min(left), end, stop)
                .map_err(|words| format!("round {round}: {words}"))?;
            if self.said.elapsed() > Duration::from_secs(20) {
                eprintln!("soak: {:12} {}", self.name, self.tally);
                self.said = Instant::now();
            }
            if Instant::now() >= over || stop.load(Ordering::Relaxed) {
                break;
            }
        }
        self.check(sandbox)
            .map_err(|w| format!("at the end: {w}"))?;
        self.unmount(sandbox)
    }

    /// Works for a while, and brings the mount to an end and back.
    fn round(&mut self, sandbox: &Sandbox, long: Duration, end: End, stop: &AtomicBool) -> Outcome {
        let mount = self.mount_point(sandbox);
        let rest = AtomicBool::new(false);
        let gone = Arc::new(AtomicBool::new(false));
        let daemon = self.daemon(sandbox)?;
        let killing = end == End::KillAtWork && daemon.is_some();
        let mut loads = std::mem::take(&mut self.loads);
        let this = &*self;
        let (work, failed) = std::thread::scope(|scope| {
            let workers: Vec<_> = (loads.iter_mut().enumerate())
                .map(|(n, load)| {
                    let dir = mount.join(format!("{n}-{}", load.name()));
                    let rest = &rest;
                    let gone = Arc::clone(&gone);
                    scope.spawn(move || {
                        GONE.set(gone);
                        let mut done = 0;
                        while !rest.load(Ordering::Relaxed) {
                            if let Err(words) = load.work(&dir) {
                                return (done, Err(format!("{}: {words}", load.name())));
                            }
                            done += 1;
                        }
                        (done, Ok(()))
                    })
                })
                .collect();
            nap(long, stop);
            let killed = if killing {
                this.kill(sandbox).map(|_| ())
            } else {
                Ok(())
            };
            gone.store(killing, Ordering::Relaxed);
            if killing {
                // They notice, or find nothing to notice.
                nap(Duration::from_millis(300), stop);
            }
            rest.store(true, Ordering::Relaxed);
            let mut failed = killed;
            let mut work = 0;
            for worker in workers {
                let (done, outcome) = worker.join().map_err(|_| "a load panicked")?;
                work += done;
                if !killing && failed.is_ok() {
                    failed = outcome;
                }
            }
            Ok::<_, &str>((work, failed))
        })?;
        self.loads = loads;
        self.tally.work += work;
        failed?;
        if killing {
            self.tally.kills_at_work += 1;
            self.detach(sandbox)?;
            self.mount(sandbox)?;
            return self
                .each(sandbox, |load, dir| load.recover(dir))
                .map_err(|words| format!("after the daemon was killed: {words}"));
        }
        if end == End::KillAtRest && daemon.is_some() {
            self.check(sandbox)?;
            let root = at("the mount", std::fs::File::open(&mount))?;
            rustix::fs::syncfs(&root).map_err(|e| format!("syncfs: {e}"))?;
            drop(root);
            self.loads.iter_mut().for_each(|load| load.synced());
            self.kill(sandbox)?;
            self.tally.kills_at_rest += 1;
            self.detach(sandbox)?;
        } else {
            self.unmount(sandbox)?;
            self.loads.iter_mut().for_each(|load| load.synced());
        }
        self.mount(sandbox)
    }
}
