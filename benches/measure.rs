//! A run: the file system it happens on, then each part that was asked for. What fails is noted, and the rest goes on.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;

use super::arena::Arena;
use super::corpus::Corpus;
use super::groups::Group;
use super::results::{Failure, Results, RowResults, Stamp, SystemName};
use super::rows::{self, Better, Case, Row};
use super::session::Session;
use super::settings::{Mode, Sizes};
use super::stats::Random;
use super::systems::{self, System};
use super::{Words, containers, importers, machine, memory};

/// Repetitions that are done however long they take.
const LEAST_REPETITIONS: usize = 2;

/// Letters of a failure that are kept; programs can say a lot.
const MOST_WORDS: usize = 400;

/// What all parts of a run work with.
struct Run<'a> {
    sizes: &'a Sizes,
    arena: &'a Arena,
    random: Random,
    failures: Vec<Failure>,
}

/// Measures what `words` ask for. The results hold only that.
pub fn measure(words: &Words) -> Result<Results> {
    let started = Instant::now();
    let sizes = words.sizes();
    let mut stamp = Stamp {
        commit: machine::commit(),
        date: machine::date()?,
        repetitions: sizes.repetitions,
    };
    let mut results = Results {
        mode: words.mode,
        machine: machine::machine()?,
        sizes: sizes.clone(),
        systems: Vec::new(),
        absent: Vec::new(),
        rows: Vec::new(),
        walks: BTreeMap::new(),
        mounts: Vec::new(),
        imports: Vec::new(),
        unique_layer_bytes: 0,
        archive_bytes: 0,
        gzip_bytes: 0,
        containers: Vec::new(),
        stamps: BTreeMap::new(),
        failures: Vec::new(),
        minutes: 0.0,
    };
    let chosen: Vec<&Row> = rows::all()
        .filter(|row| row.runs_in(words.mode) && words.wants(row.group, row.name()))
        .collect();
    let wants = |group: Group| words.wants(group, group.name());

    eprintln!("making the file system");
    let arena = Arena::new(sizes.disk, sizes.inodes, words.mode == Mode::Smoke)?;
    let mut run = Run {
        sizes: &sizes,
        arena: &arena,
        random: Random::new(std::process::id().into()),
        failures: Vec::new(),
    };
    let walks = wants(Group::Memory) || wants(Group::Mount);
    if !chosen.is_empty() || walks {
        let systems = systems::usable(&words.systems, &words.peer, &arena)?;
        let titles: Vec<&str> = systems.present.iter().map(|system| system.title).collect();
        eprintln!("columns: {}", titles.join("; "));
        eprintln!("making the trees");
        let corpus = Corpus::new(&arena, &sizes, walks)?;
        eprintln!("made after {:.0} s", started.elapsed().as_secs_f64());
        (results.rows, stamp.repetitions) = run.rows(&chosen, &systems.present, &corpus, &stamp);
        let once = |repetitions| Stamp {
            repetitions,
            ..stamp.clone()
        };
        if wants(Group::Memory) {
            for system in systems
                .present
                .iter()
                .filter(|system| system.is_in(Group::Memory))
            {
                let walk = memory::walk(system, &arena, &corpus);
                if let Some(Some(cost)) = run.noted(Group::Memory.name(), system.title, walk) {
                    results.walks.insert(system.id.to_owned(), cost);
                }
            }
            results.stamps.insert(Group::Memory, once(1));
        }
        if wants(Group::Mount) {
            let mounts = memory::mount_latency(&arena, &corpus, sizes.mounts, &mut run.random);
            results.mounts = run
                .noted(Group::Mount.name(), "ovl mount", mounts)
                .unwrap_or_default();
            results.stamps.insert(Group::Mount, once(sizes.mounts));
        }
        results.systems = systems.present.iter().map(name).collect();
        results.absent = systems.absent;
        eprintln!(
            "file systems and mounts after {:.0} s",
            started.elapsed().as_secs_f64()
        );
    }
    if wants(Group::Store) {
        let each_gzip = words.mode == Mode::Full;
        let repetitions = sizes.store_repetitions;
        let store = importers::measure(&arena, repetitions, each_gzip, &mut run.random);
        if let Some(store) = run.noted(Group::Store.name(), "all", store) {
            results.imports = store.costs;
            results.unique_layer_bytes = store.unique_layer_bytes;
            results.archive_bytes = store.archive_bytes;
            results.gzip_bytes = store.gzip_bytes;
        }
        let repetitions = sizes.store_repetitions;
        let stamp = Stamp {
            repetitions,
            ..stamp.clone()
        };
        results.stamps.insert(Group::Store, stamp);
    }
    if wants(Group::Containers) {
        let (starts, failures) = containers::measure(&arena, sizes.mounts, &mut run.random)?;
        results.containers = starts;
        for (title, error) in failures {
            run.noted::<()>(Group::Containers.name(), title, Err(error));
        }
        let repetitions = sizes.mounts;
        let stamp = Stamp {
            repetitions,
            ..stamp.clone()
        };
        results.stamps.insert(Group::Containers, stamp);
    }
    results.failures = run.failures;
    results.minutes = started.elapsed().as_secs_f64() / 60.0;
    Ok(results)
}

