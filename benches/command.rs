//! Running other programs: quietly, and with their words in the error when they fail.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program with its words.
pub fn command<I>(program: impl AsRef<OsStr>, words: I) -> Command
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null());
    command
}

/// Runs it and gives its standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it for its effect.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs it and reads its output to nowhere. A pipe, because tar does not read files when it sees that it writes to
/// /dev/null.
pub fn drain(command: &mut Command) -> Result<u64> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut pipe = child.stdout.take().context("the pipe just made")?;
    let mut buffer = vec![0; 1 << 17];
    let mut total = 0;
    loop {
        match pipe.read(&mut buffer)? {
            0 => break,
            n => total += n as u64,
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(total)
}

/// What a run of a program cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub seconds: f64,
    /// User and system time of it and the children it waited for.
    pub cpu: f64,
    /// Largest resident set of any one of these processes, bytes.
    pub memory: u64,
}

/// Runs it under time(1), which asks wait4(2) for the peak memory.
pub fn cost(command: &Command, note: &Path) -> Result<Cost> {
    let mut timed = Command::new("/usr/bin/time");
    timed.args(["-q", "-f", "%e %U %S %M", "-o"]).arg(note);
    timed
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            timed.env(key, value);
        }
    }
    let started = std::time::Instant::now();
    run(&mut timed)?;
    let seconds = started.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(note)?;
    let numbers: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let [_, user, system, kib] = numbers[..] else {
        bail!("time(1) wrote {text:?}");
    };
    Ok(Cost {
        seconds,
        cpu: user + system,
        memory: (kib as u64) << 10,
    })
}

/// Disk space a tree takes, bytes.
pub fn disk_usage(path: &Path) -> Result<u64> {
    let text = output(command("du", ["-s", "-B1"]).arg(path))?;
    let word = text.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("du said {text:?}"))
}
