//! Naming a process so that a recycled pid is not taken for it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::sys;

/// A process: pid, the tick it started at, and the pid namespace both are counted in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start: u64,
    /// `/proc/self/ns/pid`, as `pid:[4026531836]`.
    pub namespace: String,
}

impl Process {
    pub fn current() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// The process that has `pid` now.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            start: start_of(pid)?,
            namespace: own_namespace(),
        })
    }

    /// None at all: the kernel needs no help with the mount.
    pub fn nobody() -> Self {
        Self {
            pid: 0,
            start: 0,
            namespace: String::new(),
        }
    }

    pub fn is_nobody(&self) -> bool {
        self.pid == 0
    }

    /// `None` where this process cannot tell: the other one lives in another pid namespace.
    pub fn is_alive(&self) -> Option<bool> {
        if self.namespace != own_namespace() {
            return None;
        }
        Some(start_of(self.pid).is_ok_and(|start| start == self.start))
    }

    /// A handle that goes on meaning this very process; `None` if it is gone or out of sight.
    pub fn open(&self) -> Option<ProcessHandle> {
        let pid = Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Only now is the pid pinned; was it still ours?
        (self.is_alive() == Some(true)).then_some(ProcessHandle(handle))
    }
}

/// A pidfd.
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// `false`: it still runs after `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        Ok(sys::wait_readable(self.0.as_fd(), timeout)?)
    }

    /// Asks the process to end (SIGTERM).
    pub fn terminate(&self) -> io::Result<()> {
        self.send(Signal::TERM)
    }

    pub fn send(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.0, signal)?)
    }
}

fn own_namespace() -> String {
    fs::read_link("/proc/self/ns/pid")
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A zombie, which does nothing any more, counts as gone.
fn start_of(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn parse_stat(stat: &[u8]) -> Option<u64> {
    // The second field is the command in parentheses, which may hold anything, also parentheses.
    let end = stat.iter().rposition(|b| *b == b')')?;
    let mut fields = std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines() {
        let tail = "1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 7777 0 0";
        for (head, start) in [
            ("1 (init) S ", Some(7777)),
            ("1 (a) S 1 (b) S ", Some(7777)),
            ("1 (dead) Z ", None),
        ] {
            let line = format!("{head}{tail}");
            assert_eq!(parse_stat(line.as_bytes()), start, "{line}");
        }
        for broken in ["", "1", "1 (x", "1 (x) S 1 2"] {
            assert_eq!(parse_stat(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn a_recycled_pid_is_another_process() {
        let me = Process::current().expect("own process");
        assert_eq!(me.is_alive(), Some(true));
        let before = Process {
            start: me.start.wrapping_sub(1),
            ..me.clone()
        };
        assert_eq!(before.is_alive(), Some(false));
        assert!(before.open().is_none());
        let elsewhere = Process {
            namespace: "pid:[1]".into(),
            ..me
        };
        assert_eq!(elsewhere.is_alive(), None);
    }
}
