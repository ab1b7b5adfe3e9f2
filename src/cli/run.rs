//! `ovl run`: an image's command in a container.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ovl::mount::Merge;
use ovl::run::{self, Containers, ImageConfig, Outcome, Request, Volume};

use super::error::{Failure, one_line};
use super::mount::Who;
use super::{Context, find, mounts, output};

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Net {
    /// A loopback device and nothing else
    #[default]
    None,
    /// The host's network
    Host,
}

/// Run a command in a new container
///
/// The container's root is a mount of IMAGE; what it changes is kept apart, for `ovl diff` and `ovl commit`, until
/// `ovl rm` (or the end, with --rm). Without CMD the image's own command is run. The exit code is the command's, or 125 if ovl
/// itself failed, 126 if the command cannot be executed, 127 if there is none of that name.
#[derive(Args)]
pub struct Run {
    /// Pass stdin on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Go into the background once the command runs; prints the container's ID
    #[arg(short, long, conflicts_with = "interactive")]
    detach: bool,
    /// Throw the container and its changes away at its end
    #[arg(long)]
    rm: bool,
    /// Name of the container [default: two words]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Show a file or directory of the host in the container; with O, changes go to an overlay that is thrown away
    #[arg(short, long, value_name = "SRC:DST[:ro|:O]")]
    volume: Vec<Volume>,
    /// Set a variable, or pass one on
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory, made if it is not there
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User and group, names of the image's or numbers
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The container cannot change its root
    #[arg(long)]
    read_only: bool,
    /// Run this in place of the image's entry point; a JSON list of words, too
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// The container's network: none or host
    #[arg(
        long,
        visible_alias = "network",
        value_enum,
        default_value_t,
        value_name = "NET",
        hide_possible_values = true
    )]
    net: Net,
    /// Who merges the image and the container's changes: fuse (ovl itself), kernel (its overlayfs: native speed for changes; needs
    /// root or a user namespace), or auto (the kernel where that works)
    #[arg(long, value_enum, value_name = "WHO", hide_possible_values = true)]
    merge: Option<Who>,
    /// Keep what was changed in `-v …:O` volumes, and say where
    #[arg(long)]
    keep: bool,
    /// runc or crun, by name or path [default: the first in PATH, crun before runc]
    #[arg(long, value_name = "PROGRAM")]
    runtime: Option<PathBuf>,
    /// Image, and the command to run with its words
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "IMAGE [CMD"
    )]
    words: Vec<String>,
}

impl Run {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let outcome = self.request(context).and_then(|request| {
            let containers = Containers::new(&context.root, &mounts::run_dir()?);
            Ok(run::run(&containers, &request)?)
        });
        match outcome {
            Ok(Outcome::Detached { id }) => output::line(&id),
            Ok(Outcome::Ended { code, kept }) => {
                for path in kept {
                    eprintln!("ovl: kept: {}", path.display());
                }
                std::process::exit(code)
            }
            Err(error) => Err(in_docker_terms(&error)),
        }
    }

    fn request(mut self, context: &Context) -> anyhow::Result<Request> {
        let command = self.words.split_off(1);
        let image = self.words.swap_remove(0);
        let found = context.find(&image)?;
        let document = found.store.document(&found.record.config)?;
        let config = ImageConfig::parse(&document.unwrap_or_default())?;
        Ok(Request {
            image,
            manifest: found.record.manifest,
            image_id: found.record.config,
            config,
            store_root: context.root.clone(),
            resolve_image: find::manifest_of,
            command,
            entrypoint: self.entrypoint.as_deref().map(entrypoint).transpose()?,
            name: self.name,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            volumes: self.volume,
            net: match self.net {
                Net::None => run::Net::None,
                Net::Host => run::Net::Host,
            },
            interactive: self.interactive,
            tty: self.tty,
            detach: self.detach,
            remove: self.rm,
            keep: self.keep,
            read_only: self.read_only,
            merge: self.merge.map(Merge::from).unwrap_or_default(),
            runtime: self.runtime,
        })
    }
}

fn entrypoint(word: &str) -> anyhow::Result<Vec<String>> {
    if word.starts_with('[') {
        return serde_json::from_str(word)
            .map_err(|error| Failure::usage(format!("--entrypoint {word}: {error}")));
    }
    Ok(Some(word.to_owned())
        .filter(|word| !word.is_empty())
        .into_iter()
        .collect())
}

/// An error of a command whose exit code is otherwise the container's.
pub fn in_docker_terms(error: &anyhow::Error) -> anyhow::Error {
    let code = error
        .downcast_ref::<run::Error>()
        .map_or(125, run::Error::run_exit_code);
    Failure::with_code(code, one_line(error))
}
