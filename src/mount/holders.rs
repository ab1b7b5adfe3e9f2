//! Who uses a mount: processes whose directories, files or mappings keep it busy.
//!
//! Read from /proc alone: the mount itself, perhaps hung, is not asked.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::mountinfo::MountInfo;

/// A process and what of it is on the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
    pub how: &'static str,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}, {})", self.command, self.pid, self.how)
    }
}

/// Processes using `mount`, as far as this user may look.
pub fn of(mount: &MountInfo) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut holders: Vec<Holder> = processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let how = used_by(&entry.path(), mount)?;
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            Some(Holder {
                pid,
                command: command.trim_end().to_owned(),
                how,
            })
        })
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

/// One process of each other mount namespace in which the file system of `mount` is mounted too: a copy made when the
/// namespace was, which an unmount here does not reach.
pub fn elsewhere(mount: &MountInfo) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let device = format!(" {}:{} ", mount.major, mount.minor);
    let mut seen: Vec<PathBuf> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
    let mut holders = Vec::new();
    for entry in processes.flatten() {
        let process = entry.path();
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let mounts = fs::read(process.join("mountinfo")).unwrap_or_default();
        if mounts.windows(device.len()).any(|w| w == device.as_bytes()) {
            let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
            holders.push(Holder {
                pid,
                command: command.trim_end().to_owned(),
                how: "in a mount namespace with a copy of it",
            });
        }
    }
    holders
}

fn used_by(process: &Path, mount: &MountInfo) -> Option<&'static str> {
    let leads_in = |link: PathBuf| {
        fs::read_link(link).is_ok_and(|target| target.starts_with(&mount.mount_point))
    };
    for (link, how) in [
        ("cwd", "working directory"),
        ("root", "root directory"),
        ("exe", "program"),
    ] {
        if leads_in(process.join(link)) {
            return Some(how);
        }
    }
    if let Ok(files) = fs::read_dir(process.join("fd"))
        && files.flatten().any(|file| leads_in(file.path()))
    {
        return Some("open file");
    }
    // `55d0…-55d1… r-xp 00000000 00:2b 1234 /path`: the device tells the mount even where the path cannot.
    let device = format!(" {:02x}:{:02x} ", mount.major, mount.minor);
    let maps = fs::read(process.join("maps")).ok()?;
    maps.windows(device.len())
        .any(|w| w == device.as_bytes())
        .then_some("mapped file")
}
