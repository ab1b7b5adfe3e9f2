//! What integration tests share: a store of their own, mounts that are gone when the test is, and the test images.
//!
//! Each test binary uses a part of this.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A scratch directory with a store and a run directory that no other test sees. Whatever is still mounted below it is
/// unmounted before it is removed.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ovl-test-")
            .tempdir()
            .expect("a scratch directory");
        std::fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("store")
    }

    /// An empty directory.
    pub fn mkdir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// `ovl` on this sandbox's store, run in the sandbox's directory, with an environment that does not depend on the
    /// tester's.
    pub fn ovl(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::cargo_bin("ovl").expect("the ovl binary");
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("OVL_ROOT", self.root())
            .env("OVL_RUN", self.path("run"))
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .env("LC_ALL", "C");
        command
    }

    /// Runs `ovl`, which must succeed; its stdout.
    pub fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
        let assert = self.ovl(args).assert().success();
        String::from_utf8(assert.get_output().stdout.clone()).expect("UTF-8 on stdout")
    }

    /// Runs `ovl`, which must fail with `code` and one line on stderr that begins with `ovl: `; that line's rest.
    pub fn fail(&self, code: i32, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
        let mut command = self.ovl(args);
        let output = command.output().expect("ovl runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{command:?}, stderr: {stderr}"
        );
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "",
            "{command:?} failed and wrote to stdout"
        );
        let line = stderr
            .strip_prefix("ovl: ")
            .unwrap_or_else(|| panic!("not our line: {stderr:?}"));
        assert_eq!(
            line.matches('\n').count(),
            1,
            "one line, please: {stderr:?}"
        );
        line.trim_end().to_owned()
    }

    /// Imports the checked-in busybox image as `busybox:latest`.
    pub fn with_busybox() -> Self {
        let sandbox = Self::new();
        sandbox.run(["import".as_ref(), busybox().as_os_str()]);
        sandbox
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Deepest first; lazily, since a failed test may have left a process in there.
        let mut mounts = mounts_below(self.dir.path());
        mounts.reverse();
        for mount in mounts {
            let _ = Command::new("umount").arg("-l").arg(&mount).status();
        }
    }
}

/// Mount points below a directory, in the order they were mounted.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .map(PathBuf::from)
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// The checked-in image: two small layers, a docker-archive.
pub fn busybox() -> PathBuf {
    fixtures().join("images/busybox.tar")
}

/// The directory of a set of generated test images (`base`, `small` or `five`; see `fixtures/images.sh`), made if need be.
pub fn images(set: &str) -> PathBuf {
    let output = command(fixtures().join("images.sh"), [set]);
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Runs a program that must succeed.
pub fn command(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Output {
    let mut command = Command::new(program.as_ref());
    command.args(args);
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Fails with a clear word where tests that mount cannot run: they need root and /dev/fuse, as CI has.
pub fn require_mounting() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests mount file systems: run them as root"
    );
    assert!(
        Path::new("/dev/fuse").exists(),
        "these tests need /dev/fuse (modprobe fuse)"
    );
}

/// The daemon of the sandbox's only mount.
pub fn daemon_of(sandbox: &Sandbox) -> u32 {
    let mounts: serde_json::Value =
        serde_json::from_str(&sandbox.run(["mounts", "--format", "json"])).unwrap();
    assert_eq!(mounts.as_array().map(Vec::len), Some(1), "{mounts}");
    mounts[0]["Pid"].as_u64().expect("a pid") as u32
}
