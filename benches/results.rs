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

/// From the command to its end, of a container that does nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerStart {
    pub id: String,
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
