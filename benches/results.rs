//! What was measured, as it is kept in docs/benchmarks/*.json: each figure with the commit it is of, since a later run may
//! replace a part.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::groups::Group;
use super::settings::{Mode, Sizes};
use super::{rows, stats};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub mode: Mode,
    pub machine: Machine,
    pub sizes: Sizes,
    pub systems: Vec<SystemName>,
    /// Systems that could not be had, and why.
    pub absent: Vec<String>,
    pub rows: Vec<RowResults>,
    pub walks: BTreeMap<String, WalkCost>,
    pub mounts: Vec<MountLatency>,
    pub imports: Vec<ImportCosts>,
    /// Bytes of the different layers of both versions of the image, and of the first version's archives: plain, and with
    /// gzip layers.
    pub unique_layer_bytes: u64,
    pub archive_bytes: u64,
    pub gzip_bytes: u64,
    pub containers: Vec<ContainerStart>,
    /// When and of what the figures of a group are that has no rows.
    pub stamps: BTreeMap<Group, Stamp>,
    pub failures: Vec<Failure>,
    /// How long the run (the last one, where parts were replaced) took.
    pub minutes: f64,
}

/// When and of what figures are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    /// The commit, with a plus where the tree had changes on top.
    pub commit: String,
    /// UTC.
    pub date: String,
    pub repetitions: usize,
}

/// Something that did not work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Key of a row, or name of a group.
    pub of: String,
    pub said: String,
}

impl Results {
    /// Refuses to stand beside figures of other work or of another machine.
    pub fn fits(&self, sizes: &Sizes, machine: &Machine) -> Result<()> {
        ensure!(
            self.sizes.same_work(sizes),
            "the kept results are of other amounts of work; measure everything anew, or choose another --out"
        );
        ensure!(
            self.machine.same(machine),
            "the kept results are of another machine or kernel; measure everything anew, or choose another --out"
        );
        Ok(())
    }

    /// These results with everything `newer` has measured put in. Figures that cannot stand beside each other are refused.
    pub fn with(mut self, newer: Self) -> Result<Self> {
        self.fits(&newer.sizes, &newer.machine)?;
        for row in &newer.rows {
            let kept = self.rows.iter().find(|kept| kept.id == row.id);
            let lost = kept.iter().flat_map(|kept| kept.values.keys());
            let lost: Vec<&String> = lost.filter(|id| !row.values.contains_key(*id)).collect();
            ensure!(
                lost.is_empty(),
                "{}: the kept results have {lost:?}, too; name these systems as well, or choose another --out",
                row.id
            );
        }
        let again: BTreeSet<String> = newer.rows.iter().map(|row| row.id.clone()).collect();
        self.rows.retain(|row| !again.contains(&row.id));
        self.rows.extend(newer.rows);
        let place = |id: &str| {
            rows::all()
                .flat_map(|row| row.measures)
                .position(|measure| measure.id == id)
                .unwrap_or(usize::MAX)
        };
        self.rows.sort_by_key(|row| place(&row.id));
        for group in newer.stamps.keys() {
            match group {
                Group::Memory => self.walks.clone_from(&newer.walks),
                Group::Mount => self.mounts.clone_from(&newer.mounts),
                Group::Store => {
                    self.imports.clone_from(&newer.imports);
                    self.unique_layer_bytes = newer.unique_layer_bytes;
                    self.archive_bytes = newer.archive_bytes;
                    self.gzip_bytes = newer.gzip_bytes;
                }
                Group::Containers => self.containers.clone_from(&newer.containers),
                Group::Data | Group::Metadata | Group::Changes | Group::Programs => {}
            }
        }
        let replaced =
            |of: &str| again.contains(of) || newer.stamps.keys().any(|group| group.name() == of);
        self.failures.retain(|failure| !replaced(&failure.of));
        self.failures.extend(newer.failures);
        self.stamps.extend(newer.stamps);
        for system in newer.systems {
            match self.systems.iter_mut().find(|kept| kept.id == system.id) {
                Some(kept) => *kept = system,
                None => self.systems.push(system),
            }
        }
        if !again.is_empty() {
            self.absent = newer.absent;
        }
        self.machine = newer.machine;
        self.minutes = newer.minutes;
        Ok(self)
    }

    pub fn rows_of(&self, group: Group) -> impl Iterator<Item = &RowResults> {
        self.rows.iter().filter(move |row| row.group == group)
    }

    /// The systems that were measured in a group's rows.
    pub fn systems_of(&self, group: Group) -> impl Iterator<Item = &SystemName> {
        self.systems.iter().filter(move |system| {
            self.rows_of(group)
                .any(|row| row.values.contains_key(&system.id))
        })
    }

