//! `ovl history`: the steps that made an image, newest first, and the layer of each.

use clap::Args;
use ovl::meta::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::Context;
use super::find::{Found, configuration};
use super::output::{self, Format, Table, id, size};
use super::time::{ago, parse_rfc3339};

/// Show the steps that made an image
#[derive(Args)]
pub struct History {
    /// A name or an ID
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Do not shorten IDs and commands
    #[arg(long)]
    no_trunc: bool,
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
struct Step {
    created: String,
    created_by: String,
    author: String,
    comment: String,
    /// Diff ID of the layer this step made; `None` for one that only changed the configuration.
    layer: Option<String>,
    /// Bytes of the layer's files, and of its tar.
    size: u64,
    tar_size: u64,
}

/// Characters of a command that a table shows.
const COMMAND: usize = 45;

impl History {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let found = context.find(&self.image)?;
        let steps = steps(&found)?;
        if self.format == Format::Json {
            return output::json(&steps);
        }
        let mut table = Table::new(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
        for (newer, step) in steps.iter().enumerate() {
            let image = if newer == 0 {
                id(&found.record.config, self.no_trunc)
            } else {
                "<missing>".to_owned()
            };
            let age = parse_rfc3339(&step.created)
                .map_or("N/A".to_owned(), |then| ago(then, Timestamp::now()));
            let mut command = step.created_by.clone();
            if !self.no_trunc && command.chars().count() > COMMAND {
                command = command.chars().take(COMMAND - 1).chain(['…']).collect();
            }
            table.row(vec![
                image,
                age,
                command,
                size(step.size),
                step.comment.clone(),
            ]);
        }
        table.print()
    }
}

/// The steps, newest first. A history that does not fit the layers is left as it is, and layers without a step follow it.
fn steps(found: &Found) -> anyhow::Result<Vec<Step>> {
    let Found { store, record, .. } = found;
    let configuration = configuration(store, record)?;
    let mut layers = record.layers.iter();
    let mut steps = Vec::new();
    let mut step = |entry: &Value, layer: Option<&ovl::store::Digest>| -> anyhow::Result<()> {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        let info = layer
            .map(|digest| store.layer(digest))
            .transpose()?
            .flatten();
        steps.push(Step {
            created: text("created"),
            created_by: text("created_by"),
            author: text("author"),
            comment: text("comment"),
            layer: layer.map(ToString::to_string),
            size: info.as_ref().map_or(0, |info| info.files_size),
            tar_size: info.as_ref().map_or(0, |info| info.tar_size),
        });
        Ok(())
    };
    for entry in configuration["history"].as_array().into_iter().flatten() {
        let empty = entry["empty_layer"].as_bool().unwrap_or(false);
        step(entry, if empty { None } else { layers.next() })?;
    }
    for layer in layers {
        step(&Value::Null, Some(layer))?;
    }
    steps.reverse();
    Ok(steps)
}
