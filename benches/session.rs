//! A session on one of the compared systems: mounted, used by one row, taken down.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::arena::Arena;
use super::command::{command, run};
use super::daemon::{self, Daemon};
use super::systems::{Kind, OVL, System};

/// A lower tree, once as a directory and once in ovl's store.
#[derive(Clone, Debug)]
pub struct Lower {
    pub dir: PathBuf,
    /// Its name in the store.
    pub image: &'static str,
}

/// ovl with the arena's store.
pub fn ovl<'a>(arena: &Arena, words: impl IntoIterator<Item = &'a str>) -> Command {
    let mut ovl = command(OVL, ["--root"]);
    ovl.arg(store(arena)).args(words);
    // Live mounts of the benchmark are nobody else's business.
    ovl.env("OVL_RUN", arena.path().join("run"));
    ovl
}

pub fn store(arena: &Arena) -> PathBuf {
    arena.path().join("store")
}

/// What a stretch of work took.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub seconds: f64,
    /// Processor time of the daemon meanwhile; none where there is no daemon.
    pub daemon_cpu: Option<f64>,
}

/// One system, mounted with an empty upper.
pub struct Session<'a> {
    pub system: &'a System,
    pub arena: &'a Arena,
    lower: &'a Lower,
    /// Holds everything this session makes.
    home: PathBuf,
    mounted: bool,
    daemon: Option<Daemon>,
}

impl<'a> Session<'a> {
    pub fn open(system: &'a System, arena: &'a Arena, lower: &'a Lower) -> Result<Self> {
        let home = arena.path().join("session");
        for dir in ["upper", "work", "mnt"] {
            fs::create_dir_all(home.join(dir))?;
        }
        let mut session = Self {
            system,
            arena,
            lower,
            home,
            mounted: false,
            daemon: None,
        };
        session.mount()?;
        Ok(session)
    }

    fn mount(&mut self) -> Result<()> {
        let at = |name: &str| self.home.join(name);
        let (upper, work, mnt) = (at("upper"), at("work"), at("mnt"));
        let options = || {
            format!(
                "lowerdir={},upperdir={},workdir={}",
                self.lower.dir.display(),
                upper.display(),
                work.display()
            )
        };
        let program = match &self.system.kind {
            Kind::Plain => return Ok(()),
            Kind::KernelOverlay => {
                run(command("mount", ["-t", "overlay", "overlay", "-o", &options()]).arg(&mnt))?;
                self.mounted = true;
                return Ok(());
            }
            Kind::FuseOverlayfs(program) => {
                let mut program = command(program, ["-f", "-o", &options()]);
                program.arg(&mnt);
                program
            }
            Kind::Ovl { image, words, .. } => {
                let mut lower = std::ffi::OsString::from("dir:");
                match image {
                    true => lower = format!("image:{}", self.lower.image).into(),
                    false => lower.push(&self.lower.dir),
                }
                let mut program = ovl(self.arena, ["mount", "--foreground", "--workdir"]);
                program.arg(&work).args(*words);
                program.arg(lower).arg(&upper).arg(&mnt);
                program
            }
        };
        self.daemon = Some(Daemon::start(&program, &mnt, &at("log"))?);
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        match self.daemon.take() {
            Some(daemon) => daemon.stop(),
            None => daemon::unmount(&self.home.join("mnt")),
        }
    }

    /// Unmounts and mounts again: nothing is in anybody's memory that a mount starts without.
    pub fn remount(&mut self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// What is compared with others: its time must not be charged with this.
    pub fn is_base(&self) -> bool {
        matches!(self.system.kind, Kind::Plain)
    }

    /// A path of the lower tree, to read.
    pub fn lower(&self, path: &str) -> PathBuf {
        match self.is_base() {
            true => self.lower.dir.join(path),
            false => self.home.join("mnt").join(path),
        }
    }

    /// A directory of the lower tree that may be changed: on an overlay the lower one itself, seen through it, on the
    /// plain file system a copy.
    pub fn changeable(&self, path: &str) -> Result<PathBuf> {
        if !self.is_base() {
            return Ok(self.lower(path));
        }
        let copy = self.scratch()?.join("copy");
        run(command("cp", ["-a"]).arg(self.lower(path)).arg(&copy))?;
        self.arena.settle()?;
        Ok(copy)
    }

    /// A new directory to write in.
    pub fn scratch(&self) -> Result<PathBuf> {
        let dir = match self.is_base() {
            true => self.home.join("upper/scratch"),
            false => self.home.join("mnt/scratch"),
        };
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    pub fn daemon(&self) -> Option<&Daemon> {
        self.daemon.as_ref()
    }

    /// Takes the time of `work`, and of the daemon beside it.
    pub fn timed<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, Span)> {
        let cpu = || -> Result<Option<f64>> {
            Ok(self
                .daemon
                .as_ref()
                .map(Daemon::usage)
                .transpose()?
                .map(|u| u.cpu))
        };
        let before = cpu()?;
        let started = Instant::now();
        let result = work()?;
        let seconds = started.elapsed().as_secs_f64();
        let daemon_cpu = before.zip(cpu()?).map(|(before, after)| after - before);
        Ok((
            result,
            Span {
                seconds,
                daemon_cpu,
            },
        ))
    }

    /// Takes the mount down and removes what was written.
    pub fn close(mut self) -> Result<()> {
        self.unmount()?;
        Ok(fs::remove_dir_all(&self.home)?)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.mounted {
            drop(self.daemon.take());
            let _ =
                rustix::mount::unmount(self.home.join("mnt"), rustix::mount::UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}
