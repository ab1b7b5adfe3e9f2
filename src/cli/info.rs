//! `ovl info`: where things are, and what this machine lets ovl do.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::output::{self, Format};
use super::{Context, mounts};

/// Tell where things are, and what this machine allows
#[derive(Args)]
pub struct Info {
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
    version: &'static str,
    root: String,
    images: u64,
    layers: u64,
    run_directory: String,
    mounts: usize,
    kernel: String,
    cpus: usize,
    user: u32,
    /// `/dev/fuse` can be opened, or why not.
    fuse: String,
}

impl Info {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let usage = context
            .existing_store()?
            .map(|store| store.usage())
            .transpose()?;
        let run_dir = mounts::run_dir()?;
        let answer = Answer {
            version: env!("CARGO_PKG_VERSION"),
            root: context.root.display().to_string(),
            images: usage.as_ref().map_or(0, |usage| usage.images),
            layers: usage.as_ref().map_or(0, |usage| usage.layers),
            run_directory: run_dir.path().display().to_string(),
            mounts: ovl::mount::list(&run_dir)?.len(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            user: rustix::process::geteuid().as_raw(),
            fuse: fuse(),
        };
        if self.format == Format::Json {
            return output::json(&answer);
        }
        output::stdout(|out| {
            writeln!(out, "Version: {}", answer.version)?;
            writeln!(out, "Root: {}", answer.root)?;
            writeln!(out, "Images: {}", answer.images)?;
            writeln!(out, "Layers: {}", answer.layers)?;
            writeln!(out, "Run directory: {}", answer.run_directory)?;
            writeln!(out, "Mounts: {}", answer.mounts)?;
            writeln!(out, "Kernel: {}", answer.kernel)?;
            writeln!(out, "CPUs: {}", answer.cpus)?;
            writeln!(out, "User: {}", answer.user)?;
            writeln!(out, "FUSE: {}", answer.fuse)
        })
    }
}

fn fuse() -> String {
    let device = Path::new("/dev/fuse");
    match std::fs::File::options().read(true).write(true).open(device) {
        Ok(_) => "available".to_owned(),
        Err(error) => format!("{}: {error}", device.display()),
    }
}
