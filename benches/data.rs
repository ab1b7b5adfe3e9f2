//! Rows about the bytes of few, large files: fio with several engines, and dbench.

use anyhow::{Context, Result};

use super::command::{command, output};
use super::corpus::BIG;
use super::drivers;
use super::fio::{Engine, Job, Until};
use super::groups::Group;
use super::rows::{Case, Found, Row, rate, row};

pub const ROWS: &[Row] = &[
    row(
        Group::Data,
        &[
            rate("read.seq", "sequential read, warm", "MB/s"),
            rate("read.rand", "4k random read, warm", "IOPS"),
            rate("read.rand.uring", "4k random read, warm, io_uring", "IOPS"),
            rate("read.mmap", "mmap random read, warm", "IOPS"),
        ],
        warm_reads,
    ),
    row(
        Group::Data,
        &[rate("read.cold", "sequential read, cold", "MB/s")],
        cold_read,
    ),
    Row {
        full_only: true,
        ..row(
            Group::Data,
            &[
                rate("read.seq.uring", "sequential read, warm, io_uring", "MB/s"),
                rate("read.seq.direct", "sequential read, direct", "MB/s"),
                rate("read.rand.direct", "4k random read, direct", "IOPS"),
                rate(
                    "read.rand.direct.uring",
                    "4k random read, direct, io_uring",
                    "IOPS",
                ),
            ],
            other_reads,
        )
    },
    row(
        Group::Data,
        &[
            rate(
                "changed.seq",
                "sequential read of a changed file, warm",
                "MB/s",
            ),
            rate(
                "changed.rand",
                "4k random read of a changed file, warm",
                "IOPS",
            ),
        ],
        changed_reads,
    ),
    row(
        Group::Data,
        &[rate("write.seq", "sequential write", "MB/s")],
        |case| sequential_write(case, "write.seq", Engine::Psync, false),
    ),
    Row {
        full_only: true,
        ..row(
            Group::Data,
            &[rate(
                "write.seq.uring",
                "sequential write, io_uring",
                "MB/s",
            )],
            |case| sequential_write(case, "write.seq.uring", Engine::Uring, false),
        )
    },
    Row {
        full_only: true,
        ..row(
            Group::Data,
            &[rate("write.seq.direct", "sequential write, direct", "MB/s")],
            |case| sequential_write(case, "write.seq.direct", Engine::Psync, true),
        )
    },
    row(
        Group::Data,
        &[rate("write.rand", "4k random write", "IOPS")],
        |case| random_write(case, "write.rand", Engine::Psync, false),
    ),
    Row {
        full_only: true,
        ..row(
            Group::Data,
            &[rate(
                "write.rand.uring",
                "4k random write, io_uring",
                "IOPS",
            )],
            |case| random_write(case, "write.rand.uring", Engine::Uring, false),
        )
    },
    Row {
        full_only: true,
        ..row(
            Group::Data,
            &[rate("write.rand.direct", "4k random write, direct", "IOPS")],
            |case| random_write(case, "write.rand.direct", Engine::Psync, true),
        )
    },
    Row {
        full_only: true,
        ..row(
            Group::Data,
            &[rate(
                "write.rand.direct.uring",
                "4k random write, direct, io_uring",
                "IOPS",
            )],
            |case| random_write(case, "write.rand.direct.uring", Engine::Uring, true),
        )
    },
    row(
        Group::Data,
        &[rate("write.fsync", "4k write + fsync", "IOPS")],
        fsync_write,
    ),
    row(
        Group::Data,
        &[rate("dbench", "dbench, 2 clients", "MB/s")],
        dbench,
    ),
];

fn warm_reads(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.lower(BIG);
    drivers::warm(&file)?;
    let until = Until::Milliseconds(case.sizes.fio_ms);
    case.fio("read.seq", &Job::new(&file, "read", "1m", until))?;
    let random = Job::new(&file, "randread", "4k", until);
    case.fio("read.rand", &random)?;
    case.fio(
        "read.rand.uring",
        &Job {
            engine: Engine::Uring,
            ..random
        },
    )?;
    // Each page once: later accesses to a mapped page ask no file system.
    case.fio(
        "read.mmap",
        &Job {
            engine: Engine::Mmap,
            until: Until::Bytes(case.sizes.big_file),
            ..random
        },
    )
}

