//! The file system rows: what is done, on a freshly mounted session, and what of it is measured.
//!
//! A row may give several measures that follow from each other (cold, then warm; create, then rename, then unlink). The
//! rows themselves are in `data`, `metadata`, `changes` and `programs`.

use std::path::PathBuf;

use anyhow::Result;

use super::corpus::Corpus;
use super::fio::{self, Job};
use super::groups::Group;
use super::session::{Session, Span};
use super::settings::{Mode, Sizes};
use super::stats::median;
use super::{changes, data, metadata, programs};

/// Passes over what is cached, which may be too short to be measured once: at least so many, and more up to a second bound
/// until they have taken [`WARM_SECONDS`] together; fewer where they are long.
const WARM_PASSES: std::ops::Range<usize> = 3..15;
const WARM_SECONDS: f64 = 0.25;
const LONG_SECONDS: f64 = 1.0;

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
    pub group: Group,
    pub measures: &'static [Measure],
    pub run: fn(&mut Case<'_>) -> Result<()>,
    /// Left out of quick mode.
    pub full_only: bool,
}

impl Row {
    pub fn runs_in(&self, mode: Mode) -> bool {
        mode != Mode::Quick || !self.full_only
    }

    pub fn name(&self) -> &'static str {
        self.measures[0].id
    }
}

/// Every row, in the order of the page.
pub fn all() -> impl Iterator<Item = &'static Row> {
    [data::ROWS, metadata::ROWS, changes::ROWS, programs::ROWS]
        .into_iter()
        .flatten()
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

pub const fn time(id: &'static str, title: &'static str) -> Measure {
    Measure {
        id,
        title,
        unit: "s",
        better: Better::Less,
    }
}

pub const fn rate(id: &'static str, title: &'static str, unit: &'static str) -> Measure {
    Measure {
        id,
        title,
        unit,
        better: Better::More,
    }
}

pub const fn row(
    group: Group,
    measures: &'static [Measure],
    run: fn(&mut Case<'_>) -> Result<()>,
) -> Row {
    Row {
        group,
        measures,
        run,
        full_only: false,
    }
}

impl Case<'_> {
    pub fn found(&mut self, measure: &'static str, span: Span) {
        self.found.push(Found {
            measure,
            value: span.seconds,
            daemon_cpu: span.daemon_cpu,
        });
    }

    pub fn timed(
        &mut self,
        measure: &'static str,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let ((), span) = self.session.timed(work)?;
        self.found(measure, span);
        Ok(())
    }

    /// The same work with nothing cached, then with everything.
    pub fn cold_and_warm(
        &mut self,
        cold: &'static str,
        warm: &'static str,
        work: impl Fn() -> Result<()>,
    ) -> Result<()> {
        self.session.arena.drop_caches()?;
        self.timed(cold, &work)?;
        self.warm(warm, work)
    }

    /// The median of several passes, what they need having been read before.
    pub fn warm(&mut self, measure: &'static str, work: impl Fn() -> Result<()>) -> Result<()> {
        let mut spans: Vec<Span> = Vec::new();
        let enough = |spans: &[Span]| {
            let taken: f64 = spans.iter().map(|span| span.seconds).sum();
            spans.len() >= WARM_PASSES.end
                || taken >= LONG_SECONDS
                || (spans.len() >= WARM_PASSES.start && taken >= WARM_SECONDS)
        };
        while !enough(&spans) {
            spans.push(self.session.timed(&work)?.1);
        }
        let middle =
            |of: fn(&Span) -> Option<f64>| median(&spans.iter().filter_map(of).collect::<Vec<_>>());
        let seconds = middle(|span| Some(span.seconds)).unwrap_or_default();
        self.found(
            measure,
            Span {
                seconds,
                daemon_cpu: middle(|span| span.daemon_cpu),
            },
        );
        Ok(())
    }

    /// Small blocks are counted, large ones weighed.
    pub fn fio(&mut self, measure: &'static str, job: &Job<'_>) -> Result<()> {
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

    /// Small files of the lower tree, in random order.
    pub fn small(&self, count: usize) -> Vec<PathBuf> {
        self.corpus
            .small
            .iter()
            .take(count)
            .map(|path| self.session.lower(path))
            .collect()
    }
}
