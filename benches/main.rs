//! The benchmark: ovl beside ext4, the kernel's overlayfs and fuse-overlayfs, and its store beside other image stores.
//!
//!   make bench, make bench-quick
//!   cargo bench --bench ovl -- --mode tiny --only find,tar     # while working on a row
//!   cargo bench --bench ovl -- --mode quick --only import --out docs     # the store's figures anew, the others kept
//!   cargo bench --bench ovl -- --mode quick --only containers --out docs # the same for containers
//!
//! | file | holds |
//! |---|---|
//! | `settings` | how much of everything |
//! | `arena`, `corpus` | the file system it happens on, and the trees |
//! | `systems`, `daemon` | what is compared, mounted and unmounted |
//! | `rows`, `drivers`, `fio` | what is done and measured |
//! | `memory`, `importers`, `containerd`, `containers` | rows of another shape: walks, mounts, the store, containers |
//! | `results`, `targets`, `report` | figures kept, judged, printed |
//!
//! Needs root. It runs in a mount namespace of its own, so nothing it mounts outlives it.

mod arena;
mod command;
mod containerd;
mod containers;
mod corpus;
mod daemon;
mod drivers;
mod fio;
mod importers;
mod machine;
mod memory;
mod report;
mod results;
mod rows;
mod settings;
mod stats;
mod systems;
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use arena::Arena;
use corpus::Corpus;
use results::{Results, RowResults, SystemName};
use rows::{Better, Case, ROWS, Row};
use settings::{Mode, Sizes};
use stats::Random;
use systems::{BASE, Session, System};

/// Says that the namespace is there already.
const INSIDE: &str = "OVL_BENCH_INSIDE";

#[derive(Parser)]
struct Words {
    /// tiny, quick or full
    #[arg(long, default_value = "full", value_parser = mode)]
    mode: Mode,
    /// Rows by the start of their keys; also walk, mount, import, containers
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Systems by their keys; ext4 is always there
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Repetitions, instead of the mode's
    #[arg(long)]
    repetitions: Option<usize>,
    /// Where benchmarks.md and benchmarks/MODE.json go; without it the page goes to standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write the page anew from kept results
    #[arg(long, value_name = "JSON")]
    render: Option<PathBuf>,
    /// fuse-overlayfs 2.0
    #[arg(long, default_value = "target/peers/bin/fuse-overlayfs")]
    peer: PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn mode(word: &str) -> Result<Mode, String> {
    let modes = [Mode::Tiny, Mode::Quick, Mode::Full];
    modes
        .into_iter()
        .find(|mode| mode.name() == word)
        .ok_or_else(|| "tiny, quick or full".to_owned())
}

fn main() -> Result<()> {
    let words = Words::parse();
    if let Some(kept) = &words.render {
        let results = serde_json::from_str(&fs::read_to_string(kept)?)?;
        return publish(&results, words.out.as_deref(), false);
    }
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark mounts file systems and drops caches: run it as root");
    }
    if std::env::var_os(INSIDE).is_none() {
        let mut again = std::process::Command::new("unshare");
        again
            .args(["--mount", "--propagation", "private"])
            .arg(std::env::current_exe()?);
        return Err(again
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "1")
            .exec())
        .context("unshare");
    }
    let results = match words.only.as_slice() {
        [part] if part == "import" => {
            joined(&words, measure_store(&words)?, Results::with_store_of)?
        }
        [part] if part == "containers" => joined(
            &words,
            measure_containers(&words)?,
            Results::with_containers_of,
        )?,
        _ => measure(&words)?,
    };
    publish(&results, words.out.as_deref(), true)
}

impl Words {
    fn wants(&self, key: &str) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|start| key.starts_with(start.as_str()))
    }

    fn sizes(&self) -> Sizes {
        let mut sizes = self.mode.sizes();
        if self.mode != Mode::Full {
            sizes = sizes.part_of_root();
        }
        if let Some(repetitions) = self.repetitions {
            (sizes.repetitions, sizes.store_repetitions) = (repetitions, repetitions);
        }
        sizes
    }
}

