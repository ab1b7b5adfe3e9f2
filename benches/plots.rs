//! Which plots there are, and what of the results each shows.

use std::collections::BTreeMap;

use super::groups::Group;
use super::panel_plot::{self, Panel, PanelBar, Panels};
use super::ratio_plot::{self, RatioRow, Ratios};
use super::report::absolute;
use super::results::{ImportCosts, Results, RowResults, Work};
use super::stats::median;
use super::svg::{Bar, COLOURS, Series, short};
use super::systems::{BASE, OURS, PASSTHROUGH};
use super::targets::mark;

const MIB: f64 = (1 << 20) as f64;

/// One SVG for each group there are figures of.
pub fn all(results: &Results) -> BTreeMap<Group, String> {
    let mut plots = BTreeMap::new();
    for group in Group::OF_ROWS {
        if let Some(plot) = of_rows(results, group) {
            plots.insert(group, ratio_plot::ratios(&plot));
        }
    }
    for (group, plot) in [
        (Group::Memory, memory(results)),
        (Group::Mount, mount(results)),
        (Group::Store, store(results)),
        (Group::Containers, containers(results)),
    ] {
        if !plot.panels.is_empty() {
            plots.insert(group, panel_plot::panels(&plot));
        }
    }
    plots
}

/// The same system has the same colour in every plot, whatever else is measured. Peers come first.
fn colour(id: &str) -> usize {
    const KNOWN: [&str; 10] = [
        "kernel",
        "fo1",
        "fo2",
        OURS,
        "ovl-image",
        "ovl-through",
        "ovl-kernel",
        "ovl-ring",
        PASSTHROUGH,
        "ovl-volatile",
    ];
    let known = KNOWN.iter().position(|known| *known == id);
    known.unwrap_or_else(|| {
        let sum: usize = id.bytes().map(usize::from).sum();
        KNOWN.len() + sum % (COLOURS.len() - KNOWN.len())
    })
}

/// Programs of the store: ovl as ever, peers in the colours of peers.
fn program_colour(id: &str) -> usize {
    match id {
        OURS => colour(OURS),
        "skopeo" => 0,
        "podman" => 1,
        "ctr" => 2,
        _ => 10,
    }
}

fn of_rows(results: &Results, group: Group) -> Option<Ratios> {
    let rows: Vec<&RowResults> = results.rows_of(group).collect();
    let first = rows.first()?;
    // Rates and times cannot share an axis that says which way is better.
    let more_is_better = first.more_is_better;
    let systems: Vec<_> = results
        .systems_of(group)
        .filter(|system| system.id != BASE)
        .collect();
    let series = systems.iter().map(|system| Series {
        title: system.title.clone(),
        colour: colour(&system.id),
    });
    let row = |row: &&RowResults| {
        let bars = systems.iter().map(|system| {
            let (least, most) = row.extremes(&system.id, BASE)?;
            let value = row.ratio(&system.id, BASE)?;
            Some(Bar { value, least, most })
        });
        let base = row.median(BASE);
        let known = || row.of(BASE).iter().flatten().copied();
        let noise = known().reduce(f64::min).zip(known().reduce(f64::max));
        RatioRow {
            title: row.title.clone(),
            figure: absolute(row, BASE),
            noise: noise
                .zip(base)
                .map(|((least, most), base)| (least / base, most / base)),
            target: mark(row),
            bars: bars.collect(),
        }
    };
    Some(Ratios {
        title: group.title().to_owned(),
        base: "ext4".to_owned(),
        more_is_better,
        targets_of: "ovl, directory".to_owned(),
        series: series.collect(),
        rows: rows
            .iter()
            .filter(|row| row.more_is_better == more_is_better)
            .map(row)
            .collect(),
    })
}

/// One bar over several values; none of no values.
fn bar(
    title: &str,
    colour: usize,
    values: &[f64],
    label: impl Fn(f64) -> String,
) -> Option<PanelBar> {
    let value = median(values)?;
    let least = values.iter().copied().reduce(f64::min)?;
    let most = values.iter().copied().reduce(f64::max)?;
    Some(PanelBar {
        series: Series {
            title: title.to_owned(),
            colour,
        },
        bar: Bar { value, least, most },
        label: label(value),
    })
}

/// A panel, if there is anything in it.
fn panel(
    panels: &mut Vec<Panel>,
    title: &str,
    target: Option<f64>,
    bars: impl Iterator<Item = Option<PanelBar>>,
) {
    let bars: Vec<PanelBar> = bars.flatten().collect();
    if !bars.is_empty() {
        panels.push(Panel {
            title: title.to_owned(),
            target,
            bars,
        });
    }
}

