//! The file system rows: what is done, on a freshly mounted session, and what of it is measured.
//!
//! A row may give several measures that follow from each other (cold, then warm; create, then rename, then unlink).

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::command::{command, drain, run};
use crate::corpus::{BIG, CHANGES, Corpus, DEBIAN};
use crate::drivers;
use crate::fio::{self, Job, Until};
use crate::settings::{Mode, Sizes};
use crate::stats::median;
use crate::systems::{Session, Span};

/// Passes over what is cached, which may be too short to be measured once: at least so many, and more up to a second bound
/// until they have taken [`WARM_SECONDS`] together.
const WARM_PASSES: std::ops::Range<usize> = 3..15;
const WARM_SECONDS: f64 = 0.25;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// Short and stable: the key in results and targets.
    pub id: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub better: Better,
}

pub struct Row {
    pub measures: &'static [Measure],
    run: fn(&mut Case<'_>) -> Result<()>,
    /// Left out of shorter modes.
    pub full_only: bool,
}

impl Row {
    pub fn runs_in(&self, mode: Mode) -> bool {
        mode != Mode::Quick || !self.full_only
    }

    pub fn run(&self, case: &mut Case<'_>) -> Result<()> {
        (self.run)(case)
    }

    pub fn name(&self) -> &'static str {
        self.measures[0].id
    }
}

/// A row's run on one system.
pub struct Case<'a> {
    pub session: Session<'a>,
    pub corpus: &'a Corpus,
    pub sizes: &'a Sizes,
    pub found: Vec<Found>,
}

pub struct Found {
    pub measure: &'static str,
    pub value: f64,
    pub daemon_cpu: Option<f64>,
}

const fn time(id: &'static str, title: &'static str) -> Measure {
    Measure {
        id,
        title,
        unit: "s",
        better: Better::Less,
    }
}

const fn rate(id: &'static str, title: &'static str, unit: &'static str) -> Measure {
    Measure {
        id,
        title,
        unit,
        better: Better::More,
    }
}

const fn row(measures: &'static [Measure], run: fn(&mut Case<'_>) -> Result<()>) -> Row {
    Row {
        measures,
        run,
        full_only: false,
    }
}

pub const ROWS: &[Row] = &[
    row(
        &[
            rate("read.seq", "sequential read, warm", "MB/s"),
            rate("read.rand", "4k random read, warm", "IOPS"),
        ],
        data_reads,
    ),
    row(
        &[rate("write.seq", "sequential write", "MB/s")],
        sequential_write,
    ),
    row(
        &[rate("write.rand", "4k random write", "IOPS")],
        random_write,
    ),
    row(
        &[rate("write.fsync", "4k write + fsync", "IOPS")],
        fsync_write,
    ),
    row(
        &[
            time("find.cold", "find, cold"),
            time("find.warm", "find, warm"),
        ],
        find,
    ),
    row(
        &[
            time("stat.cold", "stat, cold"),
            time("stat.warm", "stat, warm"),
        ],
        stat,
    ),
    row(
        &[
            time("open.cold", "open+read+close, lower, cold"),
            time("open.warm", "open+read+close, lower, warm"),
        ],
        open_lower,
    ),
    row(
        &[
            time("open.upper.cold", "open+read+close, upper, cold"),
            time("open.upper.warm", "open+read+close, upper, warm"),
        ],
        open_upper,
    ),
    row(
        &[
            time("tar.cold", "tar of a Debian root, cold"),
            time("tar.warm", "tar of a Debian root, warm"),
        ],
        tar,
    ),
    row(
        &[
            time("create", "create"),
            time("rename", "rename"),
            time("unlink", "unlink"),
        ],
        create_rename_unlink,
    ),
    row(&[time("unpack", "unpack a Debian root")], unpack),
    row(&[time("clone", "git clone")], clone),
    row(&[time("lower.unlink", "unlink lower files")], |case| {
        change_lower(case, "lower.unlink", drivers::unlink)
    }),
    Row {
        full_only: true,
        ..row(&[time("lower.chmod", "chmod lower files")], |case| {
            change_lower(case, "lower.chmod", drivers::chmod)
        })
    },
    Row {
        full_only: true,
        ..row(&[time("lower.append", "append to lower files")], |case| {
            change_lower(case, "lower.append", drivers::append)
        })
    },
    row(
        &[time(
            "copyup",
            "one byte written to the big lower file, fsync",
        )],
        copy_up,
    ),
];

impl Case<'_> {
    fn found(&mut self, measure: &'static str, span: Span) {
        self.found.push(Found {
            measure,
            value: span.seconds,
            daemon_cpu: span.daemon_cpu,
        });
    }

    fn timed(&mut self, measure: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let ((), span) = self.session.timed(work)?;
        self.found(measure, span);
        Ok(())
    }

    /// The same work with nothing cached, then with everything.
    fn cold_and_warm(
        &mut self,
        cold: &'static str,
        warm: &'static str,
        work: impl Fn() -> Result<()>,
    ) -> Result<()> {
        self.session.arena.drop_caches()?;
        self.timed(cold, &work)?;
        let mut spans: Vec<Span> = Vec::new();
        let enough = |spans: &[Span]| {
            let taken: f64 = spans.iter().map(|span| span.seconds).sum();
            spans.len() >= WARM_PASSES.end
                || (spans.len() >= WARM_PASSES.start && taken >= WARM_SECONDS)
        };
        while !enough(&spans) {
            spans.push(self.session.timed(&work)?.1);
        }
        let middle =
            |of: fn(&Span) -> Option<f64>| median(&spans.iter().filter_map(of).collect::<Vec<_>>());
        let seconds = middle(|span| Some(span.seconds)).unwrap_or_default();
        self.found(
            warm,
            Span {
                seconds,
                daemon_cpu: middle(|span| span.daemon_cpu),
            },
        );
        Ok(())
    }

    fn fio(&mut self, measure: &'static str, job: &Job<'_>) -> Result<()> {
        let (rate, span) = self.session.timed(|| fio::run(job))?;
        let value = match job.block {
            "4k" => rate.per_second,
            _ => rate.bytes_per_second / 1e6,
        };
        self.found.push(Found {
            measure,
            value,
            daemon_cpu: span.daemon_cpu,
        });
        Ok(())
    }

    fn small(&self, count: usize) -> Vec<PathBuf> {
        self.corpus
            .small
            .iter()
            .take(count)
            .map(|path| self.session.lower(path))
            .collect()
    }
}

