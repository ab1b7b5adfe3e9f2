//! What was measured, as it is kept in docs/benchmarks/*.json.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::settings::{Mode, Sizes};
use crate::stats;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    pub mode: Mode,
    /// UTC.
    pub date: String,
    /// What the figures are of: the commit, and whether the tree had changes on top.
    pub commit: String,
    pub machine: Machine,
    pub sizes: Sizes,
    pub systems: Vec<SystemName>,
    pub rows: Vec<RowResults>,
    pub walks: BTreeMap<String, WalkCost>,
    pub mounts: Vec<MountLatency>,
    pub imports: Vec<ImportCosts>,
    /// Bytes of the different layers of both versions of the image, and of the first version's archive.
    pub unique_layer_bytes: u64,
    pub archive_bytes: u64,
    /// Rows that did not work on a system.
    pub failures: Vec<String>,
    pub minutes: f64,
    /// The store's figures, where they were measured in a run of their own.
    #[serde(default)]
    pub store_run: Option<StoreRun>,
    #[serde(default)]
    pub containers: Vec<ContainerStart>,
    /// The same for the containers' figures.
    #[serde(default)]
    pub containers_run: Option<StoreRun>,
}

/// When and of what the figures of a part are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreRun {
    pub date: String,
    pub commit: String,
    pub repetitions: usize,
}

impl Results {
    /// These results with the containers' figures of `newer`.
    pub fn with_containers_of(mut self, newer: Self) -> Self {
        self.containers_run = Some(StoreRun {
            date: newer.date,
            commit: newer.commit,
            repetitions: newer.containers.first().map_or(0, |c| c.warm.len()),
        });
        self.containers = newer.containers;
        self
    }

    /// These results with the store's figures of `newer`.
    pub fn with_store_of(mut self, newer: Self) -> Self {
        self.store_run = Some(StoreRun {
            date: newer.date,
            commit: newer.commit,
            repetitions: newer.sizes.store_repetitions,
        });
        self.imports = newer.imports;
        self.unique_layer_bytes = newer.unique_layer_bytes;
        self.archive_bytes = newer.archive_bytes;
        self
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
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RowResults {
    pub id: String,
    pub title: String,
    pub unit: String,
    pub more_is_better: bool,
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
    pub disk_one: Option<u64>,
    pub disk_both: Option<u64>,
    pub failure: Option<String>,
}
