//! `ovl gc`: give back what no image and no mount needs.

use clap::Args;
use serde::Serialize;

use super::Context;
use super::output::{self, Format, count, size};

/// Remove layers and data that no image and no mount needs
#[derive(Args)]
pub struct Gc {
    /// table or json
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
struct Answer {
    layers: u64,
    chunks: u64,
    freed: u64,
}

impl Gc {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = match context.existing_store()? {
            Some(store) => {
                let report = store.gc()?;
                Answer {
                    layers: report.layers,
                    chunks: report.chunks,
                    freed: report.freed_bytes,
                }
            }
            None => Answer::default(),
        };
        match self.format {
            Format::Json => output::json(&answer),
            Format::Table => {
                let Answer {
                    layers,
                    chunks,
                    freed,
                } = answer;
                let (layers, chunks) = (count(layers, "layer"), count(chunks, "chunk"));
                output::line(&format!(
                    "removed {layers} and {chunks}, freed {}",
                    size(freed)
                ))
            }
        }
    }
}
