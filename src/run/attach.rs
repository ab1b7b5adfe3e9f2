//! A runtime's process being looked after: signals, terminal, its end.
//!
//! The runtime is given our own standard descriptors where these are what the container is to have; it then does the
//! terminal's raw mode and size itself. Where a terminal is asked for that we do not have, it gets one of ours, and what
//! goes through is copied. A signal that a process sent us is passed on; one of the terminal's keys has reached the runtime
//! by itself.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Timespec;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::sys;

/// What ends us before anything is to be ended in turn.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
/// What is passed on.
const FORWARDED: [libc::c_int; 10] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGCONT,
    libc::SIGWINCH,
    libc::SIGPIPE,
];
/// How often it is looked whether the container has started.
const START_PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 3_000_000,
};
/// What a terminal in its usual mode takes for the end of input.
const END_OF_INPUT: [u8; 1] = [4];

/// Keeps the signals that would end this process for [`supervise`]. To be called before anything is made that must be
/// taken away again.
pub fn hold_signals() -> io::Result<()> {
    sys::signal_fd(&ENDING).map(drop).map_err(io::Error::from)
}

/// What the container's standard descriptors are.
#[derive(Debug)]
pub enum Streams {
    /// Ours; `stdin` only if the container is to have it.
    Ours { stdin: bool },
    /// A new terminal, copied to and from ours.
    NewTerminal { stdin: bool },
    /// Nothing and a file.
    Log(File),
}

impl Streams {
    /// What `-i` and `-t` mean where we run.
    pub fn choose(interactive: bool, tty: bool) -> Self {
        let on_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        match (tty, interactive && on_terminal) {
            (true, false) => Self::NewTerminal { stdin: interactive },
            _ => Self::Ours { stdin: interactive },
        }
    }
}

/// A terminal made for a container, the side that is ours.
struct Terminal {
    master: OwnedFd,
    /// Copies what the container prints, to its end.
    printing: JoinHandle<()>,
}

/// Standard descriptors handed to a command about to be run, and what must be done for them meanwhile.
pub struct Attached {
    master: Option<OwnedFd>,
    stdin: bool,
    /// Our terminal as it was.
    modes: Option<Termios>,
}

/// Gives `command` its standard descriptors.
pub fn attach(command: &mut Command, streams: Streams) -> io::Result<Attached> {
    let mut attached = Attached {
        master: None,
        stdin: false,
        modes: None,
    };
    match streams {
        Streams::Ours { stdin } => {
            attached.modes = stdin.then(|| tcgetattr(io::stdin()).ok()).flatten();
            command.stdin(if stdin {
                Stdio::inherit()
            } else {
                Stdio::null()
            });
        }
        Streams::Log(file) => {
            command.stdin(Stdio::null());
            command.stdout(file.try_clone()?).stderr(file);
        }
        Streams::NewTerminal { stdin } => {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            let master = rustix::pty::openpt(flags)?;
            rustix::pty::grantpt(&master)?;
            rustix::pty::unlockpt(&master)?;
            let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
            copy_size(&master);
            // As the runtime will have it; until then nothing is to be echoed or taken for a key.
            let mut modes = tcgetattr(&slave)?;
            modes.make_raw();
            tcsetattr(&slave, OptionalActions::Now, &modes)?;
            command.stdin(slave.try_clone()?);
            command.stdout(slave.try_clone()?).stderr(slave);
            attached.master = Some(master);
            attached.stdin = stdin;
        }
    }
    Ok(attached)
}

/// The size of the terminal we print to, if we do.
fn copy_size(master: &OwnedFd) {
    if let Ok(size) = tcgetwinsize(io::stdout()) {
        let _ = tcsetwinsize(master, size);
    }
}

impl Terminal {
    /// `runtime` is ended when what it prints cannot be passed on: nobody would empty its terminal.
    fn start(master: OwnedFd, stdin: bool, runtime: OwnedFd) -> io::Result<Self> {
        let mut from = File::from(master.try_clone()?);
        let printing = std::thread::spawn(move || {
            let mut out = io::stdout().lock();
            let mut buffer = [0; 16 * 1024];
            // EIO: the last process that had the other side is gone.
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                if out
                    .write_all(&buffer[..n])
                    .and_then(|()| out.flush())
                    .is_err()
                {
                    let _ = pidfd_send_signal(&runtime, Signal::KILL);
                    break;
                }
            }
        });
        if stdin {
            let mut to = File::from(master.try_clone()?);
            // Not waited for: it ends with this process.
            std::thread::spawn(move || {
                let _ = io::copy(&mut io::stdin().lock(), &mut to);
                let _ = to.write_all(&END_OF_INPUT);
            });
        }
        Ok(Self { master, printing })
    }
}

/// Waits for the end of a runtime's process, passing signals on. `started` is called with the pid that appears in
/// `pid_file`, if one does.
pub fn supervise(
    child: &mut Child,
    attached: Attached,
    pid_file: &Path,
    mut started: impl FnMut(u32),
) -> io::Result<ExitStatus> {
    let signals = sys::signal_fd(&FORWARDED)?;
    let process = Pid::from_child(child);
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let terminal = match attached.master {
        Some(master) => {
            let runtime = process.try_clone()?;
            Some(Terminal::start(master, attached.stdin, runtime)?)
        }
        None => None,
    };
    let mut awaited = true;
    loop {
        let mut ready = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        match poll(&mut ready, awaited.then_some(&START_PAUSE)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (ended, signalled) = (
            !ready[0].revents().is_empty(),
            !ready[1].revents().is_empty(),
        );
        if awaited && let Some(pid) = read_pid(pid_file) {
            awaited = false;
            started(pid);
        }
        if ended {
            break;
        }
        if signalled {
            let signal = sys::read_signal_info(signals.as_fd())?;
            if signal.number == libc::SIGWINCH {
                if let Some(terminal) = &terminal {
                    copy_size(&terminal.master);
                }
            } else if !signal.by_kernel
                && let Some(signal) = Signal::from_named_raw(signal.number)
            {
                // Gone meanwhile: the next round sees it.
                let _ = pidfd_send_signal(&process, signal);
            }
        }
    }
    let status = child.wait()?;
    if let Some(terminal) = terminal {
        let _ = terminal.printing.join();
    }
    if let Some(modes) = attached.modes
        && in_foreground()
    {
        // A runtime that was killed has left it raw.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &modes);
    }
    Ok(status)
}

/// Is the terminal ours to change? From the background that would stop us, and disturb whoever has it.
fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}

fn read_pid(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The exit code by the shell's rule: 128 and the signal for what a signal ended.
pub fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