/// Of a file that is in the upper.
fn changed_reads(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    drivers::filled(&file, case.sizes.sequential_write)?;
    drivers::warm(&file)?;
    let until = Until::Milliseconds(case.sizes.fio_ms);
    case.fio("changed.seq", &Job::new(&file, "read", "1m", until))?;
    case.fio("changed.rand", &Job::new(&file, "randread", "4k", until))
}

fn cold_read(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.lower(BIG);
    case.session.arena.drop_caches()?;
    let until = Until::Bytes(case.sizes.big_file);
    case.fio("read.cold", &Job::new(&file, "read", "1m", until))
}

fn other_reads(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.lower(BIG);
    drivers::warm(&file)?;
    let until = Until::Milliseconds(case.sizes.fio_ms);
    let (long, short) = (
        Job::new(&file, "read", "1m", until),
        Job::new(&file, "randread", "4k", until),
    );
    let engine = Engine::Uring;
    case.fio("read.seq.uring", &Job { engine, ..long })?;
    let direct = true;
    case.fio("read.seq.direct", &Job { direct, ..long })?;
    case.fio("read.rand.direct", &Job { direct, ..short })?;
    case.fio(
        "read.rand.direct.uring",
        &Job {
            direct,
            engine,
            ..short
        },
    )
}

fn sequential_write(
    case: &mut Case<'_>,
    measure: &'static str,
    engine: Engine,
    direct: bool,
) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    let until = Until::Bytes(case.sizes.sequential_write);
    case.fio(
        measure,
        &Job {
            engine,
            direct,
            ..Job::new(&file, "write", "1m", until)
        },
    )
}

fn random_write(
    case: &mut Case<'_>,
    measure: &'static str,
    engine: Engine,
    direct: bool,
) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    drivers::filled(&file, case.sizes.random_write)?;
    let until = Until::Milliseconds(case.sizes.fio_ms);
    case.fio(
        measure,
        &Job {
            engine,
            direct,
            ..Job::new(&file, "randwrite", "4k", until)
        },
    )
}

fn fsync_write(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    let until = Until::Bytes(case.sizes.fsyncs * 4096);
    case.fio(
        "write.fsync",
        &Job {
            fsync: true,
            ..Job::new(&file, "write", "4k", until)
        },
    )
}

/// A file server's load as recorded long ago: many calls of every kind, few bytes each.
fn dbench(case: &mut Case<'_>) -> Result<()> {
    let to = case.session.scratch()?;
    let seconds = case.sizes.dbench_seconds.to_string();
    let (said, span) = case.session.timed(|| {
        output(
            command("dbench", ["-t", &seconds, "-D"])
                .arg(&to)
                .args(["-c", LOAD, CLIENTS]),
        )
    })?;
    case.found.push(Found {
        measure: "dbench",
        value: throughput(&said).context("dbench tells no throughput")?,
        daemon_cpu: span.daemon_cpu,
    });
    Ok(())
}

const CLIENTS: &str = "2";
/// Where Debian puts what dbench plays.
const LOAD: &str = "/usr/share/dbench/client.txt";

/// MB/s, from dbench's last line: `Throughput 123.4 MB/sec  2 clients  2 procs  max_latency=5.678 ms`.
fn throughput(said: &str) -> Option<f64> {
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Throughput "))?;
    line.split(' ')
        .next()?
        .parse()
        .ok()
        .filter(|rate| *rate > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dbench_is_understood() {
        let said = "   2      1234   456.78 MB/sec\n\nThroughput 321.5 MB/sec  2 clients  2 procs  max_latency=5.678 ms\n";
        assert_eq!(throughput(said), Some(321.5));
        assert_eq!(throughput("Throughput 0 MB/sec"), None);
        assert_eq!(throughput("out of memory"), None);
    }
}
