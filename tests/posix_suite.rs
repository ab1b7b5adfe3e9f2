//! The public suites, on real mounts: pjdfstest (POSIX behaviour of every call, as root and as others) and fsx (random
//! data operations, each read checked). No list of expected failures. What is skipped, and why, is in docs/limits.md.
//!
//! `OVL_FSX_SEEDS` and `OVL_FSX_OPERATIONS` make fsx go further: `make torture` does. `OVL_MODES` chooses how the mounts are
//! served; not said, fsx runs in every mode and pjdfstest in those that differ in what it looks at.

mod common;
mod mode_support;
mod uring_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Sandbox;
use mode_support::{ALL, BOTH, CACHED, IO_URING, Mode, PASSTHROUGH, THROUGH};

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

fn pjdfstest(mode: Mode, default: bool, populate: impl FnOnce(&Path)) {
    if !mode.is_wanted(default) {
        return;
    }
    uring_support::permit_io_uring();
    let s = Sandbox::new();
    let (lower, upper, mnt, second) = (
        s.mkdir("lower"),
        s.mkdir("upper"),
        s.mkdir("mnt"),
        s.mkdir("second"),
    );
    populate(&lower);
    let config = s.write("pjdfstest.toml", PJDFSTEST);
    mount(&s, mode, [&lower, &upper, &mnt]);
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
    pjdfstest(CACHED, true, |_| {});
}

#[test]
fn pjdfstest_over_a_populated_lower() {
    pjdfstest(CACHED, true, populated);
}

#[test]
fn pjdfstest_over_io_uring() {
    pjdfstest(IO_URING, true, populated);
}

#[test]
fn pjdfstest_with_passthrough() {
    pjdfstest(PASSTHROUGH, true, populated);
}

#[test]
fn pjdfstest_without_write_back() {
    pjdfstest(THROUGH, false, populated);
}

#[test]
fn pjdfstest_with_passthrough_over_io_uring() {
    pjdfstest(BOTH, false, populated);
}

fn mount(s: &Sandbox, mode: Mode, places: [&Path; 3]) {
    let words = mode.words.iter().map(std::ffi::OsStr::new);
    let places = places.into_iter().map(Path::as_os_str);
    s.run(["mount".as_ref()].into_iter().chain(words).chain(places));
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

#[test]
fn fsx_finds_every_byte_where_it_was_put() {
    for mode in ALL {
        if mode.is_wanted(true) {
            println!("mode: {}", mode.name);
            uring_support::permit_io_uring();
            fsx(mode);
        }
    }
}

/// On files that are new and files that begin in the lower.
fn fsx(mode: Mode) {
    let s = Sandbox::new();
    let (lower, upper, mnt) = (s.mkdir("lower"), s.mkdir("upper"), s.mkdir("mnt"));
    let config = s.write("fsx.toml", FSX);
    let seeds = setting("OVL_FSX_SEEDS", 2);
    let operations = if mode == CACHED { 2_000 } else { 500 };
    for seed in 0..seeds {
        fs::write(
            lower.join(format!("f{seed}")),
            vec![seed as u8 + 1; 100_000],
        )
        .unwrap();
    }
    mount(&s, mode, [&lower, &upper, &mnt]);
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
                &setting("OVL_FSX_OPERATIONS", operations).to_string(),
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