fn memory(results: &Results) -> Panels {
    let mut panels = Vec::new();
    type Of = fn(&super::results::WalkCost) -> u64;
    let measures: [(&str, Option<f64>, Of); 3] = [
        ("Freshly mounted, MiB", Some(20.0), |walk| walk.idle),
        ("After the walk, MiB", None, |walk| walk.walked),
        (
            "Once the kernel's caches are dropped, MiB",
            Some(64.0),
            |walk| walk.forgotten,
        ),
    ];
    for (title, target, of) in measures {
        let bars = results.systems.iter().map(|system| {
            let walk = results.walks.get(&system.id)?;
            let mib = of(walk) as f64 / MIB;
            bar(&system.title, colour(&system.id), &[mib], |mib| {
                format!("{mib:.1}")
            })
        });
        panel(&mut panels, title, target, bars);
    }
    Panels {
        title: Group::Memory.title().to_owned(),
        note: format!(
            "Resident memory around a walk that stats {} files; less is better.",
            results.sizes.walk_files
        ),
        panels,
    }
}

fn mount(results: &Results) -> Panels {
    let mut panels = Vec::new();
    let title = |files| format!("{files} files");
    let times = results.mounts.iter().map(|mount| {
        let ms: Vec<f64> = mount.seconds.iter().map(|s| s * 1e3).collect();
        bar(&title(mount.files), colour(OURS), &ms, |ms| {
            format!("{ms:.1}")
        })
    });
    panel(
        &mut panels,
        "Until the mount is there, ms",
        Some(15.0),
        times,
    );
    let sizes = results.mounts.iter().map(|mount| {
        let mib = mount.resident as f64 / MIB;
        bar(&title(mount.files), colour(OURS), &[mib], |mib| {
            format!("{mib:.1}")
        })
    });
    panel(&mut panels, "Idle daemon, MiB", Some(20.0), sizes);
    Panels {
        title: "ovl mount of an image".to_owned(),
        note: "By the number of files in the image; less is better.".to_owned(),
        panels,
    }
}

fn store(results: &Results) -> Panels {
    let mut panels = Vec::new();
    let fastest = results
        .imports
        .iter()
        .filter(|import| import.id != OURS)
        .filter_map(|import| median(&import.seconds))
        .reduce(f64::min);
    let unique = (results.unique_layer_bytes as f64 / 1e6) * 0.25;
    type Of = fn(&ImportCosts) -> Vec<f64>;
    let measures: [(&str, Option<f64>, Of); 8] = [
        ("Import, s", fastest.map(|s| s / 2.0), |i| i.seconds.clone()),
        ("Import with gzip layers, s", None, |i| {
            i.gzip_seconds.clone()
        }),
        ("Second version, s", None, |i| {
            i.second_seconds.into_iter().collect()
        }),
        ("Export, s", None, |i| i.export_seconds.clone()),
        ("Mount of the image, s", None, |i| i.mount_seconds.clone()),
        ("Removal of one version, s", Some(2.0), |i| {
            i.remove_seconds.clone()
        }),
        ("Disk after both versions, MB", Some(unique), |i| {
            let mb = i.disk_both.map(|bytes| bytes as f64 / 1e6);
            mb.into_iter().collect()
        }),
        ("Peak memory of an import, MiB", Some(256.0), |i| {
            match i.memory {
                0 => Vec::new(),
                bytes => vec![bytes as f64 / MIB],
            }
        }),
    ];
    for (title, target, of) in measures {
        let bars = results.imports.iter().map(|import| {
            let short_title = import.title.split(' ').next().unwrap_or(&import.title);
            let values = of(import);
            bar(
                short_title,
                program_colour(&import.id),
                &values,
                |value| match value >= 20.0 {
                    true => format!("{value:.0}"),
                    false => short(value),
                },
            )
        });
        panel(&mut panels, title, target.filter(|mark| *mark > 0.0), bars);
    }
    Panels {
        title: Group::Store.title().to_owned(),
        note: "The five-layer test image, into an empty store each time; less is better."
            .to_owned(),
        panels,
    }
}

fn containers(results: &Results) -> Panels {
    let mut panels = Vec::new();
    type Of = fn(&super::results::ContainerStart) -> &Vec<f64>;
    let measures: [(Work, &str, Of); 4] = [
        (Work::Nothing, "Nothing, warm, ms", |s| &s.warm),
        (Work::Nothing, "Nothing, cold, ms", |s| &s.cold),
        (Work::Program, "400 modules, warm, ms", |s| &s.warm),
        (Work::Program, "400 modules, cold, ms", |s| &s.cold),
    ];
    for (work, title, of) in measures {
        let starts = results.containers.iter().filter(|start| start.work == work);
        let bars = starts.map(|start| {
            let ms: Vec<f64> = of(start).iter().map(|s| s * 1e3).collect();
            let name = start.title.split(',').next().unwrap_or(&start.title);
            bar(name, program_colour(&start.id), &ms, |ms| {
                format!("{ms:.0}")
            })
        });
        panel(&mut panels, title, None, bars);
    }
    Panels {
        title: Group::Containers.title().to_owned(),
        note: "A container that does nothing, and one that reads 400 Python modules, from the command to its end; less is better."
            .to_owned(),
        panels,
    }
}
