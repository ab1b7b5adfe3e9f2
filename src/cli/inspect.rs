//! `ovl inspect`: everything the store knows of images, as JSON in the shape of `docker image inspect`, or in short.

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};

use super::Context;
use super::find::{Found, configuration, created, familiar_names};
use super::output::{self, Format, Table, id, size};
use super::time::rfc3339;

/// Tell all about images, as JSON
///
/// JSON is in the shape of `docker image inspect`, with the manifest, and with sizes and compressed form of each layer. The
/// table shows each image's names, platform and layers.
#[derive(Args)]
pub struct Inspect {
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// json or table
    #[arg(
        long,
        value_enum,
        default_value_t = Format::Json,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    format: Format,
}

impl Inspect {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let described = self
            .images
            .iter()
            .map(|words| describe(&context.find(words)?));
        let described = described.collect::<anyhow::Result<Vec<Value>>>()?;
        if self.format == Format::Json {
            return output::json(&described);
        }
        for (n, image) in described.iter().enumerate() {
            if n > 0 {
                output::line("")?;
            }
            summary(image).print()?;
            layers(image).print()?;
        }
        Ok(())
    }
}

fn describe(found: &Found) -> anyhow::Result<Value> {
    let Found { store, record, .. } = found;
    let configuration = configuration(store, record)?;
    let manifest = store.document(&record.manifest)?;
    let manifest =
        manifest.with_context(|| format!("the store lacks the manifest {}", record.manifest))?;
    let manifest: Value = serde_json::from_slice(&manifest)
        .with_context(|| format!("reading the manifest {}", record.manifest))?;
    let diff_ids: Vec<String> = record.layers.iter().map(ToString::to_string).collect();
    let mut layers = Vec::with_capacity(record.layers.len());
    for (position, diff_id) in record.layers.iter().enumerate() {
        let layer = store
            .layer(diff_id)?
            .with_context(|| format!("the store lacks layer {diff_id}"))?;
        // The manifest's descriptor: the layer as it came, compressed or not.
        let blob = &manifest["layers"][position];
        layers.push(json!({
            "DiffId": diff_id.to_string(),
            "Size": layer.files_size,
            "TarSize": layer.tar_size,
            "Entries": layer.entries,
            "Blob": {
                "Digest": blob["digest"],
                "MediaType": blob["mediaType"],
                "Size": blob["size"],
            },
        }));
    }
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
        "RootFS": { "Type": "layers", "Layers": diff_ids },
        "Layers": layers,
        "History": configuration["history"],
        "Manifest": manifest,
    }))
}

fn summary(image: &Value) -> Table {
    let text = |key: &str| image[key].as_str().unwrap_or_default().to_owned();
    let platform = ["Os", "Architecture", "Variant"].map(text);
    let platform: Vec<String> = platform
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    let names: Vec<&str> = image["RepoTags"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let names = match names.as_slice() {
        [] => "<none>".to_owned(),
        names => names.join(" "),
    };
    let mut table = Table::new(&["NAME", &names]);
    for (heading, value) in [
        ("IMAGE ID", text("Id")),
        ("DIGEST", text("Digest")),
        ("MEDIA TYPE", text("MediaType")),
        ("PLATFORM", platform.join("/")),
        ("CREATED", text("Created")),
        ("IMPORTED", text("Imported")),
        ("SIZE", size(image["Size"].as_u64().unwrap_or(0))),
    ] {
        table.row(vec![heading.to_owned(), value]);
    }
    table
}

fn layers(image: &Value) -> Table {
    let mut table = Table::new(&[
        "LAYER",
        "DIFF ID",
        "SIZE",
        "TAR",
        "ENTRIES",
        "BLOB",
        "BLOB SIZE",
    ]);
    for (n, layer) in image["Layers"].as_array().into_iter().flatten().enumerate() {
        let digest = |value: &Value| {
            let digest = value.as_str().and_then(|text| text.parse().ok());
            digest.map_or_else(|| "-".to_owned(), |digest| id(&digest, false))
        };
        let bytes = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), size);
        table.row(vec![
            n.to_string(),
            digest(&layer["DiffId"]),
            bytes(&layer["Size"]),
            bytes(&layer["TarSize"]),
            layer["Entries"].to_string(),
            digest(&layer["Blob"]["Digest"]),
            bytes(&layer["Blob"]["Size"]),
        ]);
    }
    table
}
