//! A place with lower, upper and mount point for tests of real mounts, and its cleaning up whatever happened.
#![allow(dead_code)] // each test file uses its part

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use ovl::mount::{self, Flags, Lower, MountSpec, Record, RunDir, UpperSpec};
use ovl::{fuse, overlay};
use tempfile::TempDir;

/// What is mounted.
#[derive(Clone, Debug)]
pub struct Task {
    pub lower: OsString,
    /// `None`: read-only.
    pub upper: Option<PathBuf>,
    pub mount_point: PathBuf,
    /// Further words for `ovl mount`.
    pub words: Vec<&'static str>,
}

pub struct Site {
    dir: TempDir,
}

impl Site {
    /// `lower/hello` and `lower/sub/inner`, empty `upper`, `mnt`, `run`.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ovl-mount-")
            .tempdir()
            .expect("temporary directory");
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
            words: Vec::new(),
        }
    }

    pub fn command(&self, task: &Task) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ovl"));
        command
            .arg("mount")
            .args(&task.words)
            .args(task.upper.is_none().then_some("--read-only"))
            .arg(&task.lower)
            .args(&task.upper)
            .arg(&task.mount_point)
            .env("OVL_RUN", self.path("run"))
            .env("OVL_ROOT", self.path("store"))
            .stdin(Stdio::null());
        command
    }

    /// Serves a mount from a thread of this process, with a transport of the test's choice; until it is unmounted.
    pub fn serve(&self, fuse: fuse::Config) -> std::thread::JoinHandle<mount::Result<()>> {
        let spec = MountSpec {
            lowers: vec![Lower::Dir(self.path("lower"))],
            upper: Some(UpperSpec {
                upper: self.path("upper"),
                work: None,
                create: false,
            }),
            mount_point: self.path("mnt"),
            store_root: self.path("store"),
            resolve_image: mount::exact_name,
            merge: mount::Merge::Fuse,
            run_dir: self.run_dir(),
            flags: Flags::default(),
            fuse,
            overlay: overlay::Options::default(),
            foreground: true,
            log_file: None,
        };
        let (visible, seen) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            mount::run(&spec, |_| visible.send(()).expect("the test waits"))
        });
        seen.recv().expect("a visible mount");
        server
    }

    pub fn try_mount(&self, task: &Task) -> Output {
        self.command(task).output().expect("run")
    }

    /// Mounts in the background; the record of the mount.
    pub fn mount(&self) -> Record {
        let output = self.try_mount(&self.task());
        assert!(output.status.success(), "{}", complaint(&output));
        self.record().expect("a record")
    }

    pub fn record(&self) -> Option<Record> {
        mount::find(&self.run_dir(), &self.path("mnt")).expect("find")
    }

    pub fn is_mounted(&self, name: &str) -> bool {
        let path = self.path(name);
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        table
            .lines()
            .any(|line| line.split(' ').nth(4) == path.to_str())
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
            for log in fs::read_dir(below.join("run/log"))
                .into_iter()
                .flatten()
                .flatten()
            {
                let text = fs::read_to_string(log.path()).unwrap_or_default();
                eprintln!("--- {}\n{text}", log.path().display());
            }
        }
        for record in self.run_dir().all().unwrap_or_default() {
            let pid = record.daemon.pid;
            if pid == std::process::id() {
                continue;
            }
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
