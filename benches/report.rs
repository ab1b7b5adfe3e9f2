//! The page: docs/benchmarks.md, written from results and from nothing else.
//!
//! Sentences about single rows (what a miss comes from) are kept by hand in docs/benchmarks/remarks.json, under the
//! row's key.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::results::{Results, RowResults};
use crate::stats::{median, spread};
use crate::systems::{BASE, OURS};
use crate::targets::{Verdict, verdicts, wanted};

const MIB: f64 = (1 << 20) as f64;

pub type Remarks = BTreeMap<String, String>;

pub fn page(results: &Results, remarks: &Remarks) -> String {
    let verdicts = verdicts(results);
    let parts = [
        head(results),
        misses(&verdicts, remarks),
        rows(results),
        cpu(results),
        memory(results),
        mounts(results),
        store(results),
        containers(results),
        method(results),
    ];
    parts.concat()
}

fn head(results: &Results) -> String {
    let machine = &results.machine;
    let systems: Vec<String> = results
        .systems
        .iter()
        .map(|system| format!("{} ({})", system.title, system.version))
        .collect();
    format!(
        "# Benchmarks\n\n\
        Written by `make {}` from `docs/benchmarks/{}.json`, with reasons from `remarks.json` beside it; do not edit. ovl at commit {}, {} UTC, {:.0} minutes.\n\n\
        Machine: {} cores of {}, {} GiB, Linux {}, {}. Systems: {}. Programs: {}.\n\n",
        make_target(results),
        results.mode.name(),
        results.commit,
        results.date,
        results.minutes,
        machine.cores,
        machine.processor,
        machine.memory_gib,
        machine.kernel,
        machine.distribution,
        systems.join(", "),
        machine.programs.join(", "),
    )
}

fn make_target(results: &Results) -> &'static str {
    match results.mode {
        crate::settings::Mode::Full => "bench",
        _ => "bench-quick",
    }
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
    text.push_str("| work | target | found | why |\n|---|---|---|---|\n");
    for Verdict {
        id,
        title,
        wanted,
        found,
        ..
    } in missed
    {
        let why = remarks
            .get(id)
            .map_or("not looked into yet", String::as_str);
        let _ = writeln!(text, "| {title} | {wanted} | {found} | {why} |");
    }
    text.push('\n');
    text
}

/// With two digits that tell something.
fn short(value: f64) -> String {
    match value {
        v if v >= 99.5 => format!("{v:.0}"),
        v if v >= 9.95 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn or_dash(value: Option<f64>, form: impl Fn(f64) -> String) -> String {
    value.map_or("–".to_owned(), form)
}

fn absolute(row: &RowResults, system: &str) -> String {
    or_dash(row.median(system), |value| match row.unit.as_str() {
        "s" if value < 1.0 => format!("{} ms", short(value * 1e3)),
        "IOPS" if value >= 10_000.0 => format!("{:.0}k IOPS", value / 1e3),
        unit => format!("{} {unit}", short(value)),
    })
}

fn rows(results: &Results) -> String {
    let others: Vec<_> = results
        .systems
        .iter()
        .filter(|system| system.id != BASE)
        .collect();
    let mut text = String::from(
        "## File systems\n\n\
        Medians; for ext4 the figure itself, for the others the ratio to ext4 measured in the same repetition. Rows with ↑ are \
        rates, more is better; the others are times, less is better. Noise is the largest over the smallest value of ext4. The \
        target is for \"ovl, directory\"; ** marks a miss.\n\n| work | ext4 | noise |",
    );
    for system in &others {
        let _ = write!(text, " {} |", system.title);
    }
    text.push_str(" target |\n|---|---|---|");
    text.push_str(&"---|".repeat(others.len() + 1));
    text.push('\n');
    let missed: Vec<String> = verdicts(results)
        .into_iter()
        .filter(|v| !v.met)
        .map(|v| v.id)
        .collect();
    for row in &results.rows {
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
            let bold = if system.id == OURS && missed.contains(&row.id) {
                "**"
            } else {
                ""
            };
            let _ = write!(text, " {bold}{ratio}{bold} |");
        }
        let _ = writeln!(text, " {} |", wanted(&row.id));
    }
    text.push('\n');
    if !results.failures.is_empty() {
        text.push_str("Did not work:\n");
        for failure in &results.failures {
            let _ = writeln!(text, "- {failure}");
        }
        text.push('\n');
    }
    text
}

/// Systems that have a daemon.
fn with_daemon(results: &Results) -> Vec<&crate::results::SystemName> {
    let has = |id: &str| results.rows.iter().any(|row| row.cpu(id).is_some());
    results
        .systems
        .iter()
        .filter(|system| has(&system.id))
        .collect()
}

fn cpu(results: &Results) -> String {
    let systems = with_daemon(results);
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

fn memory(results: &Results) -> String {
    let mut text = format!(
        "## Memory of the daemon\n\nResident MiB: freshly mounted, after a walk that stats {} files, and once the kernel has dropped its \
        caches. Targets: 20 idle, 64 after the walk.\n\n\
        | system | idle | after the walk | caches dropped | walk, s | processor, s |\n|---|---|---|---|---|---|\n",
        results.sizes.walk_files
    );
    for system in &results.systems {
        let Some(walk) = results.walks.get(&system.id) else {
            continue;
        };
        let mib = |bytes: u64| format!("{:.1}", bytes as f64 / MIB);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.2} | {:.2} |",
            system.title,
            mib(walk.idle),
            mib(walk.walked),
            mib(walk.forgotten),
            walk.seconds,
            walk.daemon_cpu
        );
    }
    text.push('\n');
    text
}

