//! Corners of POSIX and of Linux, each told twice: on a mount whose lower holds the files, and in a plain directory with the
//! same files on the same file system. What the plain directory answers is what the mount must answer; where a FUSE
//! mount cannot, the test says what it answers instead, and docs/limits.md why. `OVL_MODES` chooses how the mount is served.

mod acl;
mod attributes;
mod direct;
mod locks;
#[path = "../mode_support/mod.rs"]
mod mode_support;
#[path = "../mount_support/mod.rs"]
mod mount_support;
mod owners;
mod ranges;
#[path = "../uring_support/mod.rs"]
mod uring_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use mode_support::{BOTH, CACHED, IO_URING, PASSTHROUGH, THROUGH};
use mount_support::{Site, complaint};

/// A mount and a plain directory that begin with the same content.
pub struct Twins {
    site: Site,
    words: &'static [&'static str],
}

/// Runs `check` in each mode of our own merge; what the kernel's does otherwise is in tests/mount_merge.rs.
pub fn on_twins(prepare: impl Fn(&Path), check: impl Fn(&Twins)) {
    for (mode, default) in [
        (CACHED, true),
        (THROUGH, true),
        (PASSTHROUGH, true),
        (IO_URING, false),
        (BOTH, false),
    ] {
        if mode.is_wanted(default) {
            println!("mode: {}", mode.name);
            uring_support::permit_io_uring();
            check_twins(Site::new(), mode.words, &prepare, &check);
        }
    }
}

/// Runs `check` on a site of the caller's making.
pub fn check_twins(
    site: Site,
    words: &'static [&'static str],
    prepare: impl Fn(&Path),
    check: impl Fn(&Twins),
) {
    // Other users must be able to get here.
    fs::set_permissions(site.path("."), fs::Permissions::from_mode(0o755)).expect("chmod");
    for dir in ["lower", "plain"] {
        let dir = site.path(dir);
        // The site's own files are of no use here.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).expect("mkdir");
        prepare(&dir);
    }
    let twins = Twins { site, words };
    twins.mount();
    check(&twins);
    twins.unmount();
}

impl Twins {
    pub fn mnt(&self) -> PathBuf {
        self.site.path("mnt")
    }

    pub fn plain(&self) -> PathBuf {
        self.site.path("plain")
    }

    pub fn upper(&self) -> PathBuf {
        self.site.path("upper")
    }

    fn mount(&self) {
        let mut task = self.site.task();
        task.words = self.words.to_vec();
        let output = self.site.try_mount(&task);
        assert!(output.status.success(), "{}", complaint(&output));
    }

    /// The mount must come down without force.
    fn unmount(&self) {
        let output = Command::new(env!("CARGO_BIN_EXE_ovl"))
            .arg("umount")
            .arg(self.mnt())
            .env("OVL_RUN", self.site.path("run"))
            .env("OVL_ROOT", self.site.path("store"))
            .output()
            .expect("ovl");
        assert!(output.status.success(), "{}", complaint(&output));
    }

    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// Runs a shell script in both places: it must succeed and say the same. What it said.
    pub fn sh(&self, script: &str) -> String {
        self.both("sh", &format!("set -eu\n{script}"))
    }

    /// Runs a Python script in both places: it must succeed and print the same. What it printed.
    pub fn python(&self, script: &str) -> String {
        self.both("python3", &format!("{PRELUDE}{script}"))
    }

    fn both(&self, program: &str, script: &str) -> String {
        let [shown, expected] = [self.mnt(), self.plain()].map(|dir| run(program, script, &dir));
        assert!(
            shown == expected,
            "the mount says\n{shown}\nthe plain directory\n{expected}\nof\n{script}"
        );
        shown
    }

    /// Runs a Python script on the mount alone, where the plain directory is known to answer otherwise.
    pub fn python_on_mount(&self, script: &str) -> String {
        run("python3", &format!("{PRELUDE}{script}"), &self.mnt())
    }
}

fn run(program: &str, script: &str, dir: &Path) -> String {
    let output = Command::new(program)
        .args(["-c", script])
        .current_dir(dir)
        .output()
        .expect(program);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program} in {}: {}\n{said}{}\nof\n{script}",
        dir.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// What the Python scripts share: `tell(words, call, arguments)` prints a call's result or the error it met.
const PRELUDE: &str = r#"
import ctypes, errno, fcntl, hashlib, mmap, os, stat, struct, sys, time

def tell(words, call, *args, **named):
    try:
        answer = call(*args, **named)
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(words, answer)
    return answer

def content(path):
    with open(path, 'rb') as f:
        data = f.read()
    return len(data), hashlib.sha256(data).hexdigest()[:16]
"#;
