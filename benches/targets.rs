//! What the project wants of itself, and whether a run reached it. The engine's targets are for the FUSE merge.

use super::results::{Results, RowResults, Work};
use super::systems::{BASE, OURS, OVER_RING, PASSTHROUGH, UNDER_KERNEL};

/// fuse-overlayfs in both versions.
const FUSE_PEERS: [&str; 2] = ["fo1", "fo2"];

#[derive(Clone, Copy, Debug)]
enum Goal {
    /// Ratio to ext4.
    AtMost(f64),
    AtLeast(f64),
    /// At least as fast as each of these.
    NotSlowerThan(&'static [&'static str]),
    /// Time as a multiple of another system's.
    TimesOf(&'static str, f64),
}

const GOALS: &[(&str, &[Goal])] = &[
    ("read.seq", &[Goal::AtLeast(0.75)]),
    ("read.rand", &[Goal::AtLeast(0.75)]),
    ("write.seq", &[Goal::AtLeast(0.30)]),
    ("write.rand", &[Goal::AtLeast(1.0)]),
    ("write.fsync", &[Goal::NotSlowerThan(&FUSE_PEERS)]),
    ("find.cold", &[Goal::AtMost(3.5)]),
    ("find.warm", &[Goal::AtMost(3.5)]),
    ("stat.cold", &[Goal::AtMost(3.5)]),
    ("stat.warm", &[Goal::AtMost(1.3)]),
    ("open.cold", &[Goal::AtMost(2.5)]),
    ("open.warm", &[Goal::AtMost(1.6)]),
    ("open.upper.cold", &[Goal::AtMost(2.5)]),
    ("open.upper.warm", &[Goal::AtMost(1.6)]),
    ("tar.cold", &[Goal::AtMost(1.8)]),
    ("tar.warm", &[Goal::AtMost(2.0)]),
    ("create", &[Goal::AtMost(6.0)]),
    ("rename", &[Goal::AtMost(5.0)]),
    ("unlink", &[Goal::AtMost(6.0)]),
    ("unpack", &[Goal::AtMost(7.0)]),
    ("clone", &[Goal::AtMost(7.0)]),
    (
        "lower.unlink",
        &[Goal::NotSlowerThan(&["fo2"]), Goal::TimesOf("kernel", 10.0)],
    ),
    ("lower.chmod", &[Goal::NotSlowerThan(&["fo2"])]),
    ("lower.append", &[Goal::NotSlowerThan(&["fo2"])]),
    ("copyup", &[Goal::NotSlowerThan(&["kernel", "fo1", "fo2"])]),
    ("dbench", &[Goal::NotSlowerThan(&FUSE_PEERS)]),
    ("sqlite", &[Goal::NotSlowerThan(&FUSE_PEERS)]),
];

/// The same for the merge by the kernel over what ovl serves.
const GOALS_UNDER_KERNEL: &[(&str, &[Goal])] = &[
    ("open.warm", &[Goal::AtMost(1.7)]),
    ("create", &[Goal::TimesOf("kernel", 1.15)]),
    ("rename", &[Goal::TimesOf("kernel", 1.15)]),
    ("unlink", &[Goal::TimesOf("kernel", 1.15)]),
    ("write.seq", &[Goal::TimesOf("kernel", 1.15)]),
    ("write.rand", &[Goal::TimesOf("kernel", 1.15)]),
];

/// The same for files that the kernel reads and writes itself: those of the upper.
const GOALS_PASSTHROUGH: &[(&str, &[Goal])] = &[
    ("changed.seq", &[Goal::AtLeast(0.95)]),
    ("changed.rand", &[Goal::AtLeast(0.95)]),
    ("write.seq", &[Goal::AtLeast(0.95)]),
    ("write.rand", &[Goal::AtLeast(1.0)]),
];

const MIB: f64 = (1 << 20) as f64;

/// A wish compared with what was measured.
pub struct Verdict {
    /// Key of the row, for remarks.
    pub id: String,
    pub title: String,
    pub wanted: String,
    pub found: String,
    pub met: bool,
    /// What [`OURS`] has over io_uring, and whether that meets it.
    pub over_ring: Option<(String, bool)>,
}

/// A system's key in words.
fn familiar(id: &str) -> &str {
    match id {
        "kernel" => "kernel overlayfs",
        "fo1" => "fuse-overlayfs 1.x",
        "fo2" => "fuse-overlayfs 2.x",
        other => other,
    }
}

impl Goal {
    fn wanted(self) -> String {
        match self {
            Self::AtMost(ratio) => format!("≤ {ratio}"),
            Self::AtLeast(ratio) => format!("≥ {ratio}"),
            Self::NotSlowerThan(peers) => {
                let names: Vec<&str> = peers.iter().map(|peer| familiar(peer)).collect();
                format!("no slower than {}", names.join(", "))
            }
            Self::TimesOf(peer, times) => format!("≤ {times}x {}", familiar(peer)),
        }
    }

