//! The command line: one file per verb, each of which parses its words, calls the library and prints. No logic here.
//!
//! stdout carries data ([`output`]), stderr words: one `ovl: …` line for an error ([`error`]), progress ([`progress`]).

mod cat;
mod change;
mod commit;
mod completion;
mod df;
mod diff;
mod dropin;
mod entries;
mod error;
mod exec;
mod export;
mod find;
mod fsck;
mod gc;
mod history;
mod images;
mod import;
mod info;
mod inspect;
mod limits;
mod live;
mod mount;
mod mounts;
mod output;
mod progress;
mod ps;
mod rm;
mod run;
mod tag;
mod time;
mod tree;
mod version;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use ovl::store::Store;

use error::{StdoutClosed, exit_code, one_line};

/// Copy-on-write overlay filesystem and container image store.
///
/// Keeps container images deduplicated in a verified store, and mounts them, or any directories, writable without unpacking.
#[derive(Parser)]
#[command(
    name = "ovl",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done, 1 failure, 2 usage, 3 conflict, 4 not found, 5 integrity, 75 busy.\n\
    `ovl VERB --help` tells more of each."
)]
struct Cli {
    /// Directory of the store [default: /var/lib/ovl for root, else ~/.local/share/ovl]
    #[arg(
        long,
        global = true,
        env = "OVL_ROOT",
        hide_env_values = true,
        value_name = "DIR",
        display_order = 100
    )]
    root: Option<PathBuf>,
    /// Least serious message to log on stderr
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        default_value = "warn",
        display_order = 101
    )]
    #[arg(value_parser = ["error", "warn", "info", "debug", "trace"], hide_possible_values = true)]
    log_level: String,
    /// How progress is shown on stderr: auto (bars on a terminal), plain, json, none
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "HOW",
        default_value = "auto",
        display_order = 102
    )]
    #[arg(hide_possible_values = true)]
    progress: progress::Mode,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Import(import::Import),
    Export(export::Export),
    Images(images::Images),
    Inspect(inspect::Inspect),
    History(history::History),
    Tree(tree::Tree),
    Cat(cat::Cat),
    Tag(tag::Tag),
    Untag(tag::Untag),
    Rmi(tag::Rmi),
    Mount(mount::Mount),
    Umount(mounts::Umount),
    Mounts(mounts::Mounts),
    Diff(diff::Diff),
    Commit(commit::Commit),
    Run(run::Run),
    Exec(exec::Exec),
    Ps(ps::Ps),
    Rm(rm::Rm),
    Gc(gc::Gc),
    Fsck(fsck::Fsck),
    Df(df::Df),
    Info(info::Info),
    Completion(completion::Completion),
    #[command(hide = true)]
    Man(completion::Man),
    Version(version::Version),
}

impl Verb {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Import(verb) => verb.run(context),
            Self::Export(verb) => verb.run(context),
            Self::Images(verb) => verb.run(context),
            Self::Inspect(verb) => verb.run(context),
            Self::History(verb) => verb.run(context),
            Self::Tree(verb) => verb.run(context),
            Self::Cat(verb) => verb.run(context),
            Self::Tag(verb) => verb.run(context),
            Self::Untag(verb) => verb.run(context),
            Self::Rmi(verb) => verb.run(context),
            Self::Mount(verb) => verb.run(context),
            Self::Umount(verb) => verb.run(),
            Self::Mounts(verb) => verb.run(),
            Self::Diff(verb) => verb.run(context),
            Self::Commit(verb) => verb.run(context),
            Self::Run(verb) => verb.run(context),
            Self::Exec(verb) => verb.run(context),
            Self::Ps(verb) => verb.run(context),
            Self::Rm(verb) => verb.run(context),
            Self::Gc(verb) => verb.run(context),
            Self::Fsck(verb) => verb.run(context),
            Self::Df(verb) => verb.run(context),
            Self::Info(verb) => verb.run(context),
            Self::Completion(verb) => verb.run(),
            Self::Man(verb) => verb.run(),
            Self::Version(verb) => verb.run(),
        }
    }
}

/// What the global options say.
struct Context {
    root: PathBuf,
    progress: progress::Mode,
}

impl Context {
    /// The store, made if it is not there.
    fn store(&self) -> anyhow::Result<Store> {
        Ok(Store::open(&self.root)?)
    }

    /// The store, if there is one: reading makes none.
    fn existing_store(&self) -> anyhow::Result<Option<Store>> {
        Ok(Store::open_existing(&self.root)?)
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    if let Some(code) = dropin::main(std::env::args_os()) {
        return code;
    }
    let cli = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    log_to_stderr(&cli.log_level);
    let context = Context {
        root: cli.root.unwrap_or_else(default_root),
        progress: cli.progress,
    };
    match cli.verb.run(&context) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ovl: {}", one_line(&error));
            exit_code(&error).into()
        }
    }
}

/// Where the store is when nobody says: as the XDG base directory specification has it, except for root.
fn default_root() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/lib/ovl".into();
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    data.unwrap_or_else(|| "/var/tmp".into()).join("ovl")
}

fn log_to_stderr(level: &str) {
    let colour = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(format!("ovl={level},error"))
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .init();
}

/// Help and version go to stdout; a mistake in the words becomes our one line.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match output::stdout(|out| write!(out, "{}", error.render())) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("{}", error.render());
        return ExitCode::from(2);
    }
    let verb = verb();
    eprintln!(
        "ovl: {}; see: ovl{verb} --help",
        usage_words(&error.render().to_string()),
    );
    // Codes below 125 are the container's.
    let of_container = matches!(verb.as_str(), " run" | " exec");
    ExitCode::from(if of_container { 125 } else { 2 })
}

/// What is wrong, from clap's paragraphs: its first one and its tips, in one line.
fn usage_words(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut words = String::new();
    for line in lines
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
    {
        words.push_str(if line.starts_with("tip:") { "; " } else { " " });
        words.push_str(line);
    }
    error::escape(words.trim_start().trim_start_matches("error: "))
}

/// The verb among the program's words, with a blank before it.
fn verb() -> String {
    let known = Cli::command();
    let is_verb = |word: &OsString| {
        known
            .get_subcommands()
            .any(|verb| *word == *verb.get_name())
    };
    std::env::args_os()
        .skip(1)
        .find(is_verb)
        .map_or(String::new(), |verb| format!(" {}", verb.display()))
}
