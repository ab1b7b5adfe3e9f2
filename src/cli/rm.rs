//! `ovl rm`: the end of containers.

use clap::Args;
use ovl::run::{self, Containers};

use super::error::one_line;
use super::{Context, mounts, output};

/// Remove containers, and what they changed
#[derive(Args)]
pub struct Rm {
    /// Kill those that run
    #[arg(short, long)]
    force: bool,
    /// Names, or beginnings of IDs
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Rm {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let containers = Containers::new(&context.root, &mounts::run_dir()?);
        let mut failed = None;
        for words in &self.containers {
            match run::remove(&containers, words, self.force) {
                Ok(name) => output::line(&name)?,
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        eprintln!("ovl: {}", one_line(&earlier.into()));
                    }
                }
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}