    /// Every stamp there is, oldest first.
    pub fn all_stamps(&self) -> Vec<&Stamp> {
        let mut stamps: Vec<&Stamp> = self.rows.iter().map(|row| &row.stamp).collect();
        stamps.extend(self.stamps.values());
        stamps.sort_by(|a, b| (&a.date, &a.commit).cmp(&(&b.date, &b.commit)));
        stamps.dedup_by(|a, b| a.date == b.date && a.commit == b.commit);
        stamps
    }
}

impl Machine {
    /// Versions of programs may differ.
    fn same(&self, other: &Self) -> bool {
        let hardware = |m: &Self| (m.processor.clone(), m.cores, m.memory_gib, m.kernel.clone());
        hardware(self) == hardware(other)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub distribution: String,
    pub programs: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SystemName {
    pub id: String,
    pub title: String,
    pub version: String,
}

/// One measure: by system, one value per repetition; `None` where it failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowResults {
    pub id: String,
    pub group: Group,
    pub title: String,
    pub unit: String,
    pub more_is_better: bool,
    pub stamp: Stamp,
    pub values: BTreeMap<String, Vec<Option<f64>>>,
    /// Processor seconds of the daemon meanwhile.
    pub daemon_cpu: BTreeMap<String, Vec<Option<f64>>>,
}

impl RowResults {
    pub fn of(&self, system: &str) -> &[Option<f64>] {
        self.values.get(system).map_or(&[], Vec::as_slice)
    }

    pub fn median(&self, system: &str) -> Option<f64> {
        stats::median(
            &self
                .of(system)
                .iter()
                .flatten()
                .copied()
                .collect::<Vec<_>>(),
        )
    }

    pub fn cpu(&self, system: &str) -> Option<f64> {
        let spent = self.daemon_cpu.get(system)?;
        stats::median(&spent.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// The least and the greatest ratio to another system in one repetition.
    pub fn extremes(&self, system: &str, base: &str) -> Option<(f64, f64)> {
        let ratios = stats::ratios(self.of(system), self.of(base));
        let least = ratios.iter().copied().reduce(f64::min)?;
        Some((least, ratios.iter().copied().reduce(f64::max)?))
    }

    /// To another system in the same repetition.
    pub fn ratio(&self, system: &str, base: &str) -> Option<f64> {
        stats::median_ratio(self.of(system), self.of(base))
    }
}

/// A daemon around a walk over many files. Memory is resident bytes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct WalkCost {
    pub idle: u64,
    pub walked: u64,
    /// After the kernel dropped its caches.
    pub forgotten: u64,
    pub seconds: f64,
    pub daemon_cpu: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountLatency {
    pub files: usize,
    pub seconds: Vec<f64>,
    /// Of the idle daemon, bytes.
    pub resident: u64,
}

/// What a container does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// `true`
    Nothing,
    /// The image's own, by its own user: Python reads 400 modules. All that was measured before there was a choice.
    #[default]
    Program,
}

impl Work {
    pub const fn title(self) -> &'static str {
        match self {
            Self::Nothing => "a container that does nothing",
            Self::Program => "a container that reads 400 Python modules",
        }
    }
}

/// From the command to its end, of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStart {
    pub id: String,
    #[serde(default)]
    pub work: Work,
    pub title: String,
    pub version: String,
    pub warm: Vec<f64>,
    pub cold: Vec<f64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ImportCosts {
    pub id: String,
    pub title: String,
    pub version: String,
    pub seconds: Vec<f64>,
    pub cpu: Vec<f64>,
    /// Peak resident bytes.
    pub memory: u64,
    /// The second version on top of the first.
    pub second_seconds: Option<f64>,
    #[serde(default)]
    pub export_seconds: Vec<f64>,
    #[serde(default)]
    pub export_cpu: Vec<f64>,
    /// Removing the first version: in the first repetition the second one is there, in the others it is the only one.
    #[serde(default)]
    pub remove_seconds: Vec<f64>,
    /// The first version as an OCI archive with gzip layers, into an empty store.
    #[serde(default)]
    pub gzip_seconds: Vec<f64>,
    #[serde(default)]
    pub gzip_cpu: Vec<f64>,
    /// Mounting the first version writable (podman: read-only), its layers being there.
    #[serde(default)]
    pub mount_seconds: Vec<f64>,
    pub disk_one: Option<u64>,
    pub disk_both: Option<u64>,
    pub failure: Option<String>,
}

#[cfg(test)]
pub mod tests {
    use super::super::groups::Group;
    use super::super::settings::Mode;
    use super::*;