fn measure(words: &Words) -> Result<Results> {
    let started = Instant::now();
    let sizes = words.sizes();
    let mut systems = systems::all(&words.peer)?;
    let named = |system: &System| words.systems.iter().any(|id| id == system.id);
    let usual = |system: &System| words.systems.is_empty() && !system.on_request;
    systems.retain(|system| system.id == BASE || named(system) || usual(system));
    let date = machine::date()?;
    eprintln!("making the file system and the trees");
    let arena = Arena::new(sizes.disk, sizes.inodes)?;
    let corpus = Corpus::new(&arena, &sizes)?;
    let mut random = Random::new(std::process::id().into());
    eprintln!("made after {:.0} s", started.elapsed().as_secs_f64());

    let mut failures = Vec::new();
    let chosen: Vec<&Row> = ROWS
        .iter()
        .filter(|row| row.runs_in(words.mode) && words.wants(row.name()))
        .collect();
    let rows = measure_rows(
        &chosen,
        &systems,
        &arena,
        &corpus,
        &sizes,
        &mut random,
        &mut failures,
    )?;
    let mut walks = BTreeMap::new();
    if words.wants("walk") {
        for system in &systems {
            if let Some(cost) = memory::walk(system, &arena, &corpus)
                .with_context(|| format!("walk, {}", system.id))?
            {
                walks.insert(system.id.to_owned(), cost);
            }
        }
    }
    let mounts = match words.wants("mount") {
        true => memory::mount_latency(&arena, &corpus, sizes.mounts, &mut random)?,
        false => Vec::new(),
    };
    eprintln!(
        "file systems and mounts after {:.0} s",
        started.elapsed().as_secs_f64()
    );
    let store = match words.wants("import") {
        true => importers::measure(&arena, sizes.store_repetitions, &mut random)?,
        false => importers::Store {
            costs: Vec::new(),
            unique_layer_bytes: 0,
            archive_bytes: 0,
        },
    };
    let containers = match words.wants("containers") {
        true => containers::measure(&arena, sizes.mounts, &mut random)?,
        false => Vec::new(),
    };
    let results = blank(words, date)?;
    let name = |system: &System| SystemName {
        id: system.id.to_owned(),
        title: system.title.to_owned(),
        version: system.version.clone(),
    };
    Ok(Results {
        systems: systems.iter().map(name).collect(),
        rows,
        walks,
        mounts,
        imports: store.costs,
        unique_layer_bytes: store.unique_layer_bytes,
        archive_bytes: store.archive_bytes,
        containers,
        failures,
        minutes: started.elapsed().as_secs_f64() / 60.0,
        ..results
    })
}

/// The rows of the store alone.
fn measure_store(words: &Words) -> Result<Results> {
    let started = Instant::now();
    let results = blank(words, machine::date()?)?;
    let arena = Arena::new(results.sizes.disk, results.sizes.inodes)?;
    let mut random = Random::new(std::process::id().into());
    let store = importers::measure(&arena, results.sizes.store_repetitions, &mut random)?;
    Ok(Results {
        imports: store.costs,
        unique_layer_bytes: store.unique_layer_bytes,
        archive_bytes: store.archive_bytes,
        minutes: started.elapsed().as_secs_f64() / 60.0,
        ..results
    })
}

/// The containers' row alone.
fn measure_containers(words: &Words) -> Result<Results> {
    let started = Instant::now();
    let results = blank(words, machine::date()?)?;
    let arena = Arena::new(results.sizes.disk, results.sizes.inodes)?;
    let mut random = Random::new(std::process::id().into());
    let containers = containers::measure(&arena, results.sizes.mounts, &mut random)?;
    Ok(Results {
        containers,
        minutes: started.elapsed().as_secs_f64() / 60.0,
        ..results
    })
}

/// The kept results, if there are any, with those of one part put in.
fn joined(words: &Words, part: Results, put: fn(Results, Results) -> Results) -> Result<Results> {
    Ok(match kept(words)? {
        Some(kept) => put(kept, part),
        None => part,
    })
}

