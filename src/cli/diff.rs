//! `ovl diff`: what a mount changed, or what two images differ in.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use ovl::overlay::ChangeKind;
use ovl::view::{self, Aspect};
use serde::Serialize;

use super::Context;
use super::error::{escape, stdout_error};
use super::live::Live;
use super::output::{self, Colour, Format, Paint};

/// Show what a mount or a container changed, or what two images differ in
///
/// A stands for added, C for changed, D for deleted. One word is a mount point, an ID from `ovl mounts` or a container: what was changed in it. Two words are images: what the second has
/// otherwise than the first. Directories are told for what is in them. JSON tells what is different: Type, Content, Mode,
/// Owner, Xattr, Time.
#[derive(Args)]
#[command(
    override_usage = "ovl diff [OPTIONS] MOUNTPOINT\n       ovl diff [OPTIONS] IMAGE1 IMAGE2"
)]
pub struct Diff {
    /// A mount point, an ID from `ovl mounts`, or a container; or an image
    #[arg(value_name = "MOUNTPOINT|IMAGE1")]
    one: OsString,
    /// The image to compare with
    #[arg(value_name = "IMAGE2")]
    other: Option<OsString>,
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
    /// Of what both have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    what: Vec<&'static str>,
}

/// Takes one difference after the other.
type Push<'p> = &'p mut dyn FnMut(&Row) -> anyhow::Result<()>;

impl Diff {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        if self.format == Format::Json {
            return output::json_list(|push| self.rows(context, true, push));
        }
        let paint = Paint::stdout();
        output::raw(|out| {
            self.rows(context, false, &mut |row| {
                let colour = match row.kind {
                    'A' => Colour::Green,
                    'D' => Colour::Red,
                    _ => Colour::Yellow,
                };
                let line = format!("{} {}", row.kind, escape(&row.path));
                writeln!(out, "{}", paint.put(colour, &line)).map_err(stdout_error)
            })
        })
    }

    fn rows(&self, context: &Context, aspects: bool, push: Push<'_>) -> anyhow::Result<()> {
        match &self.other {
            None => mount_rows(context, Path::new(&self.one), aspects, push),
            Some(other) => {
                let before = context.view(&self.one, "diff")?;
                let after = context.view(other, "diff")?;
                view::compare(&before, &after, &mut |difference| {
                    push(&Row {
                        kind: letter(difference.kind),
                        path: output::path(&difference.path),
                        what: words(&difference.aspects),
                    })
                })
            }
        }
    }
}

fn mount_rows(
    context: &Context,
    mount: &Path,
    aspects: bool,
    push: Push<'_>,
) -> anyhow::Result<()> {
    let live = Live::open(context, mount)?;
    let before = if aspects { live.before()? } else { None };
    let mut failed = None;
    let told = live.engine.changes(&mut |change| {
        let row = || {
            let what = match &before {
                Some(before) if change.kind == ChangeKind::Changed => {
                    view::aspects(before, &live.engine, &change.path)?.unwrap_or_default()
                }
                _ => Vec::new(),
            };
            push(&Row {
                kind: letter(change.kind),
                path: output::path(&change.path),
                what: words(&what),
            })
        };
        let mut row = row;
        row().map_err(|error| {
            failed = Some(error);
            std::io::Error::other("told already")
        })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(told?),
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

fn words(aspects: &[Aspect]) -> Vec<&'static str> {
    let word = |aspect: &Aspect| match aspect {
        Aspect::Type => "Type",
        Aspect::Content => "Content",
        Aspect::Mode => "Mode",
        Aspect::Owner => "Owner",
        Aspect::Xattr => "Xattr",
        Aspect::Time => "Time",
    };
    aspects.iter().map(word).collect()
}
