//! The public suites, on real mounts: pjdfstest (POSIX behaviour of every call, as root and as others) and fsx (random
//! data operations, each read checked). No list of expected failures. What is skipped, and why, is in docs/limits.md.
//!
//! `OVL_FSX_SEEDS` and `OVL_FSX_OPERATIONS` make fsx go further: `make torture` does.

mod common;
mod uring_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Sandbox;

/// A program of the Rust registry that `fixtures/setup.sh test` puts below target/tools.
fn tool(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("target/tools/bin")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: run fixtures/setup.sh test",
        path.display()
    );
    path
}

fn setting(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().map_or(default, |v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {v}"))
    })
}

const PJDFSTEST: &str = r#"
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["games", "games"], ["daemon", "daemon"]]
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
"#;

/// `link_count_max`: makes links until the file system has no more, and gives up where the limit is higher than it tries.
/// `erofs_*`: need `mount -o remount,ro`, which mount(8) hands to a helper program for every FUSE file system; that a
/// read-only mount refuses every change is in tests/engine.rs.
fn is_expected_skip(name: &str) -> bool {
    name == "link::link_count_max" || name.contains("::erofs_")
}

fn pjdfstest(io_uring: &str, populate: impl FnOnce(&Path)) {
    let s = Sandbox::new();
    let (lower, upper, mnt, second) = (
        s.mkdir("lower"),
        s.mkdir("upper"),
        s.mkdir("mnt"),
        s.mkdir("second"),
    );
    populate(&lower);
    let config = s.write("pjdfstest.toml", PJDFSTEST);
    s.run([
        "mount".as_ref(),
        "-o".as_ref(),
        io_uring.as_ref(),
        lower.as_os_str(),
        upper.as_os_str(),
        mnt.as_os_str(),
    ]);
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&second)
        .status()
        .unwrap();
    assert!(mounted.success());
    let out = Command::new(tool("pjdfstest"))
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(&mnt)
        .arg("-s")
        .arg(&second)
        .output()
        .unwrap();
    let unmounted = Command::new("umount").arg(&second).status().unwrap();
    assert!(unmounted.success());
    s.run(["umount".as_ref(), mnt.as_os_str()]);
    let text = String::from_utf8_lossy(&out.stdout);
    let of = |end: &str| {
        text.lines()
            .filter_map(|l| l.strip_suffix(end))
            .map(str::trim)
            .collect::<Vec<_>>()
    };
    assert!(
        of(" FAILED").is_empty() && out.status.success(),
        "failed: {:?}\n{text}",
        of(" FAILED")
    );
    let skipped: Vec<_> = of(" skipped")
        .into_iter()
        .filter(|name| !is_expected_skip(name))
        .collect();
    assert!(skipped.is_empty(), "skipped: {skipped:?}");
    assert!(of(" ok").len() >= 384, "only {} ran", of(" ok").len());
}

#[test]
fn pjdfstest_over_an_empty_lower() {
    pjdfstest("io_uring=off", |_| {});
}

#[test]
fn pjdfstest_over_a_populated_lower() {
    pjdfstest("io_uring=off", populated);
}

/// Where the kernel has it; else this is the test above once more.
#[test]
fn pjdfstest_over_io_uring() {
    uring_support::permit_io_uring();
    pjdfstest("io_uring=auto", populated);
}

fn populated(lower: &Path) {
    for dir in ["a", "a/b", "c"] {
        fs::create_dir(lower.join(dir)).unwrap();
        for i in 0..20 {
            fs::write(lower.join(dir).join(format!("f{i}")), "x").unwrap();
        }
    }
}

const FSX: &str = r#"
flen = 262144
nomsyncafterwrite = false
[opsize]
# posix_fallocate of no bytes is EINVAL by its own rules, which fsx takes for a file system without it.
min = 1
max = 65536
[weights]
close_open = 1
invalidate = 1
mapread = 1
mapwrite = 1
read = 1
write = 1
truncate = 1
fsync = 0.1
fdatasync = 0.1
posix_fallocate = 1
punch_hole = 1
sendfile = 1
posix_fadvise = 1
copy_file_range = 1
"#;

/// Files that are new and files that begin in the lower.
#[test]
fn fsx_finds_every_byte_where_it_was_put() {
    let s = Sandbox::new();
    let (lower, upper, mnt) = (s.mkdir("lower"), s.mkdir("upper"), s.mkdir("mnt"));
    let config = s.write("fsx.toml", FSX);
    let seeds = setting("OVL_FSX_SEEDS", 2);
    for seed in 0..seeds {
        fs::write(
            lower.join(format!("f{seed}")),
            vec![seed as u8 + 1; 100_000],
        )
        .unwrap();
    }
    s.run([
        "mount".as_ref(),
        lower.as_os_str(),
        upper.as_os_str(),
        mnt.as_os_str(),
    ]);
    for seed in 0..seeds {
        // Every other one is new.
        let name = if seed % 2 == 0 {
            format!("f{seed}")
        } else {
            format!("new{seed}")
        };
        let out = Command::new(tool("fsx"))
            .arg("-f")
            .arg(&config)
            .args([
                "-S",
                &seed.to_string(),
                "-N",
                &setting("OVL_FSX_OPERATIONS", 2_000).to_string(),
                "-P",
            ])
            .arg(s.mkdir("artifacts"))
            .arg(mnt.join(name))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(
            out.status.success(),
            "seed {seed}: {text}{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    s.run(["umount".as_ref(), mnt.as_os_str()]);
}
