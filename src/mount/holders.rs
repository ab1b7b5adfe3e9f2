//! Who uses a mount: processes whose directories, files or mappings keep it busy.
//!
//! Read from /proc alone: the mount itself, perhaps hung, is not asked.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, MountInfo};

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

/// Processes in whose mount namespaces copies of `mount`, gone from ours, live on: one of each namespace. Making a namespace
/// copies all mounts, and unless told otherwise they stay there when they are unmounted here.
pub fn copies_of(mount: &MountInfo) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let namespace_of = |process: &Path| fs::read_link(process.join("ns/mnt")).ok();
    let mut seen: Vec<PathBuf> = namespace_of(Path::new("/proc/self")).into_iter().collect();
    let mut holders = Vec::new();
    for process in processes.flatten() {
        let path = process.path();
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Some(namespace) = namespace_of(&path).filter(|namespace| !seen.contains(namespace))
        else {
            continue;
        };
        let has_copy = |table: Vec<MountInfo>| {
            table
                .iter()
                .any(|m| (m.major, m.minor) == (mount.major, mount.minor))
        };
        if mountinfo::of_process(pid).is_ok_and(has_copy) {
            let command = fs::read_to_string(path.join("comm")).unwrap_or_default();
            holders.push(Holder {
                pid,
                command: command.trim_end().to_owned(),
                how: "a copy of the mount in its mount namespace",
            });
        }
        seen.push(namespace);
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
