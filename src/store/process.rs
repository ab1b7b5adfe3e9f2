//! Who a process is, so that a lease can tell whether its holder still lives.
//!
//! A process number alone is reused; number and start time name one process of one boot, seen from one PID namespace.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Identity of a process, as leases record it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProcessIdentity {
    pub(super) pid: i64,
    /// Field 22 of `/proc/PID/stat` (clock ticks since boot); 0 where /proc cannot be read.
    pub(super) start: i64,
    /// `/proc/sys/kernel/random/boot_id`; empty where it cannot be read.
    pub(super) boot: String,
    /// Inode number of the PID namespace that `pid` is counted in; 0 where it cannot be read.
    pub(super) pid_namespace: i64,
}

impl ProcessIdentity {
    pub(super) fn current() -> Self {
        let pid = i64::from(std::process::id());
        Self {
            pid,
            start: start_time(pid).unwrap_or(0),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            pid_namespace: fs::metadata("/proc/self/ns/pid").map_or(0, |m| m.ino() as i64),
        }
    }

    /// Whether the process is gone for sure. What cannot be known counts as alive: a lease kept too long costs space,
    /// one dropped too early costs a running container its files.
    pub(super) fn is_dead(&self, observer: &Self) -> bool {
        if self.boot.is_empty() || observer.boot.is_empty() {
            return false;
        }
        if self.boot != observer.boot {
            return true;
        }
        if self.pid_namespace != observer.pid_namespace
            || self.pid_namespace == 0
            || self.start == 0
        {
            return false;
        }
        match start_time(self.pid) {
            Some(start) => start != self.start,
            // Our own entry is readable, so /proc works and a missing one means the process is gone.
            None => observer.start != 0,
        }
    }
}

/// How long a process has been running, seconds. The kernel counts its start in hundredths of a second (`USER_HZ`) since
/// boot.
pub(super) fn age(pid: i64) -> Option<i64> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: i64 = uptime.split('.').next()?.parse().ok()?;
    Some((uptime - start_time(pid)? / 100).max(0))
}

/// A time span for people: `12 s`, `3 min`, `5 h`, `2 days`.
pub(super) fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s @ 7_200..172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

fn start_time(pid: i64) -> Option<i64> {
    parse_start_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 22 of proc_pid_stat(5); zombies count as gone. The command name (field 2) may hold spaces and parentheses.
fn parse_start_time(stat: &str) -> Option<i64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_start_time_behind_any_command_name() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 2 3";
        for name in ["cat", "a b", "a) R 1 (x"] {
            assert_eq!(
                parse_start_time(&format!("7 ({name}) {rest}")),
                Some(4711),
                "{name}"
            );
        }
        assert_eq!(
            parse_start_time(&format!("7 (x) {}", rest.replacen('S', "Z", 1))),
            None
        );
        assert_eq!(parse_start_time("7 (x"), None);
        assert_eq!(parse_start_time("7 (x) S 1"), None);
    }

    #[test]
    fn spans_are_told_in_one_unit() {
        for (seconds, text) in [
            (-5, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7_199, "119 min"),
            (7_200, "2 h"),
            (200_000, "2 days"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert!(age(i64::from(std::process::id())).is_some_and(|age| age < 86_400));
    }

    #[test]
    fn tells_the_dead_from_the_living_and_the_unknown() {
        let me = ProcessIdentity::current();
        assert!(!me.is_dead(&me));
        let cases = [
            (
                "earlier holder of my number",
                ProcessIdentity {
                    start: me.start - 1,
                    ..me.clone()
                },
                true,
            ),
            (
                "no such process",
                ProcessIdentity {
                    pid: i64::from(i32::MAX),
                    ..me.clone()
                },
                true,
            ),
            (
                "another boot",
                ProcessIdentity {
                    boot: "x".into(),
                    ..me.clone()
                },
                true,
            ),
            (
                "another namespace",
                ProcessIdentity {
                    pid_namespace: 1,
                    start: 1,
                    ..me.clone()
                },
                false,
            ),
            (
                "nothing known",
                ProcessIdentity {
                    boot: String::new(),
                    ..me.clone()
                },
                false,
            ),
        ];
        for (what, who, dead) in cases {
            assert_eq!(who.is_dead(&me), dead, "{what}");
        }
    }
}
