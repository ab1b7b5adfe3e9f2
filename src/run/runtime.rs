//! The program that makes containers of bundles: runc or crun, and what it can do on this machine.
//!
//! Control groups serve no purpose of ours but to keep devices away, which the default capabilities do, too: where they
//! cannot be had, crun is told to leave them alone, and runc, root of a user namespace, finds out by itself. A hierarchy of
//! both versions at once, which crun refuses to start on, is hidden from it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Access, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Result};
use crate::sys;

/// Tried in this order.
const KNOWN: [&str; 2] = ["crun", "runc"];
const CGROUPS: &str = "/sys/fs/cgroup";
const UNIFIED: &str = "/sys/fs/cgroup/unified";
/// Older ones let a working directory in /proc/self/fd lead out of the container (CVE-2024-21626).
const SAFE_RUNC: (u32, u32, u32) = (1, 1, 12);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Runc,
    Crun,
}

#[derive(Clone, Debug)]
pub struct Runtime {
    path: PathBuf,
    kind: Kind,
    /// Where it keeps its state.
    root: PathBuf,
    cgroups: bool,
}

/// What a runtime said of itself, and of which file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    path: PathBuf,
    mtime: i64,
    size: u64,
    version: String,
}

impl Runtime {
    /// The runtime asked for, or the first in PATH.
    pub fn find(asked: Option<&Path>, root: &Path) -> Result<Self> {
        let path = match asked {
            Some(path) if path.as_os_str().as_encoded_bytes().contains(&b'/') => {
                std::path::absolute(path)
                    .ok()
                    .filter(|path| is_program(path))
            }
            Some(name) => in_path(name),
            None => KNOWN.iter().find_map(|name| in_path(Path::new(name))),
        };
        let path = path.ok_or_else(|| {
            Error::Usage(match asked {
                Some(path) => format!("no runtime {} to be found", path.display()),
                None => "neither crun nor runc is in PATH: install one, or name one with --runtime"
                    .into(),
            })
        })?;
        let version = version(&path, root)?;
        let kind = if version.contains("crun") {
            Kind::Crun
        } else {
            Kind::Runc
        };
        Ok(Self {
            cgroups: cgroups_work(kind),
            path,
            kind,
            root: root.to_owned(),
        })
    }

