//! `ovl df`: what the store holds and what it costs.

use clap::Args;
use ovl::store::{ImageUsage, Usage};
use serde::Serialize;

use super::Context;
use super::find::{damaged_words, familiar, not_listed};
use super::output::{self, Format, Table, id, size};

/// Show how much room the store takes
///
/// RAW counts each layer's tar, UNIQUE each distinct piece of it once, STORED those pieces compressed, RECLAIMABLE what gc
/// would free. Of each image, SHARED is what other images have as well, PRIVATE what removing it alone would free.
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
    per_image: Vec<ImageRow>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImageRow {
    id: String,
    digest: String,
    names: Vec<String>,
    raw: u64,
    unique: u64,
    stored: u64,
    shared: u64,
    private: u64,
    #[serde(skip)]
    short: String,
}

impl From<ImageUsage> for ImageRow {
    fn from(usage: ImageUsage) -> Self {
        Self {
            id: usage.config.to_string(),
            digest: usage.manifest.to_string(),
            short: match usage.names.as_slice() {
                [] => id(&usage.config, false),
                names => names
                    .iter()
                    .map(|name| familiar(name))
                    .collect::<Vec<_>>()
                    .join(" "),
            },
            names: usage.names,
            raw: usage.raw_bytes,
            unique: usage.unique_bytes,
            stored: usage.shared_bytes.saturating_add(usage.private_bytes),
            shared: usage.shared_bytes,
            private: usage.private_bytes,
        }
    }
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
            per_image: Vec::new(),
        }
    }
}

impl Df {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (row, damaged) = match context.existing_store()? {
            Some(store) => {
                let row = Row {
                    per_image: store
                        .image_usage()?
                        .into_iter()
                        .map(ImageRow::from)
                        .collect(),
                    ..Row::from(store.usage()?)
                };
                (row, store.list_images()?.1)
            }
            None => (Row::default(), Vec::new()),
        };
        self.print(row)?;
        if damaged.is_empty() {
            return Ok(());
        }
        Err(not_listed(damaged.iter().map(damaged_words)))
    }

    fn print(self, row: Row) -> anyhow::Result<()> {
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
        table.print()?;
        if row.per_image.is_empty() {
            return Ok(());
        }
        output::line("")?;
        let mut table = Table::new(&["IMAGE", "RAW", "UNIQUE", "STORED", "SHARED", "PRIVATE"]);
        for image in row.per_image {
            let mut cells = vec![image.short];
            cells.extend(
                [
                    image.raw,
                    image.unique,
                    image.stored,
                    image.shared,
                    image.private,
                ]
                .map(size),
            );
            table.row(cells);
        }
        table.print()
    }
}
