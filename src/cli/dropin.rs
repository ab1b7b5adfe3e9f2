//! The program by the name of fuse-overlayfs: that program's command line, for podman, buildah and mount(8).

use std::ffi::OsString;
use std::process::ExitCode;

use ovl::mount::dropin::{self, Order};
use ovl::mount::{self, Error};

use super::{default_root, error, log_to_stderr, mounts, output};

/// Does what the words ask for; `None` if the program was not called by one of these names.
pub fn main(words: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut words = words.into_iter();
    let name = dropin::called_as(&words.next()?)?;
    let order = match dropin::parse(name, words) {
        Ok(order) => order,
        Err(error) => return Some(failed(name, &error)),
    };
    let call = match order {
        Order::Say(text) => {
            let said = output::stdout(|out| write!(out, "{text}"));
            return Some(ExitCode::from(u8::from(said.is_err())));
        }
        Order::Mount(call) => call,
    };
    log_to_stderr(if call.debug { "debug" } else { "warn" });
    for warning in &call.warnings {
        eprintln!("{warning}");
    }
    let run_dir = match mounts::run_dir() {
        Ok(run_dir) => run_dir,
        Err(error) => {
            eprintln!("{name}: {}", error::one_line(&error));
            return Some(ExitCode::FAILURE);
        }
    };
    let done = call
        .spec(run_dir, default_root())
        .and_then(|spec| mount::run(&spec, |_| ()));
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(name, &error),
    })
}

fn failed(name: &str, error: &Error) -> ExitCode {
    eprintln!("{name}: {}", error::escape(&error.to_string()));
    dropin::exit_code(name, error).into()
}
