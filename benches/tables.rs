//! The page's tables that are not of rows: memory, mounts, the store, containers.

use std::fmt::Write;

use super::groups::Group;
use super::report::{or_dash, section};
use super::results::Results;
use super::stats::median;

const MIB: f64 = (1 << 20) as f64;

pub fn memory(results: &Results, plot: bool) -> String {
    if results.walks.is_empty() {
        return String::new();
    }
    let mut text = section(results, Group::Memory, plot);
    let _ = write!(
        text,
        "Resident MiB: freshly mounted, after a walk that stats {} files, and once the kernel has dropped its \
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

pub fn mounts(results: &Results, plot: bool) -> String {
    if results.mounts.is_empty() {
        return String::new();
    }
    let mut text = section(results, Group::Mount, plot);
    text.push_str(
        "From the start of the command until it returns with the mount there. Target: under 15 ms and \
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

pub fn store(results: &Results, plot: bool) -> String {
    if results.imports.is_empty() {
        return String::new();
    }
    let mega = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6);
    let mut text = section(results, Group::Store, plot);
    let _ = write!(
        text,
        "The five-layer test image as a docker archive of {} MB, cached, into an empty store each time; medians. Gzip: the same \
        image as an OCI archive of {} MB with gzip layers, of which ovl keeps what gives the compressed bytes back. Disk is what du counts. Both versions together have {} MB of different \
        layer bytes. umoci reads no archive: it is given an OCI layout with gzip layers, made beforehand, and unpacks it; \
        containerd runs as a daemon, whose time and memory count. ovl has its store synced when it returns; the others leave that \
        to the kernel.\n\n\
        | program | seconds | least | most | processor, s | peak MiB | gzip, s | processor, s | second version, s | disk, MB | \
        disk both, MB | of unique |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        mega(results.archive_bytes),
        mega(results.gzip_bytes),
        mega(results.unique_layer_bytes),
    );
    for import in &results.imports {
        let seconds = |value| or_dash(value, |seconds: f64| format!("{seconds:.2}"));
        let disk = |bytes: Option<u64>| bytes.map_or("–".to_owned(), mega);
        let part = import
            .disk_both
            .map(|bytes| bytes as f64 / results.unique_layer_bytes as f64);
        let _ = writeln!(
            text,
            "| {} {} | {} | {} | {} | {} | {:.0} | {} | {} | {} | {} | {} | {} |",
            import.title,
            import.version,
            seconds(median(&import.seconds)),
            seconds(import.seconds.iter().copied().reduce(f64::min)),
            seconds(import.seconds.iter().copied().reduce(f64::max)),
            seconds(median(&import.cpu)),
            import.memory as f64 / MIB,
            seconds(median(&import.gzip_seconds)),
            seconds(median(&import.gzip_cpu)),
            seconds(import.second_seconds),
            disk(import.disk_one),
            disk(import.disk_both),
            or_dash(part, |part| format!("{part:.3}")),
        );
    }
    text.push('\n');
    for import in &results.imports {
        if let Some(failure) = &import.failure {
            let _ = writeln!(text, "{} failed: {failure}\n", import.title);
        }
    }
    text + &exports(results)
}

fn exports(results: &Results) -> String {
    let mut text = String::from(
        "The way back: the first version written to an archive (a docker archive; by ctr an OCI one), and then removed with its space \
        given back (`ovl rmi && ovl gc`, `podman rmi`, `ctr image rm --sync`). ovl proves every chunk and every layer against its \
        digest on the way out, and has the archive synced. Mount: `ovl mount` (writable), `podman image mount`, `ctr image mount` \
        (both read-only), each of an image that is there.\n\n\
        | program | export, s | least | most | processor, s | removal, s | least | most | mount, ms |\n|---|---|---|---|---|---|---|---|---|\n",
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
            "| {} | {export} | {export_least} | {export_most} | {} | {remove} | {remove_least} | {remove_most} | {} |",
            import.id,
            seconds(median(&import.export_cpu)),
            or_dash(median(&import.mount_seconds), |s| format!("{:.0}", s * 1e3)),
        );
    }
    text.push('\n');
    text
}

pub fn containers(results: &Results, plot: bool) -> String {
    if results.containers.is_empty() {
        return String::new();
    }
    let mut text = section(results, Group::Containers, plot);
    text.push_str(
        "A container of the five-layer test image, without network, removed at its end, both through runc: from the \
        command to its end, medians, in random order. For cold ones the kernel's caches are dropped before. What reads modules is \
        the image's own program, which a user other than root runs.\n\n\
        | container | program | warm, ms | least | most | cold, ms | least | most |\n|---|---|---|---|---|---|---|---|\n",
    );
    for start in &results.containers {
        let three = |list: &[f64]| {
            let least = list.iter().copied().reduce(f64::min);
            let most = list.iter().copied().reduce(f64::max);
            [median(list), least, most].map(|v| or_dash(v, |s: f64| format!("{:.0}", s * 1e3)))
        };
        let _ = writeln!(
            text,
            "| {} | {} {} | {} | {} |",
            start.work.title(),
            start.title,
            start.version,
            three(&start.warm).join(" | "),
            three(&start.cold).join(" | "),
        );
    }
    text.push('\n');
    text
}
