//! The benchmark: ovl beside ext4, the kernel's overlayfs and fuse-overlayfs, and its store beside other image stores.
//!
//!   make bench, make bench-quick
//!   cargo bench --bench ovl -- --mode smoke --only find,tar               # while working on a row
//!   cargo bench --bench ovl -- --mode quick --only data,store --out docs  # these groups anew, all other figures kept
//!   cargo bench --bench ovl -- --render docs/benchmarks/quick.json --out docs
//!
//! | file | holds |
//! |---|---|
//! | `settings`, `groups` | how much of everything; what can be asked for alone |
//! | `place`, `arena`, `corpus` | the namespaces and the file system it happens in, and the trees |
//! | `systems`, `session`, `daemon` | what is compared, mounted and unmounted |
//! | `measure` | the run |
//! | `rows`; `data`, `metadata`, `changes`, `programs`; `drivers`, `fio` | what is done and measured |
//! | `memory`, `importers`, `containerd`, `containers` | rows of another shape: walks, mounts, the store, containers |
//! | `results`, `targets`, `report`, `tables` | figures kept, judged, printed |
//! | `plots`, `ratio_plot`, `panel_plot`, `svg` | figures drawn |
//!
//! Needs root. `tests/benchmark.rs` runs it in small and tests what it prints.

// Cargo builds this target as a test, too, but without the harness that would use what tests need.
#![cfg_attr(test, allow(unused_imports, dead_code))]

mod arena;
mod changes;
mod command;
mod containerd;
mod containers;
mod corpus;
mod daemon;
mod data;
mod drivers;
mod fio;
mod groups;
mod importers;
mod machine;
mod measure;
mod memory;
mod metadata;
mod panel_plot;
mod place;
mod plots;
mod programs;
mod ratio_plot;
mod report;
mod results;
mod rows;
mod session;
mod settings;
mod stats;
mod svg;
mod systems;
mod tables;
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use groups::Group;
use results::Results;
use settings::{Mode, Sizes};
use systems::BASE;

/// Words for us from the test that runs us: those of the command line are its harness's. One a line.
const WORDS: &str = "OVL_BENCH_WORDS";

#[derive(Parser)]
struct Words {
    /// smoke, quick or full
    #[arg(long, default_value = "full", value_parser = mode)]
    mode: Mode,
    /// Groups (data, metadata, changes, programs, memory, mount, store, containers) and rows by the start of their keys
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Systems by their keys; ext4 is always there
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Repetitions, instead of the mode's
    #[arg(long)]
    repetitions: Option<usize>,
    /// Where benchmarks.md, benchmarks/MODE.json and the plots go; figures of an earlier run that are not measured again are
    /// kept. Without it the page goes to standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Write page and plots anew from kept results
    #[arg(long, value_name = "JSON")]
    render: Option<PathBuf>,
    /// fuse-overlayfs 2.x
    #[arg(long, default_value = "target/peers/bin/fuse-overlayfs")]
    peer: PathBuf,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn mode(word: &str) -> Result<Mode, String> {
    Mode::ALL
        .into_iter()
        .find(|mode| mode.name() == word)
        .ok_or_else(|| "smoke, quick or full".to_owned())
}

pub fn main() -> Result<()> {
    let words = match std::env::var(WORDS) {
        Ok(words) => Words::parse_from(std::iter::once("benchmark").chain(words.lines())),
        Err(_) => Words::parse(),
    };
    if let Some(file) = &words.render {
        return publish(&read(file)?, words.out.as_deref(), false);
    }
    words.check()?;
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark mounts file systems and drops caches: run it as root");
    }
    // What could not be joined is refused now rather than after an hour.
    let kept = words.kept()?;
    if !place::is_inside() {
        return place::enter();
    }
    let new = measure::measure(&words)?;
    let results = match (kept, &words.out) {
        (Some(kept), Some(out)) => kept.with(new.clone()).or_else(|error| {
            // Measured is measured.
            let aside = out.join("benchmarks").join("refused.json");
            fs::write(&aside, serde_json::to_string(&new)?)?;
            Err(error).with_context(|| format!("the new figures are in {}", aside.display()))
        })?,
        _ => new,
    };
    publish(&results, words.out.as_deref(), true)
}

