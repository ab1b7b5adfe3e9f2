//! `ovl diff`: what a mount changed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;
use ovl::overlay::ChangeKind;
use serde::Serialize;

use super::Context;
use super::error::escape;
use super::live::Live;
use super::output::{self, Format};

/// Show what a mount or a container changed: A added, C changed, D deleted
#[derive(Args)]
pub struct Diff {
    /// A mount point, an ID from `ovl mounts`, or a container
    #[arg(value_name = "MOUNTPOINT")]
    mount: PathBuf,
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
struct Row {
    kind: char,
    path: String,
}

impl Diff {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let live = Live::open(context, &self.mount)?;
        let mut rows = Vec::new();
        live.engine.changes(&mut |change| {
            rows.push(Row {
                kind: letter(change.kind),
                path: absolute(&change.path),
            });
            Ok(())
        })?;
        match self.format {
            Format::Json => output::json(&rows),
            Format::Table => output::stdout(|out| {
                rows.iter()
                    .try_for_each(|row| writeln!(out, "{} {}", row.kind, escape(&row.path)))
            }),
        }
    }
}

/// Docker's letters.
fn letter(kind: ChangeKind) -> char {
    match kind {
        ChangeKind::Added => 'A',
        ChangeKind::Changed => 'C',
        ChangeKind::Deleted => 'D',
    }
}

/// A path from the mount's root as text; bytes that are none become `\xNN`, and `\` is doubled then.
fn absolute(path: &OsStr) -> String {
    match path.to_str() {
        Some(text) => format!("/{text}"),
        None => format!("/{}", path.as_bytes().escape_ascii()),
    }
}
