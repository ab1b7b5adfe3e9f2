//! Into the background: the caller returns when the mount is visible, or with the reason why it is not.
//!
//! Forking comes before any thread, database or mount. What the caller's descriptors 1 and 2 lead to (perhaps a pipe
//! read to its end) is given up before the caller is told, and nothing else of the caller's is kept open.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;

use rustix::process::WaitOptions;

use super::error::{Error, Result};
use super::registry::Record;
use crate::sys::{self, Fork};

/// Tells the waiting caller that the mount is visible. Dropped unused, it tells nothing.
pub struct Ready {
    caller: Caller,
    log: File,
}

/// The pipe to the waiting caller, until the one answer has gone through it.
type Caller = Rc<RefCell<Option<File>>>;

impl Ready {
    /// Gives up stdin, stdout and stderr (which from here on is the log) and lets the caller go.
    pub fn announce(self, record: &Record) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        sys::replace_stdio(null.as_fd(), 0)?;
        sys::replace_stdio(null.as_fd(), 1)?;
        sys::replace_stdio(self.log.as_fd(), 2)?;
        if let Some(mut pipe) = self.caller.take() {
            // In one piece: each one wakes the caller.
            let mut text = vec![b'R'];
            serde_json::to_writer(&mut text, record)?;
            pipe.write_all(&text)?;
        }
        Ok(())
    }
}

/// Runs `serve` in a daemon process and returns what it announced. The daemon exits when `serve` returns.
pub fn launch(log: &Path, serve: impl FnOnce(Ready) -> Result<()>) -> Result<Record> {
    let fail = |e: rustix::io::Errno| Error::io("starting a daemon for", log, e);
    let log_file = open_log(log).map_err(|e| Error::io("opening the log", log, e))?;
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(fail)?;
    match sys::fork().map_err(fail)? {
        Fork::Child => {
            drop(reader);
            // A second process, so that the daemon is nobody's child and cannot get a terminal.
            let _ = rustix::process::setsid();
            match sys::fork() {
                Ok(Fork::Child) => daemon(writer, log_file, serve),
                Ok(Fork::Parent { .. }) => std::process::exit(0),
                Err(_) => std::process::exit(1),
            }
        }
        Fork::Parent { child } => {
            drop((writer, log_file));
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
            heard(File::from(reader), log)
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn daemon(pipe: OwnedFd, log: File, serve: impl FnOnce(Ready) -> Result<()>) -> ! {
    if prepare(&pipe, &log).is_err() {
        std::process::exit(1);
    }
    let caller = Rc::new(RefCell::new(Some(File::from(pipe))));
    let ready = Ready {
        caller: Rc::clone(&caller),
        log,
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| serve(ready)));
    let (code, message) = match outcome {
        Ok(Ok(())) => std::process::exit(0),
        Ok(Err(error)) => (error.exit_code(), error.to_string()),
        Err(_) => (1, "the daemon met a bug".to_owned()),
    };
    match caller.take() {
        Some(mut pipe) => {
            // A caller that has been killed meanwhile hears nothing.
            let _ = pipe.write_all(format!("E{code}\n{message}").as_bytes());
        }
        None => tracing::error!("{message}"),
    }
    std::process::exit(code.into());
}

fn prepare(pipe: &OwnedFd, log: &File) -> io::Result<()> {
    sys::close_inherited(&[pipe.as_fd(), log.as_fd()])?;
    sys::ignore_sigpipe();
    Ok(rustix::process::chdir("/")?)
}

/// What came through the pipe before its end.
fn heard(mut pipe: File, log: &Path) -> Result<Record> {
    let broken = |what: String| Error::Kernel {
        path: log.to_owned(),
        reason: what,
    };
    let mut text = Vec::new();
    pipe.read_to_end(&mut text)
        .map_err(|e| Error::io("waiting for the daemon of", log, e))?;
    match text.split_first() {
        Some((b'R', json)) => serde_json::from_slice(json)
            .map_err(|e| broken(format!("the daemon spoke unclearly: {e}"))),
        Some((b'E', words)) => {
            let words = String::from_utf8_lossy(words);
            let (code, message) = words.split_once('\n').unwrap_or(("1", &words));
            Err(Error::Daemon {
                code: code.parse().unwrap_or(1),
                message: message.to_owned(),
            })
        }
        _ => Err(broken("the daemon died before the mount was made".into())),
    }
}
