//! A place with lower, upper and mount point for tests of real mounts, and its cleaning up whatever happened.
#![allow(dead_code)] // each test file uses its part

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ovl::mount::{self, Record, RunDir};
use tempfile::TempDir;

/// What is mounted.
#[derive(Clone, Debug)]
pub struct Task {
    pub lower: OsString,
    pub upper: Option<PathBuf>,
    pub mount_point: PathBuf,
    pub run: PathBuf,
    pub words: Vec<String>,
}

pub struct Site {
    dir: TempDir,
}

impl Site {
    /// `lower/hello` and `lower/sub/inner`, empty `upper`, `mnt`, `run`.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("ovl-mount-").tempdir().expect("temporary directory");
        let site = Self { dir };
        for name in ["lower/sub", "upper", "mnt"] {
            fs::create_dir_all(site.path(name)).expect("mkdir");
        }
        fs::write(site.path("lower/hello"), "from below").expect("write");
        fs::write(site.path("lower/sub/inner"), "deep").expect("write");
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::at(&self.path("run")).expect("run directory")
    }

    pub fn task(&self) -> Task {
        Task {
            lower: self.path("lower").into(),
            upper: Some(self.path("upper")),
            mount_point: self.path("mnt"),
            run: self.path("run"),
            words: Vec::new(),
        }
    }

    pub fn command(&self, task: &Task) -> Command {
        let mut command = Command::new(program());
        command
            .args([task.run.as_os_str(), &task.lower])
            .arg(task.upper.as_deref().unwrap_or(Path::new("")))
            .arg(&task.mount_point)
            .args(&task.words)
            .stdin(Stdio::null());
        command
    }

    pub fn try_mount(&self, task: &Task) -> Output {
        self.command(task).output().expect("run")
    }

    /// Mounts in the background; the record of the mount.
    pub fn mount(&self) -> Record {
        self.mount_with(&[])
    }

    pub fn mount_with(&self, words: &[&str]) -> Record {
        let mut task = self.task();
        task.words = words.iter().map(|w| (*w).to_owned()).collect();
        let output = self.try_mount(&task);
        assert!(output.status.success(), "{}", complaint(&output));
        self.record().expect("a record")
    }

    pub fn record(&self) -> Option<Record> {
        mount::find(&self.run_dir(), &self.path("mnt")).expect("find")
    }

    pub fn is_mounted(&self, name: &str) -> bool {
        let path = self.path(name);
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let below = self.dir.path().to_owned();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in table.lines().rev().filter_map(|l| l.split(' ').nth(4)) {
            if Path::new(point).starts_with(&below) {
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
        if std::thread::panicking() {
            for log in fs::read_dir(below.join("run/log")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(log.path()).unwrap_or_default();
                eprintln!("--- {}\n{text}", log.path().display());
            }
        }
        for record in self.run_dir().all().unwrap_or_default() {
            let pid = record.daemon.pid;
            if record.daemon.is_alive() == Some(true) && !wait_gone(pid, Duration::from_secs(5)) {
                kill(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    format!("{:?}: {}", output.status.code(), text.trim())
}

pub fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("kill");
}

pub fn wait_gone(pid: u32, limit: Duration) -> bool {
    wait_until(limit, || !Path::new(&format!("/proc/{pid}")).exists())
}

pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    done()
}

/// The example `mount`, which cargo builds beside the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().expect("own path");
    let target = tests.parent().and_then(Path::parent).expect("target directory");
    target.join("examples/mount")
}
