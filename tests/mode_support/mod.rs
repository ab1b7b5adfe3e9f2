//! The ways a mount can be served, for suites that run in each of them. `OVL_MODES=cached,passthrough` chooses.
#![allow(dead_code)] // each test file uses its part

use std::io::Write;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub name: &'static str,
    /// Further words for `ovl mount`.
    pub words: &'static [&'static str],
    /// Linux since which it can be had.
    since: (u32, u32),
}

pub const CACHED: Mode = mode("cached", &[], (0, 0));
pub const THROUGH: Mode = mode("no-writeback", &["-o", "writeback=0"], (0, 0));
pub const PASSTHROUGH: Mode = mode("passthrough", &["--io", "passthrough"], (6, 9));
pub const IO_URING: Mode = mode("io_uring", &["-o", "io_uring=on"], (6, 14));
pub const BOTH: Mode = mode(
    "io_uring-passthrough",
    &["-o", "io_uring=on,io=passthrough"],
    (6, 14),
);
pub const KERNEL: Mode = mode("kernel", &["--merge", "kernel"], (0, 0));

pub const ALL: [Mode; 6] = [CACHED, THROUGH, PASSTHROUGH, IO_URING, BOTH, KERNEL];

const fn mode(name: &'static str, words: &'static [&'static str], since: (u32, u32)) -> Mode {
    Mode { name, words, since }
}

impl Mode {
    /// May its suites run here? What cannot be had is told, past what the test runner keeps to itself.
    pub fn is_here(&self) -> bool {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
        let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
        if version >= self.since {
            return true;
        }
        let told = format!(
            "NOT TESTED: {}, which Linux {release} does not have\n",
            self.name
        );
        let _ = std::io::stderr().write_all(told.as_bytes());
        false
    }

    /// Is it among those that the tester wants, `default` if nothing is said, and to be had?
    pub fn is_wanted(&self, default: bool) -> bool {
        let wanted = match std::env::var("OVL_MODES") {
            Ok(list) => {
                let known = |name: &str| ALL.iter().any(|mode| mode.name == name);
                let unknown = list.split(',').find(|name| !known(name));
                assert_eq!(unknown, None, "OVL_MODES: no such mode");
                list.split(',').any(|name| name == self.name)
            }
            Err(_) => default,
        };
        wanted && self.is_here()
    }
}