fn name(system: &System) -> SystemName {
    SystemName {
        id: system.id.to_owned(),
        title: system.title.to_owned(),
        version: system.version.clone(),
    }
}

impl Run<'_> {
    /// Notes a failure.
    fn noted<T>(&mut self, of: &str, title: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let words = self.arena.hidden(&format!("{error:#}"));
                let words: String = words.chars().take(MOST_WORDS).collect();
                let said = format!("{of}, {title}: {words}");
                eprintln!("failed: {said}");
                let of = of.to_owned();
                self.failures.push(Failure { of, said });
                None
            }
        }
    }

    /// Every row on every system, all systems of a row one after another in random order, then the next row; so many
    /// times. Gives how many, too.
    fn rows(
        &mut self,
        rows: &[&Row],
        systems: &[System],
        corpus: &Corpus,
        stamp: &Stamp,
    ) -> (Vec<RowResults>, usize) {
        let mut results: Vec<RowResults> = rows.iter().flat_map(|row| blank(row, stamp)).collect();
        let started = Instant::now();
        let mut done = 0;
        while done < self.sizes.repetitions {
            if done >= LEAST_REPETITIONS && self.sizes.row_seconds > 0 {
                let end = started.elapsed().as_secs_f64() * (done + 1) as f64 / done as f64;
                if end > self.sizes.row_seconds as f64 {
                    eprintln!("no repetition {}: it would end after {end:.0} s", done + 1);
                    break;
                }
            }
            done += 1;
            for row in rows {
                let mut order: Vec<&System> = systems
                    .iter()
                    .filter(|system| system.is_in(row.group))
                    .collect();
                self.random.shuffle(&mut order);
                let begun = Instant::now();
                for system in order {
                    let title = format!("{}, repetition {done}", system.title);
                    let found = self.one(row, system, corpus);
                    let found = self.noted(row.name(), &title, found).unwrap_or_default();
                    for measure in row.measures {
                        let value = found.iter().find(|found| found.measure == measure.id);
                        let result = results.iter_mut().find(|result| result.id == measure.id);
                        let result = result.expect("made for every measure");
                        let push = |to: &mut BTreeMap<String, Vec<Option<f64>>>, value| {
                            to.entry(system.id.to_owned()).or_default().push(value);
                        };
                        push(&mut result.values, value.map(|found| found.value));
                        push(
                            &mut result.daemon_cpu,
                            value.and_then(|found| found.daemon_cpu),
                        );
                    }
                }
                eprintln!(
                    "{done}/{} {}: {:.1} s",
                    self.sizes.repetitions,
                    row.name(),
                    begun.elapsed().as_secs_f64()
                );
            }
        }
        for result in &mut results {
            result.stamp.repetitions = done;
        }
        (results, done)
    }

    fn one(&self, row: &Row, system: &System, corpus: &Corpus) -> Result<Vec<rows::Found>> {
        self.arena.settle()?;
        let session = Session::open(system, self.arena, &corpus.lower)?;
        let mut case = Case {
            session,
            corpus,
            sizes: self.sizes,
            found: Vec::new(),
        };
        (row.run)(&mut case)?;
        case.session.close()?;
        Ok(case.found)
    }
}

fn blank(row: &Row, stamp: &Stamp) -> impl Iterator<Item = RowResults> {
    row.measures.iter().map(|measure| RowResults {
        id: measure.id.to_owned(),
        group: row.group,
        title: measure.title.to_owned(),
        unit: measure.unit.to_owned(),
        more_is_better: measure.better == Better::More,
        stamp: stamp.clone(),
        values: BTreeMap::new(),
        daemon_cpu: BTreeMap::new(),
    })
}