fn mounts(results: &Results) -> String {
    let mut text = String::from(
        "## `ovl mount` of an image\n\nFrom the start of the command until it returns with the mount there. Target: under 15 ms and \
        the same for any number of files; 20 MiB resident.\n\n\
        | files in the image | median ms | least | most | idle daemon, MiB |\n|---|---|---|---|---|\n",
    );
    for mount in &results.mounts {
        let ms = |seconds: Option<f64>| or_dash(seconds, |s| format!("{:.1}", s * 1e3));
        let of = |pick: fn(f64, f64) -> f64| ms(mount.seconds.iter().copied().reduce(pick));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {:.1} |",
            mount.files,
            ms(median(&mount.seconds)),
            of(f64::min),
            of(f64::max),
            mount.resident as f64 / MIB
        );
    }
    text.push('\n');
    text
}

fn store(results: &Results) -> String {
    let mega = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    let mut text = format!(
        "## Store\n\nThe five-layer test image as a docker archive of {} MB, cached, into an empty store each time; medians of {} \
        repetitions. Disk is what du counts. Both versions together have {} MB of different layer bytes. umoci reads no archive: \
        it is given an OCI layout with gzip layers, made beforehand, and unpacks it; containerd runs as a daemon, whose time and memory \
        count. ovl has its store synced when it returns; the others leave that to the kernel. {}\n\n\
        | program | seconds | least | most | processor, s | peak MiB | second version, s | disk, MB | disk both, MB | of unique |\n\
        |---|---|---|---|---|---|---|---|---|---|\n",
        mega(results.archive_bytes),
        results
            .store_run
            .as_ref()
            .map_or(results.sizes.store_repetitions, |run| run.repetitions),
        mega(results.unique_layer_bytes),
        results
            .store_run
            .as_ref()
            .map_or(String::new(), |run| format!(
                "Measured in a run of its own: commit {}, {} UTC.",
                run.commit, run.date
            )),
    );
    for import in &results.imports {
        let seconds = |value| or_dash(value, |seconds: f64| format!("{seconds:.2}"));
        let disk = |bytes: Option<u64>| bytes.map_or("–".to_owned(), mega);
        let part = import
            .disk_both
            .map(|bytes| bytes as f64 / results.unique_layer_bytes as f64);
        let _ = writeln!(
            text,
            "| {} {} | {} | {} | {} | {} | {:.0} | {} | {} | {} | {} |",
            import.title,
            import.version,
            seconds(median(&import.seconds)),
            seconds(import.seconds.iter().copied().reduce(f64::min)),
            seconds(import.seconds.iter().copied().reduce(f64::max)),
            seconds(median(&import.cpu)),
            import.memory as f64 / MIB,
            seconds(import.second_seconds),
            disk(import.disk_one),
            disk(import.disk_both),
            or_dash(part, |part| format!("{part:.3}")),
        );
        if let Some(failure) = &import.failure {
            let _ = writeln!(text, "\n{} failed: {failure}\n", import.title);
        }
    }
    text.push('\n');
    text + &exports(results)
}