    pub fn stamp(commit: &str, date: &str) -> Stamp {
        Stamp {
            commit: commit.to_owned(),
            date: date.to_owned(),
            repetitions: 3,
        }
    }

    /// Seconds of ext4, the kernel's overlay, fuse-overlayfs 2.x and ovl, each in three repetitions.
    pub fn row(id: &str, group: Group, values: [[f64; 3]; 4]) -> RowResults {
        let systems = ["ext4", "kernel", "fo2", "ovl"];
        let values = systems.iter().zip(values).map(|(system, values)| {
            let values = values.iter().map(|value| (*value > 0.0).then_some(*value));
            ((*system).to_owned(), values.collect())
        });
        RowResults {
            id: id.to_owned(),
            group,
            title: format!("work {id}"),
            unit: "s".to_owned(),
            more_is_better: false,
            stamp: stamp("aaaa", "2026-01-01 10:00"),
            values: values.collect(),
            daemon_cpu: BTreeMap::new(),
        }
    }

    pub fn results(rows: Vec<RowResults>) -> Results {
        let system = |(id, title): (&str, &str)| SystemName {
            id: id.to_owned(),
            title: title.to_owned(),
            version: "1".to_owned(),
        };
        let systems = [
            ("ext4", "ext4"),
            ("kernel", "kernel overlayfs"),
            ("fo2", "fuse-overlayfs 2.x"),
            ("ovl", "ovl, directory"),
        ];
        Results {
            mode: Mode::Quick,
            machine: Machine {
                processor: "some".to_owned(),
                cores: 2,
                memory_gib: 4,
                kernel: "6".to_owned(),
                distribution: "Debian".to_owned(),
                programs: Vec::new(),
            },
            sizes: Mode::Quick.sizes(),
            systems: systems.map(system).to_vec(),
            absent: Vec::new(),
            rows,
            walks: BTreeMap::new(),
            mounts: Vec::new(),
            imports: Vec::new(),
            unique_layer_bytes: 0,
            archive_bytes: 0,
            gzip_bytes: 0,
            containers: Vec::new(),
            stamps: BTreeMap::new(),
            failures: Vec::new(),
            minutes: 1.0,
        }
    }

    const ALIKE: [[f64; 3]; 4] = [[1.0; 3]; 4];

    #[test]
    fn a_part_replaces_what_it_measured_and_nothing_else() {
        let mut kept = results(vec![
            row("stat.warm", Group::Metadata, ALIKE),
            row("create", Group::Changes, ALIKE),
        ]);
        let failure = |of: &str| Failure {
            of: of.to_owned(),
            said: format!("{of} failed"),
        };
        kept.failures = vec![failure("create"), failure("stat.warm"), failure("store")];
        kept.stamps
            .insert(Group::Mount, stamp("aaaa", "2026-01-01 10:00"));
        let mut again = row("create", Group::Changes, [[2.0; 3]; 4]);
        again.stamp = stamp("bbbb", "2026-01-02 10:00");
        let mut newer = results(vec![row("find.warm", Group::Metadata, ALIKE), again]);
        newer
            .stamps
            .insert(Group::Store, stamp("bbbb", "2026-01-02 10:00"));
        newer.unique_layer_bytes = 7;

        let joined = kept.with(newer).unwrap();
        let rows: Vec<(&str, &str)> = joined
            .rows
            .iter()
            .map(|row| (row.id.as_str(), row.stamp.commit.as_str()))
            .collect();
        assert_eq!(
            rows,
            [
                ("find.warm", "aaaa"),
                ("stat.warm", "aaaa"),
                ("create", "bbbb")
            ]
        );
        let failed: Vec<&str> = joined.failures.iter().map(|f| f.of.as_str()).collect();
        assert_eq!(failed, ["stat.warm"]);
        assert_eq!(joined.unique_layer_bytes, 7);
        assert_eq!(joined.stamps[&Group::Mount].commit, "aaaa");
        assert_eq!(joined.all_stamps().len(), 2);
    }

    #[test]
    fn what_cannot_stand_together_is_refused() {
        let kept = || results(vec![row("create", Group::Changes, ALIKE)]);
        let refused = |newer: Results| kept().with(newer).unwrap_err().to_string();
        let mut other = kept();
        other.sizes.creates += 1;
        assert!(refused(other).contains("other amounts of work"));
        let mut other = kept();
        other.machine.kernel = "7".to_owned();
        assert!(refused(other).contains("another machine"));
        let mut fewer = kept();
        fewer.rows[0].values.remove("fo2");
        assert!(refused(fewer).contains("fo2"));
        let mut oftener = kept();
        oftener.sizes.repetitions += 5;
        assert!(kept().with(oftener).is_ok());
    }
}