/// Results of nothing yet.
fn blank(words: &Words, date: String) -> Result<Results> {
    Ok(Results {
        mode: words.mode,
        date,
        commit: machine::commit(),
        machine: machine::machine()?,
        sizes: words.sizes(),
        systems: Vec::new(),
        rows: Vec::new(),
        walks: BTreeMap::new(),
        mounts: Vec::new(),
        imports: Vec::new(),
        unique_layer_bytes: 0,
        archive_bytes: 0,
        failures: Vec::new(),
        minutes: 0.0,
        store_run: None,
        containers: Vec::new(),
        containers_run: None,
    })
}

/// Every row on every system, all systems of a row one after another in random order, then the next row; so many times.
fn measure_rows(
    rows: &[&Row],
    systems: &[System],
    arena: &Arena,
    corpus: &Corpus,
    sizes: &Sizes,
    random: &mut Random,
    failures: &mut Vec<String>,
) -> Result<Vec<RowResults>> {
    let mut results: Vec<RowResults> = rows
        .iter()
        .flat_map(|row| row.measures)
        .map(|measure| RowResults {
            id: measure.id.to_owned(),
            title: measure.title.to_owned(),
            unit: measure.unit.to_owned(),
            more_is_better: measure.better == Better::More,
            ..RowResults::default()
        })
        .collect();
    for repetition in 0..sizes.repetitions {
        for row in rows {
            let mut order: Vec<&System> = systems.iter().collect();
            random.shuffle(&mut order);
            let started = Instant::now();
            for system in order {
                let found = one(row, system, arena, corpus, sizes);
                if let Err(error) = &found {
                    if system.id == BASE {
                        bail!("{} on ext4: {error:#}", row.name());
                    }
                    let said =
                        format!("{error:#}").replace(&*arena.path().to_string_lossy(), "ARENA");
                    failures.push(format!(
                        "{} on {}, repetition {}: {said}",
                        row.name(),
                        system.title,
                        repetition + 1
                    ));
                    eprintln!("{}", failures[failures.len() - 1]);
                }
                let found = found.unwrap_or_default();
                for measure in row.measures {
                    let Some(result) = results.iter_mut().find(|result| result.id == measure.id)
                    else {
                        continue;
                    };
                    let value = found.iter().find(|found| found.measure == measure.id);
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
                "{}/{} {}: {:.1} s",
                repetition + 1,
                sizes.repetitions,
                row.name(),
                started.elapsed().as_secs_f64()
            );
        }
    }
    Ok(results)
}

fn one(
    row: &Row,
    system: &System,
    arena: &Arena,
    corpus: &Corpus,
    sizes: &Sizes,
) -> Result<Vec<rows::Found>> {
    arena.settle()?;
    let session = Session::open(system, arena, &corpus.lower)?;
    let mut case = Case {
        session,
        corpus,
        sizes,
        found: Vec::new(),
    };
    row.run(&mut case)?;
    case.session.close()?;
    Ok(case.found)
}

/// The results of this mode that lie where the new ones are to go.
fn kept(words: &Words) -> Result<Option<Results>> {
    let Some(out) = &words.out else {
        return Ok(None);
    };
    let path = out
        .join("benchmarks")
        .join(format!("{}.json", words.mode.name()));
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(
            serde_json::from_str(&text).with_context(|| path.display().to_string())?,
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Writes the page, and keeps the results it is made from if they are `new`.
fn publish(results: &Results, out: Option<&Path>, new: bool) -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks");
    let remarks = match fs::read_to_string(docs.join("remarks.json")) {
        Ok(text) => serde_json::from_str(&text).context("docs/benchmarks/remarks.json")?,
        Err(_) => report::Remarks::new(),
    };
    let page = report::page(results, &remarks);
    let Some(out) = out else {
        print!("{page}");
        return Ok(());
    };
    fs::create_dir_all(out.join("benchmarks"))?;
    if new {
        let json = serde_json::to_string(results)? + "\n";
        fs::write(
            out.join("benchmarks")
                .join(format!("{}.json", results.mode.name())),
            json,
        )?;
    }
    fs::write(out.join("benchmarks.md"), page)?;
    eprintln!("wrote {}", out.join("benchmarks.md").display());
    Ok(())
}
