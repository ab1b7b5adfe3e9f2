//! `ovl df`: what the store holds and what it costs.

use clap::Args;
use ovl::store::Usage;
use serde::Serialize;

use super::Context;
use super::output::{self, Format, Table, size};

/// Show how much room the store takes
///
/// RAW counts each layer's tar, UNIQUE each distinct piece of it once, STORED those pieces compressed.
#[derive(Args)]
pub struct Df {
    /// table, or json (in bytes)
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    format: Format,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    images: u64,
    layers: u64,
    raw: u64,
    unique: u64,
    stored: u64,
    disk: u64,
    reclaimable: u64,
}

impl From<Usage> for Row {
    fn from(usage: Usage) -> Self {
        Self {
            images: usage.images,
            layers: usage.layers,
            raw: usage.raw_bytes,
            unique: usage.unique_bytes,
            stored: usage.stored_bytes,
            disk: usage.disk_bytes,
            reclaimable: usage.reclaimable_bytes,
        }
    }
}

impl Df {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let row = match context.existing_store()? {
            Some(store) => Row::from(store.usage()?),
            None => Row::default(),
        };
        if self.format == Format::Json {
            return output::json(&row);
        }
        let mut table = Table::new(&[
            "IMAGES",
            "LAYERS",
            "RAW",
            "UNIQUE",
            "STORED",
            "ON DISK",
            "RECLAIMABLE",
        ]);
        let mut cells = vec![row.images.to_string(), row.layers.to_string()];
        cells.extend([row.raw, row.unique, row.stored, row.disk, row.reclaimable].map(size));
        table.row(cells);
        table.print()
    }
}