    /// `None` where something it needs was not measured.
    fn judge(self, row: &RowResults, own: &str) -> Option<(String, bool)> {
        let as_time = |peer: &str| {
            let ratio = row.ratio(own, peer)?;
            Some(if row.more_is_better {
                1.0 / ratio
            } else {
                ratio
            })
        };
        Some(match self {
            Self::AtMost(most) => row
                .ratio(own, BASE)
                .map(|ratio| (format!("{ratio:.2}"), ratio <= most))?,
            Self::AtLeast(least) => row
                .ratio(own, BASE)
                .map(|ratio| (format!("{ratio:.2}"), ratio >= least))?,
            Self::NotSlowerThan(peers) => {
                let times: Vec<(f64, &str)> = peers
                    .iter()
                    .filter_map(|peer| Some((as_time(peer)?, *peer)))
                    .collect();
                let (worst, peer) = times.into_iter().max_by(|a, b| a.0.total_cmp(&b.0))?;
                (
                    format!("{worst:.2}x the time of {}", familiar(peer)),
                    worst <= 1.0,
                )
            }
            Self::TimesOf(peer, times) => as_time(peer)
                .map(|ratio| (format!("{ratio:.2}x {}", familiar(peer)), ratio <= times))?,
        })
    }
}

fn goals(of: &[(&str, &'static [Goal])], id: &str) -> &'static [Goal] {
    let found = of.iter().find(|(row, _)| *row == id);
    found.map_or(&[], |(_, goals)| goals)
}

/// What the table shows beside a row.
pub fn wanted(id: &str) -> String {
    let goals = goals(GOALS, id).iter();
    goals
        .map(|goal| goal.wanted())
        .collect::<Vec<_>>()
        .join("; ")
}

/// The strictest target of a row as a ratio to ext4, for a plot: those that name another system go by its own ratio.
pub fn mark(row: &RowResults) -> Option<f64> {
    let ratio = |peer: &str| row.ratio(peer, BASE);
    let strictest = |marks: &mut dyn Iterator<Item = f64>| match row.more_is_better {
        true => marks.reduce(f64::max),
        false => marks.reduce(f64::min),
    };
    let mut marks = goals(GOALS, &row.id).iter().filter_map(|goal| match goal {
        Goal::AtMost(mark) | Goal::AtLeast(mark) => Some(*mark),
        Goal::NotSlowerThan(peers) => strictest(&mut peers.iter().filter_map(|peer| ratio(peer))),
        Goal::TimesOf(peer, times) => ratio(peer).map(|ratio| match row.more_is_better {
            true => ratio / times,
            false => ratio * times,
        }),
    });
    strictest(&mut marks)
}

/// Every target that this run says something about.
pub fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for row in &results.rows {
        for (own, mode, table) in [
            (OURS, "", GOALS),
            (PASSTHROUGH, "passthrough", GOALS_PASSTHROUGH),
            (UNDER_KERNEL, "kernel merge", GOALS_UNDER_KERNEL),
        ] {
            for goal in goals(table, &row.id) {
                let Some((found, met)) = goal.judge(row, own) else {
                    continue;
                };
                let (id, title) = match own {
                    OURS => (row.id.clone(), row.title.clone()),
                    _ => (
                        format!("{own}:{}", row.id),
                        format!("{}, {mode}", row.title),
                    ),
                };
                verdicts.push(Verdict {
                    id,
                    title,
                    wanted: goal.wanted(),
                    found,
                    met,
                    over_ring: (own == OURS).then(|| goal.judge(row, OVER_RING)).flatten(),
                });
            }
        }
    }
    memory(results, &mut verdicts);
    mounts(results, &mut verdicts);
    store(results, &mut verdicts);
    containers(results, &mut verdicts);
    verdicts
}

fn verdict(id: &str, title: &str, wanted: &str, found: String, met: bool) -> Verdict {
    Verdict {
        id: id.to_owned(),
        title: title.to_owned(),
        wanted: wanted.to_owned(),
        found,
        met,
        over_ring: None,
    }
}

fn memory(results: &Results, verdicts: &mut Vec<Verdict>) {
    let Some(walk) = results.walks.get(OURS) else {
        return;
    };
    let mut at_most = |id, title, bytes: u64, most: f64| {
        let mib = bytes as f64 / MIB;
        verdicts.push(verdict(
            id,
            title,
            &format!("≤ {most} MiB"),
            format!("{mib:.1} MiB"),
            mib <= most,
        ));
    };
    at_most("memory.idle", "resident memory, idle", walk.idle, 20.0);
    at_most(
        "memory.walked",
        "resident memory after a walk, caches dropped",
        walk.forgotten,
        64.0,
    );
}

fn mounts(results: &Results, verdicts: &mut Vec<Verdict>) {
    let medians: Vec<f64> = results
        .mounts
        .iter()
        .filter_map(|mount| super::stats::median(&mount.seconds))
        .collect();
    let (Some(few), Some(many)) = (medians.first(), medians.last()) else {
        return;
    };
    let slowest = medians.iter().copied().fold(0.0, f64::max) * 1e3;
    verdicts.push(verdict(
        "mount",
        "mount of an image",
        "< 15 ms",
        format!("{slowest:.1} ms"),
        slowest < 15.0,
    ));
    let grows = many / few;
    // "The same", within what ten or twenty runs of a few milliseconds can tell.
    let wanted = "the same for few and many files";
    verdicts.push(verdict(
        "mount.grows",
        "mount of an image",
        wanted,
        format!("{grows:.2}x"),
        grows < 1.2,
    ));
}

fn containers(results: &Results, verdicts: &mut Vec<Verdict>) {
    for (work, key) in [(Work::Nothing, "run"), (Work::Program, "run.program")] {
        let of = |id: &str| {
            let mut starts = results.containers.iter();
            starts.find(|start| start.id == id && start.work == work)
        };
        let (Some(own), Some(theirs)) = (of(OURS), of("podman")) else {
            continue;
        };
        for (temperature, own, theirs) in [
            ("warm", &own.warm, &theirs.warm),
            ("cold", &own.cold, &theirs.cold),
        ] {
            let medians = (super::stats::median(own), super::stats::median(theirs));
            if let (Some(own), Some(theirs)) = medians {
                verdicts.push(verdict(
                    &format!("{key}.{temperature}"),
                    &format!("{}, {temperature}", work.title()),
                    "no slower than podman",
                    format!("{:.2}x the time of podman", own / theirs),
                    own <= theirs,
                ));
            }
        }
    }
}

fn store(results: &Results, verdicts: &mut Vec<Verdict>) {
    let median = |id: &str| {
        let import = results.imports.iter().find(|import| import.id == id)?;
        super::stats::median(&import.seconds)
    };
    let Some(ours) = results.imports.iter().find(|import| import.id == OURS) else {
        return;
    };
    let peers = ["skopeo", "podman", "ctr", "umoci"]
        .iter()
        .filter_map(|id| Some((median(id)?, *id)));
    if let (Some(own), Some((fastest, id))) =
        (median(OURS), peers.min_by(|a, b| a.0.total_cmp(&b.0)))
    {
        let times = fastest / own;
        verdicts.push(verdict(
            "import",
            "import",
            "2x faster than the fastest peer",
            format!("{times:.2}x ({id})"),
            times >= 2.0,
        ));
    }
    let skopeo = results.imports.iter().find(|import| import.id == "skopeo");
    if let (Some(own), Some(theirs)) = (
        super::stats::median(&ours.export_seconds),
        skopeo.and_then(|skopeo| super::stats::median(&skopeo.export_seconds)),
    ) {
        verdicts.push(verdict(
            "export",
            "export",
            "no slower than skopeo",
            format!("{:.2}x the time of skopeo", own / theirs),
            own <= theirs,
        ));
    }
    if let Some(slowest) = ours.remove_seconds.iter().copied().reduce(f64::max) {
        verdicts.push(verdict(
            "remove",
            "rmi && gc of one version",
            "< 2 s",
            format!("{slowest:.2} s"),
            slowest < 2.0,
        ));
    }
    let mib = ours.memory as f64 / MIB;
    verdicts.push(verdict(
        "import.memory",
        "import, peak memory",
        "< 256 MiB",
        format!("{mib:.0} MiB"),
        mib < 256.0,
    ));
    if let Some(both) = ours.disk_both {
        let part = both as f64 / results.unique_layer_bytes as f64;
        let wanted = "≤ 0.25 of unique layer bytes";
        verdicts.push(verdict(
            "import.disk",
            "disk after both versions",
            wanted,
            format!("{part:.3}"),
            part <= 0.25,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::groups::Group;
    use super::super::results::tests::{results, row};
    use super::*;

    #[test]
    fn targets_that_name_others_are_marked_at_what_these_reached() {
        let mut row = row(
            "lower.unlink",
            Group::Changes,
            [[1.0; 3], [1.5; 3], [20.0; 3], [16.0; 3]],
        );
        // No slower than fuse-overlayfs 2.x (20), within ten times the kernel (15): the latter is stricter, and missed.
        assert_eq!(mark(&row), Some(15.0));
        let of = |row: &RowResults| -> Vec<bool> {
            let verdicts = verdicts(&results(vec![row.clone()]));
            verdicts.iter().map(|verdict| verdict.met).collect()
        };
        assert_eq!(of(&row), [true, false]);
        row.values.remove("kernel");
        assert_eq!(mark(&row), Some(20.0));
        assert_eq!(of(&row), [true], "what was not measured is not judged");
    }

    #[test]
    fn rates_are_judged_the_other_way_round() {
        let rates = [[100.0; 3], [98.0; 3], [40.0; 3], [50.0; 3]];
        let mut row = row("write.seq", Group::Data, rates);
        row.more_is_better = true;
        assert_eq!(mark(&row), Some(0.3));
        let under_kernel = [Some(90.0), Some(80.0), Some(90.0)];
        row.values
            .insert(UNDER_KERNEL.to_owned(), under_kernel.to_vec());
        let verdicts = verdicts(&results(vec![row]));
        let told: Vec<(&str, bool)> = verdicts.iter().map(|v| (v.id.as_str(), v.met)).collect();
        assert_eq!(told, [("write.seq", true), ("ovl-kernel:write.seq", true)]);
        assert_eq!(verdicts[1].found, "1.09x kernel overlayfs");
    }
}
