//! Data rows: fio, told everything in words, heard as JSON.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::command::{command, output};

/// One job on one existing file.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub file: &'a Path,
    /// fio's `rw`.
    pub pattern: &'a str,
    pub block: &'a str,
    pub engine: Engine,
    /// Around the page cache, with O_DIRECT.
    pub direct: bool,
    /// fsync after each write.
    pub fsync: bool,
    pub until: Until,
}

/// How fio asks for each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// pread and pwrite, one after another.
    Psync,
    /// io_uring with [`DEPTH`] requests on their way.
    Uring,
    /// Through a mapping, one page after another.
    Mmap,
}

/// Requests under way with io_uring.
pub const DEPTH: usize = 16;

impl<'a> Job<'a> {
    /// Buffered pread or pwrite.
    pub fn new(file: &'a Path, pattern: &'a str, block: &'a str, until: Until) -> Self {
        Self {
            file,
            pattern,
            block,
            engine: Engine::Psync,
            direct: false,
            fsync: false,
            until,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Again and again for so many milliseconds.
    Milliseconds(u64),
    /// So many bytes, from the start.
    Bytes(u64),
}

/// What one direction of a job reached.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub bytes_per_second: f64,
    pub per_second: f64,
}

pub fn run(job: &Job<'_>) -> Result<Rate> {
    let mut fio = command(
        "fio",
        ["--name=row", "--output-format=json", "--fallocate=none"],
    );
    // By default fio drops the file from the page cache first.
    fio.args(["--invalidate=0", "--randrepeat=0", "--group_reporting"]);
    fio.arg(format!("--filename={}", job.file.display()));
    fio.arg(format!("--rw={}", job.pattern))
        .arg(format!("--bs={}", job.block));
    match job.engine {
        Engine::Psync => fio.arg("--ioengine=psync"),
        Engine::Uring => fio.args(["--ioengine=io_uring", &format!("--iodepth={DEPTH}")]),
        Engine::Mmap => fio.arg("--ioengine=mmap"),
    };
    if job.direct {
        fio.arg("--direct=1");
    }
    if job.fsync {
        fio.arg("--fsync=1");
    }
    match job.until {
        Until::Milliseconds(ms) => fio.args(["--time_based", &format!("--runtime={ms}ms")]),
        Until::Bytes(bytes) => fio.arg(format!("--size={bytes}")),
    };
    // fio keeps a state file where it runs.
    fio.current_dir(std::env::temp_dir());
    let said = output(&mut fio)?;
    // Warnings may come before the object.
    let object = &said[said.find('{').context("fio printed no JSON")?..];
    let value: Value = serde_json::from_str(object).context("fio's JSON")?;
    let side = if job.pattern.contains("read") {
        "read"
    } else {
        "write"
    };
    let number = |name: &str| {
        value["jobs"][0][side][name]
            .as_f64()
            .with_context(|| format!("fio tells no {name}"))
    };
    Ok(Rate {
        bytes_per_second: number("bw_bytes")?,
        per_second: number("iops")?,
    })
}
