//! `ovl inspect`: everything the store knows of images, as JSON in the shape of `docker image inspect`.

use clap::Args;
use serde_json::{Value, json};

use super::Context;
use super::find::{Found, configuration, created, familiar_names};
use super::output;
use super::time::rfc3339;

/// Tell all about images, as JSON
#[derive(Args)]
pub struct Inspect {
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Inspect {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let described = self
            .images
            .iter()
            .map(|words| describe(&context.find(words)?));
        output::json(&described.collect::<anyhow::Result<Vec<Value>>>()?)
    }
}

fn describe(found: &Found) -> anyhow::Result<Value> {
    let Found { store, record, .. } = found;
    let configuration = configuration(store, record)?;
    let layers: Vec<String> = record.layers.iter().map(ToString::to_string).collect();
    Ok(json!({
        "Id": record.config.to_string(),
        "RepoTags": familiar_names(record),
        "Digest": record.manifest.to_string(),
        "MediaType": record.manifest_media_type,
        "Created": rfc3339(created(&configuration, record)),
        "Imported": rfc3339(record.imported),
        "Author": configuration["author"],
        "Architecture": configuration["architecture"],
        "Variant": configuration["variant"],
        "Os": configuration["os"],
        "Size": record.size,
        "Config": configuration["config"],
        "RootFS": { "Type": "layers", "Layers": layers },
        "History": configuration["history"],
    }))
}
