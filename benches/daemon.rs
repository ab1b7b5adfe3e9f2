//! A FUSE daemon run in the foreground as our child: started until its mount is there, watched, ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

const START: Duration = Duration::from_secs(20);
/// A single row on a single system that takes longer is taken for hung.
const HUNG: Duration = Duration::from_secs(600);

pub struct Daemon {
    child: Child,
    at: PathBuf,
    log: PathBuf,
    /// Dropped when the daemon is to end: lets the watcher go.
    watched: Option<mpsc::Sender<()>>,
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time, seconds; counted by the kernel in hundredths.
    pub cpu: f64,
    /// Resident now, bytes.
    pub resident: u64,
}

impl Daemon {
    /// Starts `program`, which is to mount something at `at`. The child dies with us.
    pub fn start(program: &Command, at: &Path, log: &Path) -> Result<Self> {
        let words = File::create(log)?;
        let child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(program.get_program())
            .args(program.get_args())
            .envs(
                program
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .stdin(Stdio::null())
            .stdout(words.try_clone()?)
            .stderr(words)
            .spawn()
            .with_context(|| format!("starting {program:?}"))?;
        let mut daemon = Self {
            child,
            at: at.to_owned(),
            log: log.to_owned(),
            watched: None,
        };
        let started = Instant::now();
        while !is_mounted(at)? {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("{program:?}: {status}: {}", daemon.words());
            }
            if started.elapsed() > START {
                bail!(
                    "{program:?} mounted nothing in {START:?}: {}",
                    daemon.words()
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        daemon.watch();
        Ok(daemon)
    }

    /// Kills the daemon when it is hung: the kernel then fails whatever waits for it.
    fn watch(&mut self) {
        let (sender, receiver) = mpsc::channel();
        let pid = Pid::from_child(&self.child);
        self.watched = Some(sender);
        thread::spawn(move || {
            if receiver.recv_timeout(HUNG) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
    }

    fn words(&self) -> String {
        fs::read_to_string(&self.log)
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    pub fn usage(&self) -> Result<Usage> {
        usage(self.child.id())
    }

    /// Whether it has a ring of io_uring(7) open.
    pub fn uses_ring(&self) -> Result<bool> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.child.id()))? {
            // One may be closed meanwhile.
            let target = fs::read_link(entry?.path()).unwrap_or_default();
            if target.as_os_str() == "anon_inode:[io_uring]" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Unmounts and waits for the daemon's end.
    pub fn stop(mut self) -> Result<()> {
        unmount(&self.at)?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            if asked.elapsed() > START {
                bail!("the daemon of {} outlives its mount", self.at.display());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.watched = None;
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = rustix::mount::unmount(&self.at, UnmountFlags::DETACH);
    }
}

/// Unmounts, waiting a moment for a file that is just being closed.
pub fn unmount(at: &Path) -> Result<()> {
    let mut tries = 100;
    loop {
        match rustix::mount::unmount(at, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) if tries > 0 => {
                tries -= 1;
                thread::sleep(Duration::from_millis(10));
            }
            result => return result.with_context(|| format!("unmounting {}", at.display())),
        }
    }
}

fn is_mounted(at: &Path) -> Result<bool> {
    let at = at.to_str().context("a mount point of ours is text")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(at)))
}

/// Ticks in /proc: part of the kernel's ABI on every machine ovl runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// What process `pid` has used, as proc(5) tells.
pub fn usage(pid: u32) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which is in parentheses and may hold anything: state is field 3.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .context("proc stat")?
        .1
        .split(' ')
        .collect();
    let field = |n: usize| -> Result<u64> { Ok(fields.get(n - 3).context("proc stat")?.parse()?) };
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("proc status")?;
    let kib: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    Ok(Usage {
        cpu: (field(14)? + field(15)?) as f64 / TICKS_PER_SECOND,
        resident: kib << 10,
    })
}
