//! The page: docs/benchmarks.md, written from results and from nothing else.
//!
//! Sentences about single rows (what a miss comes from) are kept by hand in docs/benchmarks/remarks.json, under the
//! row's key.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::groups::Group;
use super::results::{Results, RowResults, Stamp};
use super::settings::Mode;
use super::stats::spread;
use super::svg::short;
use super::systems::{BASE, OURS};
use super::tables;
use super::targets::{Verdict, verdicts, wanted};

pub type Remarks = BTreeMap<String, String>;

/// `plots`: the groups that have one.
pub fn page(results: &Results, remarks: &Remarks, plots: &BTreeMap<Group, String>) -> String {
    let verdicts = verdicts(results);
    let mut text = head(results) + &misses(&verdicts, remarks) + READING;
    for group in Group::OF_ROWS {
        text += &rows(results, group, &verdicts, plots.contains_key(&group));
    }
    text += &failures(results);
    text += &cpu(results);
    text += &tables::memory(results, plots.contains_key(&Group::Memory));
    text += &tables::mounts(results, plots.contains_key(&Group::Mount));
    text += &tables::store(results, plots.contains_key(&Group::Store));
    text += &tables::containers(results, plots.contains_key(&Group::Containers));
    text + &method(results)
}

const READING: &str = "In the tables of file systems: medians; for ext4 the figure itself, for the others the ratio to ext4 measured in \
    the same repetition. Rows with ↑ are rates, more is better; the others are times, less is better. Noise is the largest over the \
    smallest value of ext4. The target is for \"ovl, directory\"; ** marks a miss.\n\n";

fn head(results: &Results) -> String {
    let machine = &results.machine;
    let systems: Vec<String> = results
        .systems
        .iter()
        .map(|system| format!("{} ({})", system.title, system.version))
        .collect();
    let stamps = results.all_stamps();
    let of = match stamps.as_slice() {
        [] => "Nothing is measured.".to_owned(),
        [one] => format!(
            "ovl at commit {}, {} UTC, {:.0} minutes.",
            one.commit, one.date, results.minutes
        ),
        [.., last] => format!(
            "Measured in {} runs, the last at commit {}, {} UTC; each table says of which commit it is.",
            stamps.len(),
            last.commit,
            last.date
        ),
    };
    let mut text = format!(
        "# Benchmarks\n\n\
        Written by `make {}` from `docs/benchmarks/{}.json`, with reasons from `remarks.json` beside it; do not edit. {of}\n\n\
        Machine: {} cores of {}, {} GiB, Linux {}, {}. Programs: {}.\n\n",
        make_target(results),
        results.mode.name(),
        machine.cores,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        machine.distribution,
        machine.programs.join(", "),
    );
    if !systems.is_empty() {
        let _ = writeln!(text, "Systems: {}.\n", systems.join(", "));
    }
    if !results.absent.is_empty() {
        let _ = writeln!(text, "Left out, because they could not be had:\n");
        for absent in &results.absent {
            let _ = writeln!(text, "- {absent}");
        }
        text.push('\n');
    }
    if results.mode == Mode::Smoke {
        text.push_str("This is a trial of the benchmark itself: its amounts are too small for figures to mean anything.\n\n");
    }
    text
}

fn make_target(results: &Results) -> &'static str {
    match results.mode {
        Mode::Full => "bench",
        Mode::Quick | Mode::Smoke => "bench-quick",
    }
}

