//! Where the benchmark runs: in a mount and a process namespace of its own, with a directory of its own for everything.
//!
//! Whatever it has mounted or started is gone when it is, however it ends: finished, failed, interrupted or killed. The
//! kernel then kills all that is left in the process namespace, mounts go with their namespace, the loop device with the
//! last mount; the shell that waits outside removes the directory.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

/// Says that the namespaces are there already.
const INSIDE: &str = "OVL_BENCH_INSIDE";

/// Starts what it is given and waits; a signal ends both, the inner one by death of its parent. The inner shell is there to
/// reap what daemons leave.
const OUTSIDE: &str = r#"
place=$(mktemp -d "${TMPDIR:-/tmp}/ovl-bench.XXXXXX") || exit 1
trap 'rm -rf "$place"' EXIT
child=
ended() { trap '' INT TERM HUP; [ -z "$child" ] || { kill -KILL "$child"; wait "$child"; } 2> /dev/null; exit "$1"; }
trap 'ended 130' INT
trap 'ended 143' TERM
trap 'ended 129' HUP
TMPDIR=$place setpriv --pdeathsig=KILL unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
    sh -c '"$0" "$@"; exit $?' "$@" &
child=$!
wait "$child"
"#;

pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program again, with the same words, inside. Returns only if it cannot.
pub fn enter() -> Result<()> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let error = Command::new("sh")
        .args(["-c", OUTSIDE, "ovl-bench"])
        .arg(std::env::current_exe()?)
        .args(words)
        .env(INSIDE, "1")
        .exec();
    Err(error).context("starting sh")
}