fn exports(results: &Results) -> String {
    let mut text = String::from(
        "The way back: the first version written to an archive (a docker archive; by ctr an OCI one), and then removed with its space \
        given back (`ovl rmi && ovl gc`, `podman rmi`, `ctr image rm --sync`). ovl proves every chunk and every layer against its \
        digest on the way out, and has the archive synced.\n\n\
        | program | export, s | least | most | processor, s | removal, s | least | most |\n|---|---|---|---|---|---|---|---|\n",
    );
    for import in &results.imports {
        if import.export_seconds.is_empty() && import.remove_seconds.is_empty() {
            continue;
        }
        let seconds = |value| or_dash(value, |seconds: f64| format!("{seconds:.2}"));
        let three = |list: &[f64]| {
            let least = list.iter().copied().reduce(f64::min);
            let most = list.iter().copied().reduce(f64::max);
            [median(list), least, most].map(seconds)
        };
        let [export, export_least, export_most] = three(&import.export_seconds);
        let [remove, remove_least, remove_most] = three(&import.remove_seconds);
        let _ = writeln!(
            text,
            "| {} | {export} | {export_least} | {export_most} | {} | {remove} | {remove_least} | {remove_most} |",
            import.id,
            seconds(median(&import.export_cpu)),
        );
    }
    text.push('\n');
    text
}

fn containers(results: &Results) -> String {
    if results.containers.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "## Containers\n\n`true` in a container of the five-layer test image, without network, removed at its end, both through runc: from \
        the command to its end, medians of {} repetitions, in random order. For cold ones the kernel's caches are dropped before.{}\n\n\
        | program | warm, ms | least | most | cold, ms | least | most |\n|---|---|---|---|---|---|---|\n",
        results.containers[0].warm.len(),
        results
            .containers_run
            .as_ref()
            .map_or(String::new(), |run| format!(
                " Measured in a run of its own: commit {}, {} UTC.",
                run.commit, run.date
            )),
    );
    for start in &results.containers {
        let three = |list: &[f64]| {
            let least = list.iter().copied().reduce(f64::min);
            let most = list.iter().copied().reduce(f64::max);
            [median(list), least, most].map(|v| or_dash(v, |s: f64| format!("{:.0}", s * 1e3)))
        };
        let _ = writeln!(
            text,
            "| {} {} | {} | {} |",
            start.title,
            start.version,
            three(&start.warm).join(" | "),
            three(&start.cold).join(" | "),
        );
    }
    text.push('\n');
    text
}

fn method(results: &Results) -> String {
    let sizes = &results.sizes;
    let unpacked = match sizes.unpack.as_slice() {
        [] => "all of the Debian root".to_owned(),
        parts => format!("{} of the Debian root", parts.join(", ")),
    };
    format!(
        "## How it is measured\n\n\
        - Everything is on an ext4 with a journal, in a file on a loop device with direct I/O, made for the run. Peers run with their \
        default options, as root; ovl with its own.\n\
        - In each of {} repetitions, each row is run on every system in random order. A run has a fresh mount with an empty upper; \
        what was dirty is written out before. For cold figures the kernel's caches are dropped; warm ones are the median of three to \
        fifteen passes after the cold one.\n\
        - Lower tree: a Debian root, {} small files (64 B to 6 KiB), {} files to be changed, a file of {} MiB that does not compress. \
        \"ovl, image\" has the same tree imported into its store.\n\
        - Amounts: stat of {} files, open+read+close of {}, create, rename, unlink of {}, clone of {} files, unpacking {unpacked}, \
        {} lower files changed, sequential write of {} MiB, random writes in {} MiB, {} writes with fsync. Data rows are fio with \
        psync, buffered, nothing synced at the end.\n\
        - The big lower file's change of one byte is timed with its fsync. ext4 has nothing to copy up: its figure is a copy of the \
        file, the change, and the fsync.\n",
        sizes.repetitions,
        sizes.small_files,
        sizes.lower_changes,
        sizes.big_file >> 20,
        sizes.stats,
        sizes.opens,
        sizes.creates,
        sizes.clone_files,
        sizes.lower_changes,
        sizes.sequential_write >> 20,
        sizes.random_write >> 20,
        sizes.fsyncs,
    )
}