/// Heading, plot, and of what commit the figures are.
pub fn section(results: &Results, group: Group, plot: bool) -> String {
    let mut text = format!("## {}\n\n", group.title());
    if plot {
        let title = group.title().replace('`', "");
        let _ = writeln!(text, "![{title}](benchmarks/{}.svg)\n", group.name());
    }
    let rows: Vec<&RowResults> = results.rows_of(group).collect();
    let mut stamps: Vec<(&Stamp, Vec<&str>)> = Vec::new();
    for row in &rows {
        match stamps.iter_mut().find(|(stamp, _)| **stamp == row.stamp) {
            Some((_, titles)) => titles.push(&row.title),
            None => stamps.push((&row.stamp, vec![&row.title])),
        }
    }
    stamps.extend(results.stamps.get(&group).map(|stamp| (stamp, Vec::new())));
    let of = |stamp: &Stamp| {
        let times = match stamp.repetitions {
            1 => "once".to_owned(),
            n => format!("{n} repetitions"),
        };
        format!("commit {}, {} UTC, {times}", stamp.commit, stamp.date)
    };
    match stamps.as_slice() {
        [] => {}
        [(one, _)] => _ = writeln!(text, "Measured at {}.\n", of(one)),
        [(first, _), others @ ..] => {
            let _ = write!(text, "Measured at {}", of(first));
            for (stamp, titles) in others {
                let _ = write!(text, "; {} at {}", titles.join("; "), of(stamp));
            }
            text.push_str(".\n\n");
        }
    }
    text
}

fn misses(verdicts: &[Verdict], remarks: &Remarks) -> String {
    let missed: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.met).collect();
    let mut text = format!(
        "## Targets missed: {} of {}\n\n",
        missed.len(),
        verdicts.len()
    );
    if missed.is_empty() {
        text.push_str("None.\n\n");
        return text;
    }
    text.push_str(
        "In bold is what meets its target over io_uring, which the kernel's administrator has to allow ([transport.md](transport.md)).\n\n\
         | work | target | found | over io_uring | why |\n|---|---|---|---|---|\n",
    );
    for Verdict {
        id,
        title,
        wanted,
        found,
        over_ring,
        ..
    } in missed
    {
        let why = remarks
            .get(id)
            .map_or("not looked into yet", String::as_str);
        let over_ring = match over_ring {
            Some((found, true)) => format!("**{found}**"),
            Some((found, false)) => found.clone(),
            None => "–".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {title} | {wanted} | {found} | {over_ring} | {why} |"
        );
    }
    text.push('\n');
    text
}

pub fn or_dash(value: Option<f64>, form: impl Fn(f64) -> String) -> String {
    value.map_or("–".to_owned(), form)
}

/// A system's own figure, with its unit.
pub fn absolute(row: &RowResults, system: &str) -> String {
    or_dash(row.median(system), |value| match row.unit.as_str() {
        "s" if value < 1.0 => format!("{} ms", short(value * 1e3)),
        "IOPS" if value >= 10_000.0 => format!("{:.0}k IOPS", value / 1e3),
        unit => format!("{} {unit}", short(value)),
    })
}

fn rows(results: &Results, group: Group, verdicts: &[Verdict], plot: bool) -> String {
    if results.rows_of(group).next().is_none() {
        return String::new();
    }
    let others: Vec<_> = results
        .systems_of(group)
        .filter(|system| system.id != BASE)
        .collect();
    let mut text = section(results, group, plot);
    text.push_str("| work | ext4 | noise |");
    for system in &others {
        let _ = write!(text, " {} |", system.title);
    }
    text.push_str(" target |\n|---|---|---|");
    text.push_str(&"---|".repeat(others.len() + 1));
    text.push('\n');
    let missed = |id: &str| verdicts.iter().any(|v| !v.met && v.id == id);
    for row in results.rows_of(group) {
        let arrow = if row.more_is_better { " ↑" } else { "" };
        let noise = or_dash(spread(row.of(BASE)), short);
        let _ = write!(
            text,
            "| {}{arrow} | {} | {noise} |",
            row.title,
            absolute(row, BASE)
        );
        for system in &others {
            let ratio = or_dash(row.ratio(&system.id, BASE), short);
            let key = match system.id.as_str() {
                OURS => row.id.clone(),
                other => format!("{other}:{}", row.id),
            };
            let bold = if missed(&key) { "**" } else { "" };
            let _ = write!(text, " {bold}{ratio}{bold} |");
        }
        let _ = writeln!(text, " {} |", wanted(&row.id));
    }
    text.push('\n');
    text
}

