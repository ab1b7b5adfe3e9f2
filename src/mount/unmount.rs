//! Unmounting from outside, and waiting until the upper directory is at rest.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::error::{Error, Result};
use super::holders;
use super::kernel;
use super::kernel_merge::{self, Merge};
use super::mountinfo::{self, MountInfo, MountKey};
use super::registry::{Record, RunDir};

/// How to unmount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Detach at once, also while in use: users keep their files, the daemon ends with the last of them.
    pub lazy: bool,
    /// How long to wait for the daemon to finish.
    pub timeout: Duration,
}

impl Default for How {
    fn default() -> Self {
        Self {
            lazy: false,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Takes down the mount called `name` (its id, or a path that leads to its root) and waits for its daemon to end, so
/// that the upper directory can be used by others. Works, too, when the daemon has been killed. Gives the mount point.
pub fn unmount(run: &RunDir, name: &Path, how: How) -> Result<PathBuf> {
    let records = run
        .all()
        .map_err(|e| Error::io("reading the list of mounts in", run.path(), e))?;
    if let Some(record) = records.iter().find(|r| name == Path::new(&r.id)) {
        return match record.mount.find().map_err(no_mountinfo)? {
            Some(mount) => take_down(run, &mount, Some(record), how),
            None => from_inside(run, record, how),
        };
    }
    let missing = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::Missing {
            what: "mount point",
            path: name.to_owned(),
            hint: "",
        },
        _ => Error::io("looking at", name, e),
    };
    let mount = mountinfo::mounted_at(name)
        .map_err(missing)?
        .ok_or_else(|| Error::NotMounted {
            path: name.to_owned(),
        })?;
    let record = records.iter().find(|r| r.mount.means(&mount));
    if record.is_none() && !mountinfo::is_ours(&mount) {
        return Err(Error::NotMounted {
            path: name.to_owned(),
        });
    }
    take_down(run, &mount, record, how)
}

fn no_mountinfo(e: io::Error) -> Error {
    Error::io("reading", Path::new("/proc/self/mountinfo"), e)
}

fn take_down(
    run: &RunDir,
    mount: &MountInfo,
    record: Option<&Record>,
    how: How,
) -> Result<PathBuf> {
    let path = mount.mount_point.clone();
    // Pinned before the mount goes, so that the wait is for this process.
    let daemon = record.and_then(|r| r.daemon.open());
    let dead = match record {
        // What the kernel merges can be used, and so be busy, all the same.
        Some(record) => record.merge != Merge::Kernel && record.is_broken(),
        None => is_dead(&path),
    };
    let key = MountKey::of(mount);
    match patiently(&key, how.lazy || dead) {
        Ok(_) => {}
        Err(e) if is_busy(&e) => {
            return Err(Error::Busy {
                holders: users(mount, record.map(|r| r.daemon.pid)),
                path,
            });
        }
        Err(e) => return Err(Error::io("unmounting", &path, e)),
    }
    match (daemon, record) {
        (Some(daemon), Some(record)) => {
            let ended = daemon.wait(if how.lazy {
                how.timeout.min(LAZY_WAIT)
            } else {
                how.timeout
            });
            match ended {
                Ok(true) => {}
                Ok(false) if how.lazy => return Ok(path),
                Ok(false) => return Err(still_running(mount, record, how)),
                Err(e) => return Err(Error::io("waiting for the daemon of", &path, e)),
            }
        }
        (None, Some(record)) if record.merge == Merge::Kernel => {
            settle(run, mount, record, how)?;
        }
        (None, Some(record)) => forget(run, record),
        _ => {}
    }
    Ok(path)
}

/// Waits until an overlay of the kernel's that no process of ours is with has gone everywhere, and forgets it.
fn settle(run: &RunDir, mount: &MountInfo, record: &Record, how: How) -> Result<()> {
    let deadline = Instant::now() + how.timeout;
    let mut users = holders::elsewhere(mount);
    while !how.lazy && !users.is_empty() {
        if Instant::now() > deadline {
            return Err(Error::StillMounted {
                path: mount.mount_point.clone(),
                holders: users,
            });
        }
        std::thread::sleep(BUSY_PAUSE);
        users = holders::elsewhere(mount);
    }
    // Of a mount whose daemon was killed nobody knows whether all was well.
    if let (Some(work), true, true) = (
        &record.work,
        record.engine.volatile && !record.engine.no_fsync && record.daemon.is_nobody(),
        !how.lazy,
    ) {
        kernel_merge::end_volatile(&work.0);
    }
    forget(run, record);
    Ok(())
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

/// Unmounts; one that is busy for a moment only as well. `false`: it was gone.
pub fn patiently(mount: &MountKey, lazy: bool) -> io::Result<bool> {
    let mut done = kernel::unmount(mount, lazy);
    for pause in busy_pauses() {
        if !done.as_ref().is_err_and(is_busy) {
            break;
        }
        std::thread::sleep(pause);
        done = kernel::unmount(mount, lazy);
    }
    done
}

/// A process that somebody is just starting holds copies of its parent's files until exec closes them, and one that has just
/// ended its own for a moment: soon tried again, and for 0.3 s in all.
fn busy_pauses() -> impl Iterator<Item = Duration> {
    let doubling = (0..5).map(|n| Duration::from_millis(1 << n));
    doubling.chain(std::iter::repeat_n(BUSY_PAUSE, 14))
}

const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A lazily unmounted mount that nobody uses ends at once; one in use is not waited for.
const LAZY_WAIT: Duration = Duration::from_millis(500);

fn still_running(mount: &MountInfo, record: &Record, how: How) -> Error {
    Error::StillRunning {
        path: mount.mount_point.clone(),
        pid: record.daemon.pid,
        seconds: how.timeout.as_secs(),
        holders: users(mount, Some(record.daemon.pid)),
    }
}

/// Who keeps a mount alive, besides its daemon.
fn users(mount: &MountInfo, daemon: Option<u32>) -> Vec<holders::Holder> {
    let mut users = holders::of(mount);
    users.retain(|holder| Some(holder.pid) != daemon);
    users.extend(holders::elsewhere(mount));
    users
}

/// The daemon is gone but its mount is there: the kernel answers everything with ENOTCONN.
fn is_dead(path: &Path) -> bool {
    // Not stat: attributes kept by the kernel would hide it.
    rustix::fs::statfs(path).is_err_and(|errno| errno == Errno::NOTCONN)
}

/// A mount of another mount namespace, which only its daemon can take down.
fn from_inside(run: &RunDir, record: &Record, how: How) -> Result<PathBuf> {
    let path = record.mount_point.0.clone();
    let Some(daemon) = record.daemon.open() else {
        if let Some(pid) = record.process_that_sees_it() {
            return Err(Error::Elsewhere { path, pid });
        }
        forget(run, record);
        return Err(Error::NotMounted { path });
    };
    let fail = |e| Error::io("ending the daemon of", &path, e);
    daemon.terminate().map_err(fail)?;
    if how.lazy && !daemon.wait(LAZY_WAIT).map_err(fail)? {
        daemon.terminate().map_err(fail)?;
    }
    if daemon.wait(how.timeout).map_err(fail)? {
        return Ok(path);
    }
    Err(Error::Busy {
        path,
        holders: Vec::new(),
    })
}

fn forget(run: &RunDir, record: &Record) {
    if !record.is_live() {
        // The next listing drops it otherwise.
        let _ = run.remove(&record.id);
    }
}
