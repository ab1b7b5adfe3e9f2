//! The groups rows are told in, and asked for with `--only`.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    Data,
    Metadata,
    Changes,
    Programs,
    Memory,
    Mount,
    Store,
    Containers,
}

impl Group {
    pub const ALL: [Self; 8] = [
        Self::Data,
        Self::Metadata,
        Self::Changes,
        Self::Programs,
        Self::Memory,
        Self::Mount,
        Self::Store,
        Self::Containers,
    ];
    /// Those whose rows are told as ratios to ext4.
    pub const OF_ROWS: [Self; 4] = [Self::Data, Self::Metadata, Self::Changes, Self::Programs];

    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Metadata => "metadata",
            Self::Changes => "changes",
            Self::Programs => "programs",
            Self::Memory => "memory",
            Self::Mount => "mount",
            Self::Store => "store",
            Self::Containers => "containers",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Data => "Data",
            Self::Metadata => "Looking up and reading many files",
            Self::Changes => "Changing many files, and copy-up",
            Self::Programs => "Real programs",
            Self::Memory => "Memory of the daemon",
            Self::Mount => "`ovl mount` of an image",
            Self::Store => "Store",
            Self::Containers => "Containers",
        }
    }
}