    /// The runtime that a container was made with.
    pub fn known(path: &Path, without_cgroups: bool, root: &Path) -> Result<Self> {
        let found = Self::find(Some(path), root)?;
        Ok(Self {
            cgroups: !without_cgroups,
            ..found
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn has_cgroups(&self) -> bool {
        self.cgroups
    }

    /// `RUNTIME VERB`, its complaints going to `log`.
    pub fn command(&self, verb: &str, log: &Path) -> Command {
        let mut command = Command::new(&self.path);
        command.arg("--root").arg(&self.root);
        command.arg("--log").arg(log).args(["--log-format", "json"]);
        if self.kind == Kind::Crun {
            let manager = if self.cgroups { "cgroupfs" } else { "disabled" };
            command.args(["--cgroup-manager", manager]);
        }
        command.arg(verb);
        command
    }

    /// Starts a command of [`Self::command`]. No descriptor above 2 reaches it.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let fail = |e: std::io::Error| Error::io("running", &self.path, e);
        sys::close_on_exec().map_err(|e| fail(e.into()))?;
        if self.kind == Kind::Crun && is_hybrid() {
            return without_unified(|| command.spawn())
                .map_err(fail)?
                .map_err(fail);
        }
        command.spawn().map_err(fail)
    }

    /// Does the runtime know of the container, running or not?
    pub fn knows(&self, id: &str) -> bool {
        self.root.join(id).exists()
    }

    /// Takes away what is left of a container, ending it first if it runs; none is fine.
    pub fn delete(&self, id: &str) -> Result<()> {
        let mut command = self.command("delete", Path::new("/dev/null"));
        command
            .args(["--force", id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let status = self.spawn(&mut command)?.wait();
        let status = status.map_err(|e| Error::io("waiting for", &self.path, e))?;
        if !status.success() && self.knows(id) {
            return Err(Error::Runtime {
                runtime: self.path.clone(),
                said: format!("delete of {id}: {status}"),
            });
        }
        Ok(())
    }

    /// What went wrong, from the runtime's log: `None` if it complained of nothing.
    pub fn complaint(&self, log: &Path) -> Option<Error> {
        let text = fs::read_to_string(log).unwrap_or_default();
        let said = complaint_in(&text)?;
        let lower = said.to_ascii_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let of_exec = has(&["exec", "executable"]);
        Some(if of_exec && has(&["not found", "no such file"]) {
            Error::NoSuchCommand(said)
        } else if of_exec && has(&["permission denied", "format error", "is a directory"]) {
            Error::NotExecutable(said)
        } else {
            Error::Runtime {
                runtime: self.path.clone(),
                said,
            }
        })
    }
}

/// The last error in a log of JSON lines, in one line.
fn complaint_in(log: &str) -> Option<String> {
    let of_line = |line: &str| -> Option<String> {
        let entry: Value = serde_json::from_str(line).ok()?;
        let is_error = matches!(entry["level"].as_str()?, "error" | "fatal" | "panic");
        is_error.then(|| entry["msg"].as_str().unwrap_or_default().to_owned())
    };
    let said = log.lines().filter_map(of_line).next_back()?;
    Some(said.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

fn in_path(name: &Path) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH")?;
    std::env::split_paths(&dirs)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|path| is_program(path))
}

/// What the program says its version is. It is asked once, and then again when the file is another.
fn version(path: &Path, root: &Path) -> Result<String> {
    let fail = |e| Error::io("looking at", path, e);
    let meta = fs::metadata(path).map_err(fail)?;
    let cache = root.join("version.json");
    let mut known: Vec<Known> = fs::read(&cache)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let is_this = |known: &&Known| {
        (&*known.path, known.mtime, known.size) == (path, meta.mtime(), meta.len())
    };
    if let Some(known) = known.iter().find(is_this) {
        return Ok(known.version.clone());
    }
    let mut command = Command::new(path);
    let output = command
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Error::io("running", path, e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default().to_owned();
    if !line.contains("runc") && !line.contains("crun") {
        return Err(Error::Usage(format!(
            "{} is neither runc nor crun, by what it says of its version",
            path.display()
        )));
    }
    if is_unsafe(&line) {
        tracing::warn!(
            "{line} ({}) is older than 1.1.12, which closed a way out of containers (CVE-2024-21626); ovl keeps \
            that way shut, and your distribution may have, too",
            path.display()
        );
    }
    known.retain(|known| known.path != path);
    known.push(Known {
        path: path.to_owned(),
        mtime: meta.mtime(),
        size: meta.len(),
        version: line.clone(),
    });
    // Only saves the question next time.
    if let Ok(text) = serde_json::to_vec(&known)
        && let Err(error) = fs::write(&cache, text)
    {
        tracing::debug!(path = %cache.display(), %error, "the runtime's version is not kept");
    }
    Ok(line)
}

fn is_unsafe(line: &str) -> bool {
    let Some(version) = line.strip_prefix("runc version ") else {
        return false;
    };
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0_u32));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next()) < SAFE_RUNC
}

/// Can the runtime make control groups for containers here?
fn cgroups_work(kind: Kind) -> bool {
    let is_v2 = rustix::fs::statfs(CGROUPS).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
    let reachable = Path::new(CGROUPS).join(if is_v2 { "cgroup.procs" } else { "memory" });
    !super::userns::inside()
        && rustix::process::geteuid().is_root()
        && rustix::fs::access(reachable, Access::WRITE_OK).is_ok()
        && (is_v2 || kind == Kind::Runc)
}

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// Version 1 with a version 2 hierarchy beside it that has controllers.
fn is_hybrid() -> bool {
    let v2 = |path: &str| rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
    !v2(CGROUPS)
        && v2(UNIFIED)
        && fs::read_to_string(Path::new(UNIFIED).join("cgroup.controllers"))
            .is_ok_and(|list| !list.trim().is_empty())
}

/// Does something in a mount namespace in which the version 2 hierarchy is covered.
fn without_unified<T>(act: impl FnOnce() -> T) -> std::io::Result<T> {
    let open = |path: &str, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let here = open(".", OFlags::PATH | OFlags::DIRECTORY)?;
    let ours = File::open("/proc/self/ns/mnt")?;
    sys::unshare_mounts()?;
    let covered = rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .and_then(|()| {
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        rustix::mount::mount("none", UNIFIED, "tmpfs", flags, c"size=4k")
    });
    let outcome = covered.map(|()| act());
    move_into_link_name_space(ours.as_fd(), Some(LinkNameSpaceType::Mount))?;
    rustix::process::fchdir(&here)?;
    Ok(outcome?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_of_runc() {
        for (line, old) in [
            ("runc version 1.1.5+ds1", true),
            ("runc version 1.1.11", true),
            ("runc version 1.1.12", false),
            ("runc version 1.2.0-rc.1", false),
            ("runc version 2", false),
            ("runc version 1.0.0-rc95", true),
            ("crun version 1.8.1", false),
        ] {
            assert_eq!(is_unsafe(line), old, "{line}");
        }
    }

    #[test]
    fn complaints() {
        for (log, said) in [
            ("", None),
            ("{\"level\":\"warning\",\"msg\":\"x\"}\n", None),
            (
                "garbage\n{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\\n c\"}\n",
                Some("b c"),
            ),
        ] {
            assert_eq!(complaint_in(log).as_deref(), said, "{log}");
        }
    }
}
