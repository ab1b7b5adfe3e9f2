//! `ovl completion SHELL` and the hidden `ovl man DIR`, from the same definitions that parse the command line.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory};

use super::{Cli, output};

/// Print a completion script for a shell
///
/// For bash: `ovl completion bash > ~/.local/share/bash-completion/completions/ovl`.
#[derive(Args)]
pub struct Completion {
    /// bash, elvish, fish, powershell or zsh
    #[arg(value_enum, hide_possible_values = true)]
    shell: clap_complete::Shell,
}

impl Completion {
    pub fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "ovl", &mut script);
        output::stdout(|out| out.write_all(&script))
    }
}

/// Write the man pages into a directory
#[derive(Args)]
pub struct Man {
    dir: PathBuf,
}

impl Man {
    pub fn run(self) -> anyhow::Result<()> {
        let Self { dir } = self;
        clap_mangen::generate_to(Cli::command(), &dir)
            .with_context(|| format!("writing man pages into {}", dir.display()))
    }
}
