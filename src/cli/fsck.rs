//! `ovl fsck`: is the store what it should be, and if not, what suffers.

use std::os::unix::ffi::OsStrExt;

use clap::Args;
use ovl::image;
use ovl::store::{Cure, FsckOptions, FsckReport, Problem};
use serde::Serialize;

use super::Context;
use super::error::{Failure, escape};
use super::find::familiar;
use super::output::{self, Format, count, size};
use super::progress::Steps;

/// Check the whole store, and repair it
///
/// Hashes every chunk, makes every layer's tar and compares it with its diff ID, and checks every row of the database and
/// what it refers to. Ends with 0 if all is well, with 5 if something is damaged.
///
/// With --repair, what is damaged is removed: a bad chunk with the layers that need it, and with those the images. Import
/// these again from where they came. What is good stays. Nothing is removed that a mount uses, or while an import runs
/// (75): then nothing is changed at all. Ends with 0 if the store is sound afterwards.
#[derive(Args)]
pub struct Fsck {
    /// Check the rows of the database only; do not read the stored bytes
    #[arg(long)]
    fast: bool,
    /// Remove what is damaged, and correct what can be
    #[arg(long)]
    repair: bool,
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
struct Answer<'a> {
    sound: bool,
    images: u64,
    layers: u64,
    contents: u64,
    chunks: u64,
    packs: u64,
    bytes: u64,
    problem_count: u64,
    problems: Vec<Row<'a>>,
    repaired: &'a [String],
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row<'a> {
    what: &'a str,
    why: &'a str,
    layer: Option<String>,
    path: Option<String>,
    images: Vec<String>,
    repair: &'static str,
}

impl<'a> Row<'a> {
    fn new(problem: &'a Problem) -> Self {
        Self {
            what: &problem.what,
            why: &problem.why,
            layer: problem.layer.map(|layer| layer.to_string()),
            path: problem
                .path
                .as_ref()
                .map(|path| path.as_bytes().escape_ascii().to_string()),
            images: images(problem),
            repair: cure(problem.cure),
        }
    }
}

const fn cure(cure: Cure) -> &'static str {
    match cure {
        Cure::Reindex => "reindex",
        Cure::Recount => "recount",
        Cure::RemoveRows => "remove-rows",
        Cure::RemoveBytes => "remove-bytes",
        Cure::RemoveLayer => "remove-layer",
        Cure::RemoveImage => "remove-image",
        Cure::RemoveBlob => "remove-blob",
    }
}

impl Fsck {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let report = match context.existing_store()? {
            Some(store) => {
                let steps = Steps::new(context.progress);
                let options = FsckOptions {
                    fast: self.fast,
                    repair: self.repair,
                    documents: Some(&image::check_documents),
                };
                let report = store.fsck(&options, &|progress| steps.tell(progress));
                steps.end();
                report?
            }
            None => FsckReport::default(),
        };
        match self.format {
            Format::Json => output::json(&Answer {
                sound: report.is_sound(),
                images: report.images,
                layers: report.layers,
                contents: report.contents,
                chunks: report.chunks,
                packs: report.packs,
                bytes: report.bytes,
                problem_count: report.problem_count,
                problems: report.problems.iter().map(Row::new).collect(),
                repaired: &report.repaired,
            })?,
            Format::Table => output::stdout(|out| {
                for problem in &report.problems {
                    writeln!(out, "{}", line(problem))?;
                }
                let untold = report.problem_count - report.problems.len() as u64;
                if untold > 0 {
                    writeln!(out, "and {} more", count(untold, "problem"))?;
                }
                for done in &report.repaired {
                    writeln!(out, "repaired: {}", escape(done))?;
                }
                writeln!(out, "{}", summary(&report))
            })?,
        }
        if report.is_sound() {
            return Ok(());
        }
        Err(Failure::damage(format!(
            "the store at {} is damaged: {}; importing its images again mends chunks, fsck --repair removes what is bad",
            context.root.display(),
            count(report.problem_count, "problem")
        )))
    }
}

/// `layer sha256:… path: why (image a, b)`
fn line(problem: &Problem) -> String {
    let mut line = problem.what.clone();
    if let Some(path) = &problem.path {
        line.push(' ');
        line.push_str(&path.as_bytes().escape_ascii().to_string());
    }
    line.push_str(": ");
    line.push_str(&problem.why);
    if !problem.images.is_empty() {
        line.push_str(&format!(" (image {})", images(problem).join(", ")));
    }
    escape(&line)
}

fn images(problem: &Problem) -> Vec<String> {
    problem.images.iter().map(|name| familiar(name)).collect()
}

fn summary(report: &FsckReport) -> String {
    let what = [
        count(report.images, "image"),
        count(report.layers, "layer"),
        count(report.contents, "content"),
        count(report.chunks, "chunk"),
        count(report.packs, "pack"),
    ]
    .join(", ");
    let bytes = match report.bytes {
        0 => String::new(),
        bytes => format!(", {} hashed", size(bytes)),
    };
    let verdict = match (report.problem_count, report.is_sound()) {
        (0, _) => "sound".to_owned(),
        (found, true) => format!("{} repaired", count(found, "problem")),
        (found, false) => count(found, "problem"),
    };
    format!("{verdict}: {what}{bytes}")
}