impl Words {
    /// Whether a row of this key and group is asked for.
    fn wants(&self, group: Group, key: &str) -> bool {
        let asked = |word: &String| word == group.name() || key.starts_with(word.as_str());
        self.only.is_empty() || self.only.iter().any(asked)
    }

    fn sizes(&self) -> Sizes {
        let mut sizes = self.mode.sizes();
        if let Some(repetitions) = self.repetitions {
            (sizes.repetitions, sizes.store_repetitions) = (repetitions, repetitions);
            sizes.row_seconds = 0;
        }
        sizes
    }

    /// Refuses names of nothing.
    fn check(&self) -> Result<()> {
        for word in &self.only {
            let is_group = Group::ALL.iter().any(|group| group.name() == word);
            let is_row = rows::all().any(|row| row.name().starts_with(word.as_str()));
            let groups = Group::ALL.map(Group::name).join(", ");
            ensure!(
                is_group || is_row,
                "--only {word}: no such row or group; groups are {groups}"
            );
        }
        for key in &self.systems {
            let keys = systems::keys();
            ensure!(
                keys.contains(&key.as_str()),
                "--systems {key}: no such system; there are {}",
                keys.join(", ")
            );
        }
        ensure!(
            self.repetitions != Some(0),
            "--repetitions 0 measures nothing"
        );
        Ok(())
    }

    /// The results that are to be kept: those of this mode that lie where the new ones are to go, if only a part is measured.
    /// Refused where they would lose something.
    fn kept(&self) -> Result<Option<Results>> {
        let part = !self.only.is_empty() || !self.systems.is_empty();
        let Some(out) = self.out.as_ref().filter(|_| part) else {
            return Ok(None);
        };
        let file = json(out, self.mode);
        match file.exists() {
            true => {
                let kept = read(&file)?;
                let asked = |id: &String| self.systems.is_empty() || self.systems.contains(id);
                let ids = kept.systems.iter().map(|system| &system.id);
                let lost: Vec<&String> = ids.filter(|id| *id != BASE && !asked(id)).collect();
                ensure!(
                    lost.is_empty(),
                    "{}: has {lost:?}, too, which would be lost; name these systems as well, or choose another --out",
                    file.display()
                );
                kept.fits(&self.sizes(), &machine::machine()?)?;
                Ok(Some(kept))
            }
            false => Ok(None),
        }
    }
}

fn json(out: &Path, mode: Mode) -> PathBuf {
    out.join("benchmarks").join(format!("{}.json", mode.name()))
}

fn read(file: &Path) -> Result<Results> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: not results of this benchmark", file.display()))
}

/// Writes page and plots, and keeps the results they are made from if they are `new`.
fn publish(results: &Results, out: Option<&Path>, new: bool) -> Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks");
    let remarks = match fs::read_to_string(docs.join("remarks.json")) {
        Ok(text) => serde_json::from_str(&text).context("docs/benchmarks/remarks.json")?,
        Err(_) => report::Remarks::new(),
    };
    let plots = plots::all(results);
    let page = report::page(results, &remarks, &plots);
    let Some(out) = out else {
        print!("{page}");
        return Ok(());
    };
    let beside = out.join("benchmarks");
    fs::create_dir_all(&beside)?;
    if new {
        // Whole or not at all: what is kept there took hours.
        let (file, part) = (json(out, results.mode), beside.join("new.json"));
        fs::write(&part, serde_json::to_string(results)? + "\n")?;
        fs::rename(&part, &file)?;
    }
    for group in Group::ALL {
        let file = beside.join(format!("{}.svg", group.name()));
        match plots.get(&group) {
            Some(svg) => fs::write(&file, svg)?,
            None if file.exists() => fs::remove_file(&file)?,
            None => {}
        }
    }
    fs::write(out.join("benchmarks.md"), page)?;
    eprintln!("wrote {}", out.join("benchmarks.md").display());
    Ok(())
}
