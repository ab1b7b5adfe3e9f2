//! What the figures were measured on and with.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::command::{command, output};
use super::results::Machine;

/// Programs whose version matters, and how they are asked.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("fio", &["--version"]),
    ("tar", &["--version"]),
    ("git", &["--version"]),
    ("find", &["--version"]),
    ("sqlite3", &["--version"]),
    ("cargo", &["--version"]),
    ("dpkg", &["--version"]),
    ("dbench", &["--version"]),
];

pub fn machine() -> Result<Machine> {
    let value = |file: &str, key: &str| -> Result<String> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        Ok(line
            .unwrap_or("unknown")
            .trim_start_matches([' ', '\t', ':', '='])
            .trim_matches('"')
            .to_owned())
    };
    let kib: u64 = value("/proc/meminfo", "MemTotal")?
        .trim_end_matches(" kB")
        .parse()?;
    let version = |(program, words): &(&str, &[&str])| -> String {
        let said = command(program, *words).output();
        let said = said.map(|said| [said.stdout, said.stderr].concat());
        let line = said.map(|said| String::from_utf8_lossy(&said).into_owned());
        match line
            .as_deref()
            .unwrap_or_default()
            .split([' ', '-', '\n'])
            .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        {
            Some(number) => format!("{program} {number}"),
            None => format!("{program} (no version)"),
        }
    };
    Ok(Machine {
        processor: value("/proc/cpuinfo", "model name")?,
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: kib.div_ceil(1 << 20),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        distribution: value("/etc/os-release", "PRETTY_NAME")?,
        programs: PROGRAMS.iter().map(version).collect(),
    })
}

/// The commit checked out, with a plus when files differ from it.
pub fn commit() -> String {
    let git = |words: &[&str]| {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        output(command("git", ["-C"]).arg(here).args(words))
    };
    let Ok(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "src",
        "benches",
        "Cargo.toml",
        "Cargo.lock",
    ]);
    let plus = if changed.is_ok_and(|list| list.is_empty()) {
        ""
    } else {
        "+"
    };
    format!("{}{plus}", hash.trim())
}

/// Now, UTC, to the minute.
pub fn date() -> Result<String> {
    Ok(output(&mut command("date", ["-u", "+%Y-%m-%d %H:%M"]))?
        .trim()
        .to_owned())
}
