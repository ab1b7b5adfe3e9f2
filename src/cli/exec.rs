//! `ovl exec`: one more command in a running container.

use clap::Args;
use ovl::run::{self, Containers, ExecRequest};

use super::run::in_docker_terms;
use super::{Context, mounts};

/// Run a command in a running container
///
/// It runs as the container's own command does (user, variables, directory), but for what is asked for here. The exit code is
/// the command's, or 125, 126, 127 as of `ovl run`.
#[derive(Args)]
pub struct Exec {
    /// Pass stdin on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable, or pass one on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User and group, names of the image's or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The container's name, or the beginning of its ID
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The command and its words
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    #[arg(value_name = "CMD")]
    command: Vec<String>,
}

impl Exec {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let request = ExecRequest {
            container: self.container,
            command: self.command,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            interactive: self.interactive,
            tty: self.tty,
        };
        let outcome = mounts::run_dir().and_then(|run_dir| {
            let containers = Containers::new(&context.root, &run_dir);
            Ok(run::exec(&containers, &request)?)
        });
        match outcome {
            Ok(code) => std::process::exit(code),
            Err(error) => Err(in_docker_terms(&error)),
        }
    }
}
