//! Who holds the database's locks, for people who have waited for them in vain.
//!
//! A writer in WAL mode holds a POSIX lock on one byte of the `-shm` file (SQLite, "WAL-mode File Format", section 2.3:
//! byte 120 is the writers' lock, 121 the checkpointers', 122 the recoverers'). /proc/locks tells whose that is. Asking
//! the file itself is out of the question: closing it again would drop this process's own locks on it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::process;

const LOCKS: std::ops::RangeInclusive<u64> = 120..=122;
/// Characters of a command line that are told.
const COMMAND: usize = 80;

/// The processes that write to the database whose `-shm` file this is; empty where that cannot be known.
pub(super) fn of_write_lock(shm: &Path) -> Vec<String> {
    let (Ok(meta), Ok(locks)) = (fs::metadata(shm), fs::read_to_string("/proc/locks")) else {
        return Vec::new();
    };
    let mut pids: Vec<u32> = locks
        .lines()
        .filter_map(|line| holder(line, meta.ino()))
        .filter(|pid| *pid != std::process::id())
        .collect();
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().map(describe).collect()
}

/// The process of a line of /proc/locks (proc_locks(5)) if it is such a lock on that inode. A lock that is only waited
/// for has an arrow before its kind.
fn holder(line: &str, inode: u64) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (kind, _, access) = (fields.next()?, fields.next()?, fields.next()?);
    let pid = fields.next()?.parse().ok()?;
    // The device is left out: on some file systems it is not the one that stat(2) tells.
    let found: u64 = fields.next()?.rsplit(':').next()?.parse().ok()?;
    let start: u64 = fields.next()?.parse().ok()?;
    (kind == "POSIX" && access == "WRITE" && found == inode && LOCKS.contains(&start))
        .then_some(pid)
}

fn describe(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    let command: String = command.trim_end().chars().take(COMMAND).collect();
    let time = match process::age(i64::from(pid)) {
        Some(seconds) => format!(", running for {}", process::duration(seconds)),
        None => String::new(),
    };
    match command.as_str() {
        "" => format!("process {pid}{time}"),
        command => format!("process {pid}: {command}{time}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_held_write_lock_of_the_file_counts() {
        for (line, pid) in [
            (
                "1: POSIX  ADVISORY  WRITE 4711 00:2f:99 120 120",
                Some(4711),
            ),
            (
                "12: POSIX  ADVISORY  WRITE 4711 00:2f:99 122 122",
                Some(4711),
            ),
            ("1: POSIX  ADVISORY  READ  4711 00:2f:99 120 120", None),
            ("1: POSIX  ADVISORY  WRITE 4711 00:2f:99 123 123", None),
            ("1: POSIX  ADVISORY  WRITE 4711 00:2f:98 120 120", None),
            ("1: -> POSIX  ADVISORY  WRITE 4711 00:2f:99 120 120", None),
            ("1: FLOCK  ADVISORY  WRITE 4711 00:2f:99 0 EOF", None),
            ("1: OFDLCK ADVISORY  WRITE -1 00:2f:99 120 120", None),
            ("", None),
        ] {
            assert_eq!(holder(line, 99), pid, "{line}");
        }
    }
}