fn failures(results: &Results) -> String {
    if results.failures.is_empty() {
        return String::new();
    }
    let mut text = String::from("## What did not work\n\n");
    for failure in &results.failures {
        let _ = writeln!(text, "- {}", failure.said.replace('\n', " "));
    }
    text.push('\n');
    text
}

/// Systems that have a daemon.
fn with_daemon(results: &Results) -> Vec<&super::results::SystemName> {
    let has = |id: &str| results.rows.iter().any(|row| row.cpu(id).is_some());
    results
        .systems
        .iter()
        .filter(|system| has(&system.id))
        .collect()
}

fn cpu(results: &Results) -> String {
    let systems = with_daemon(results);
    if systems.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "## Processor time of the daemon\n\nMedian seconds during the row (the kernel counts hundredths). For fio rows that run for \
        a given time it includes fio's start.\n\n| work |",
    );
    for system in &systems {
        let _ = write!(text, " {} |", system.title);
    }
    let _ = writeln!(text, "\n|---|{}", "---|".repeat(systems.len()));
    for row in &results.rows {
        let _ = write!(text, "| {} |", row.title);
        for system in &systems {
            let _ = write!(
                text,
                " {} |",
                or_dash(row.cpu(&system.id), |cpu| format!("{cpu:.2}"))
            );
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

fn method(results: &Results) -> String {
    let s = &results.sizes;
    let unpacked = match s.unpack.as_slice() {
        [] => "all of the Debian root".to_owned(),
        parts => format!("{} of the Debian root", parts.join(", ")),
    };
    let bound = match s.row_seconds {
        0 => String::new(),
        seconds => format!(", or as many as fit into {seconds} seconds (two at least)"),
    };
    let mib = |bytes: u64| bytes >> 20;
    format!(
        "## How it is measured\n\n\
        - Everything is on an ext4 with a journal, in a file on a loop device with direct I/O, made for the run. Peers run with their \
        default options, as root; ovl with its own, but for what a column's name says.\n\
        - In each of {} repetitions{bound}, each row is run on every system in random order. A run has a fresh mount with an empty \
        upper; what was dirty is written out before. For cold figures the kernel's caches are dropped; warm ones are the median of \
        three to fifteen passes after the cold one, or of as many as take a second.\n\
        - Lower tree: a Debian root, {} small files (64 B to 6 KiB), {} files to be changed, a directory of {} entries, a crate, a file \
        of {} MiB that does not compress. \"ovl, image\" and \"ovl, kernel merge\" have the same tree imported into ovl's store.\n\
        - Amounts: stat of {} files, open+read+close of {}, create, rename, unlink of {}, clone of {} files, unpacking {unpacked}, \
        {} lower files changed, sequential write of {} MiB, random writes in {} MiB, {} writes with fsync.\n\
        - Data rows are fio, with psync (one pread or pwrite after another) unless a row says io_uring ({} requests under way) or \
        mmap; buffered unless a row says direct (below a FUSE daemon that is still cached: the daemon's own access is not direct); nothing is \
        synced at the end. dbench plays Debian's recorded load for {} s.\n\
        - SQLite: {} transactions of one row each, rollback journal, by its shell. cargo: a crate of {} modules without dependencies, \
        in the lower tree, built in place. dpkg: a package of {} small files, not compressed, into the Debian root, with that root's \
        database. git status follows git clone.\n\
        - The big lower file's change of one byte is timed with its fsync. ext4 has nothing to copy up: its figure is a copy of the \
        file, the change, and the fsync. Meanwhile small files are opened, read and closed: the longest of these is the wait.\n\
        - In plots, a thin line goes from the least to the greatest ratio of a single repetition; the grey band is how far ext4 itself \
        went from its median. Where a target names other systems, its mark is at the ratio those reached.\n",
        s.repetitions,
        s.small_files,
        s.lower_changes,
        s.big_directory,
        mib(s.big_file),
        s.stats,
        s.opens,
        s.creates,
        s.clone_files,
        s.lower_changes,
        mib(s.sequential_write),
        mib(s.random_write),
        s.fsyncs,
        super::fio::DEPTH,
        s.dbench_seconds,
        s.transactions,
        s.crate_modules,
        s.package_files,
    )
}

#[cfg(test)]
mod tests {
    use super::super::plots;
    use super::super::results::tests::{results, row, stamp};
    use super::super::results::{Failure, MountLatency};
    use super::*;

    fn page_of(results: &Results) -> String {
        page(results, &Remarks::new(), &plots::all(results))
    }

    #[test]
    fn ratios_are_taken_within_a_repetition_and_misses_are_marked() {
        // Noise hits all systems of a repetition alike: 10 times slower, the same ratio.
        let noisy = [
            [1.0, 10.0, 1.0],
            [1.5, 15.0, 1.5],
            [4.0, 40.0, 4.0],
            [2.0, 20.0, 2.0],
        ];
        let failed_once = [[1.0; 3], [1.0; 3], [1.0, 0.0, 3.0], [1.0; 3]];
        let page = page_of(&results(vec![
            row("open.warm", Group::Metadata, noisy),
            row("find.warm", Group::Metadata, failed_once),
        ]));
        assert!(
            page.contains("| work open.warm | 1.00 s | 10.0 | 1.50 | 4.00 | **2.00** | ≤ 1.6 |"),
            "{page}"
        );
        assert!(
            page.contains("| work find.warm | 1.00 s | 1.00 | 1.00 | 2.00 | 1.00 | ≤ 3.5 |"),
            "{page}"
        );
        assert!(page.contains("## Targets missed: 1 of 2"), "{page}");
        assert!(page.contains("| work open.warm | ≤ 1.6 | 2.00 | – | not looked into yet |"));
        assert!(page.contains("![Looking up and reading many files](benchmarks/metadata.svg)"));
        assert!(page.contains("Measured at commit aaaa, 2026-01-01 10:00 UTC, 3 repetitions."));
        assert!(
            !page.contains("## Store") && !page.contains("## Data"),
            "{page}"
        );
    }

    #[test]
    fn each_table_tells_what_it_is_of() {
        let mut results = results(vec![
            row("create", Group::Changes, [[1.0; 3]; 4]),
            row("rename", Group::Changes, [[1.0; 3]; 4]),
        ]);
        results.rows[1].stamp = stamp("bbbb", "2026-01-02 10:00");
        results.mounts = vec![MountLatency {
            files: 1000,
            seconds: vec![0.005, 0.007, 0.006],
            resident: 8 << 20,
        }];
        results
            .stamps
            .insert(Group::Mount, stamp("cccc", "2026-01-03 10:00"));
        results.absent = vec!["ovl, io_uring: unknown option".to_owned()];
        results.failures = vec![Failure {
            of: "create".to_owned(),
            said: "create, ext4, repetition 1: no\nspace".to_owned(),
        }];
        let page = page_of(&results);
        for wanted in [
            "Measured in 3 runs, the last at commit cccc, 2026-01-03 10:00 UTC",
            "Measured at commit aaaa, 2026-01-01 10:00 UTC, 3 repetitions; work rename at commit bbbb, 2026-01-02 10:00",
            "Measured at commit cccc, 2026-01-03 10:00 UTC, 3 repetitions.",
            "- ovl, io_uring: unknown option",
            "- create, ext4, repetition 1: no space",
            "| 1000 | 6.0 | 5.0 | 7.0 | 8.0 |",
        ] {
            assert!(page.contains(wanted), "{wanted:?} is not in {page}");
        }
    }
}
