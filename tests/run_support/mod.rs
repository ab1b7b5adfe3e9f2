//! A place for containers: a store, a run directory and a mount namespace that no other test sees, and nothing running or
//! mounted afterwards, whatever happened.
#![allow(dead_code)] // each test file uses its part

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::MountPropagationFlags;
use serde_json::Value;

use crate::common::{Sandbox, command, require_mounting};

/// Everything is done with each of them.
pub const RUNTIMES: [&str; 2] = ["runc", "crun"];

/// Longer than anything here takes; what hangs is ended by then.
const LIMIT: &str = "60";

pub struct Room {
    pub sandbox: Sandbox,
}

impl Room {
    /// With the checked-in busybox image.
    pub fn new() -> Self {
        require_mounting();
        for program in RUNTIMES {
            command(program, ["--version"]);
        }
        // Of this thread, and the processes it starts.
        ovl::sys::unshare_mounts().expect("a mount namespace");
        rustix::mount::mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .expect("private mounts");
        Self {
            sandbox: Sandbox::with_busybox(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    /// `ovl WORDS`, to be ended if it hangs.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "5", "--foreground", LIMIT, env!("CARGO_BIN_EXE_ovl")])
            .args(words);
        self.prepare(&mut command);
        command
    }

    pub fn prepare(&self, command: &mut Command) {
        command
            .current_dir(self.path(""))
            .env("OVL_ROOT", self.sandbox.root())
            .env("OVL_RUN", self.path("run"))
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
    }

    pub fn output(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("ovl runs")
    }

    /// What a command that must succeed prints.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{words:?}: {}",
            told(&output)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What a command that must fail with `code` says.
    #[track_caller]
    pub fn fail(&self, code: i32, words: &[&str]) -> String {
        let output = self.output(words);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{words:?}: {}",
            told(&output)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// `ovl run --rm --runtime RUNTIME WORDS`, which must succeed.
    #[track_caller]
    pub fn run_with(&self, runtime: &str, words: &[&str]) -> String {
        self.run(&[&["run", "--rm", "--runtime", runtime], words].concat())
    }

    /// The containers as `ovl ps -a` has them.
    pub fn containers(&self) -> Vec<Value> {
        let json = self.run(&["ps", "-a", "--format", "json"]);
        serde_json::from_str(&json).expect("JSON")
    }

    pub fn container(&self, name: &str) -> Value {
        let all = self.containers();
        let found = all.iter().find(|c| c["Name"] == name);
        found
            .unwrap_or_else(|| panic!("no {name} in {all:?}"))
            .clone()
    }

    /// An image made of a directory, its configuration by Dockerfile instructions.
    pub fn image(&self, name: &str, root: &Path, changes: &[&str]) {
        let tar = self.path(&format!("{name}.tar"));
        command(
            "tar",
            [
                "--numeric-owner".as_ref(),
                "-C".as_ref(),
                root.as_os_str(),
                "-cf".as_ref(),
                tar.as_os_str(),
                ".".as_ref(),
            ],
        );
        let plain = format!("{name}:plain");
        self.run(&["import", tar.to_str().expect("UTF-8"), "--tag", &plain]);
        self.change(&plain, name, changes);
    }

    /// `name` is what `image` is, with other words in its configuration.
    pub fn change(&self, image: &str, name: &str, changes: &[&str]) {
        let mnt = self.sandbox.mkdir(&format!("{name}-mnt"));
        let mnt = mnt.to_str().expect("UTF-8");
        self.run(&["mount", image, &format!("{name}-upper"), mnt]);
        let mut words = vec!["commit", mnt, name];
        for change in changes {
            words.extend(["--change", change]);
        }
        self.run(&words);
        self.run(&["umount", mnt]);
    }

    /// A copy of busybox's tree to make images of.
    pub fn busybox_tree(&self, name: &str) -> PathBuf {
        let (mnt, tree) = (self.sandbox.mkdir("tree-mnt"), self.path(name));
        self.run(&[
            "mount",
            "--read-only",
            "busybox",
            mnt.to_str().expect("UTF-8"),
        ]);
        command("cp", [OsStr::new("-a"), mnt.as_os_str(), tree.as_os_str()]);
        self.run(&["umount", mnt.to_str().expect("UTF-8")]);
        tree
    }

    /// Nothing of a container is left: no mount, no bundle, no runtime's state.
    #[track_caller]
    pub fn assert_nothing_runs(&self) {
        let mounted = crate::common::mounts_below(&self.path(""));
        assert_eq!(mounted, Vec::<PathBuf>::new());
        for dir in ["run/containers", "run/mounts"] {
            let left = std::fs::read_dir(self.path(dir)).expect(dir).count();
            assert_eq!(left, 0, "{dir}");
        }
        let left: Vec<_> = std::fs::read_dir(self.path("run/runtime"))
            .expect("the runtime's directory")
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let output = self.output(&["ps", "-aq"]);
        for id in String::from_utf8_lossy(&output.stdout).lines() {
            let _ = self.output(&["rm", "-f", id]);
        }
    }
}

pub fn told(output: &Output) -> String {
    format!(
        "{:?}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits for something that will be so soon.
#[track_caller]
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