fn data_reads(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.lower(BIG);
    drivers::warm(&file)?;
    let until = Until::Milliseconds(case.sizes.fio_ms);
    for (measure, pattern, block) in [("read.seq", "read", "1m"), ("read.rand", "randread", "4k")] {
        case.fio(
            measure,
            &Job {
                file: &file,
                pattern,
                block,
                fsync: false,
                until,
            },
        )?;
    }
    Ok(())
}

fn sequential_write(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    let until = Until::Bytes(case.sizes.sequential_write);
    case.fio(
        "write.seq",
        &Job {
            file: &file,
            pattern: "write",
            block: "1m",
            fsync: false,
            until,
        },
    )
}

fn random_write(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    drivers::filled(&file, case.sizes.random_write)?;
    let until = Until::Milliseconds(case.sizes.fio_ms);
    case.fio(
        "write.rand",
        &Job {
            file: &file,
            pattern: "randwrite",
            block: "4k",
            fsync: false,
            until,
        },
    )
}

fn fsync_write(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.scratch()?.join("data");
    let until = Until::Bytes(case.sizes.fsyncs * 4096);
    case.fio(
        "write.fsync",
        &Job {
            file: &file,
            pattern: "write",
            block: "4k",
            fsync: true,
            until,
        },
    )
}

fn find(case: &mut Case<'_>) -> Result<()> {
    let root = case.session.lower("");
    case.cold_and_warm("find.cold", "find.warm", || {
        drain(&mut command("find", [&root])).map(drop)
    })
}

fn stat(case: &mut Case<'_>) -> Result<()> {
    let paths = case.small(case.sizes.stats);
    case.cold_and_warm("stat.cold", "stat.warm", || drivers::stat(&paths))
}

fn open_lower(case: &mut Case<'_>) -> Result<()> {
    let paths = case.small(case.sizes.opens);
    case.cold_and_warm("open.cold", "open.warm", || drivers::read(&paths))
}

fn open_upper(case: &mut Case<'_>) -> Result<()> {
    let paths = drivers::names(&case.session.scratch()?, case.sizes.opens)?;
    for path in &paths {
        fs::write(path, [b'u'; 2000])?;
    }
    case.session.remount()?;
    case.cold_and_warm("open.upper.cold", "open.upper.warm", || {
        drivers::read(&paths)
    })
}

fn tar(case: &mut Case<'_>) -> Result<()> {
    let root = case.session.lower(DEBIAN);
    case.cold_and_warm("tar.cold", "tar.warm", || {
        drain(command("tar", ["-cf", "-", "-C"]).arg(&root).arg(".")).map(drop)
    })
}

fn create_rename_unlink(case: &mut Case<'_>) -> Result<()> {
    let paths = drivers::names(&case.session.scratch()?, case.sizes.creates)?;
    case.session.arena.settle()?;
    case.timed("create", || drivers::create(&paths))?;
    let (renamed, span) = case.session.timed(|| drivers::rename(&paths))?;
    case.found("rename", span);
    case.timed("unlink", || drivers::unlink(&renamed))
}

fn unpack(case: &mut Case<'_>) -> Result<()> {
    let to = case.session.scratch()?;
    drivers::warm(&case.corpus.archive)?;
    let archive = &case.corpus.archive;
    case.timed("unpack", || {
        run(command("tar", ["-xpf"]).arg(archive).arg("-C").arg(&to))
    })
}

fn clone(case: &mut Case<'_>) -> Result<()> {
    let to = case.session.scratch()?.join("clone");
    let repository = &case.corpus.repository;
    case.timed("clone", || {
        let mut git = command("git", ["clone", "-q", "--no-local"]);
        run(git
            .arg(repository)
            .arg(&to)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null"))
    })
}

fn change_lower(
    case: &mut Case<'_>,
    measure: &'static str,
    change: fn(&[PathBuf]) -> Result<()>,
) -> Result<()> {
    let paths = drivers::files_below(&case.session.changeable(CHANGES)?)?;
    case.timed(measure, || change(&paths))
}

/// On the plain file system, where there is nothing to copy up, the file is copied first, within the time.
fn copy_up(case: &mut Case<'_>) -> Result<()> {
    let file = case.session.lower(BIG);
    drivers::warm(&file)?;
    match case.session.is_base() {
        false => case.timed("copyup", || drivers::change_one_byte(&file)),
        true => {
            let copy = case.session.scratch()?.join("copy");
            case.timed("copyup", || {
                run(command("cp", ["--reflink=never"]).arg(&file).arg(&copy))?;
                drivers::change_one_byte(&copy)
            })
        }
    }
}
