//! `ovl gc`: give back what no image and no mount needs.

use clap::Args;
use ovl::store::GcReport;
use serde::Serialize;

use super::Context;
use super::output::{self, Format, count, size};
use super::progress::Steps;

/// Remove layers and data that no image and no mount needs
///
/// Works beside mounts and imports; only unused data stays while an import runs, for it may be about to use it: then gc
/// does the rest and ends with 75. Stopped at any moment, it goes on where it was the next time.
#[derive(Args)]
pub struct Gc {
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
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

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    layers: u64,
    chunks: u64,
    packs: u64,
    rewritten: u64,
    freed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_by: Option<Vec<String>>,
}

impl Gc {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (report, kept_by) = match context.existing_store()? {
            Some(store) if self.dry_run => {
                let (report, imports) = store.gc_preview()?;
                (report, Some(imports))
            }
            Some(store) => {
                let steps = Steps::new(context.progress);
                let report = store.gc_telling(&|progress| steps.tell(progress));
                steps.end();
                (report?, None)
            }
            None => (GcReport::default(), None),
        };
        if self.format == Format::Json {
            return output::json(&Answer {
                layers: report.layers,
                chunks: report.chunks,
                packs: report.packs,
                rewritten: report.rewritten,
                freed: report.freed_bytes,
                kept_by,
            });
        }
        let (layers, chunks) = (count(report.layers, "layer"), count(report.chunks, "chunk"));
        let freed = size(report.freed_bytes);
        output::line(&if self.dry_run {
            format!("would remove {layers} and {chunks}, and free about {freed}")
        } else {
            format!("removed {layers} and {chunks}, freed {freed}")
        })?;
        for import in kept_by.iter().flatten() {
            output::line(&format!("chunks would stay for now, because of {import}"))?;
        }
        Ok(())
    }
}
