//! SIGTERM, SIGINT and SIGHUP end a mount from inside: our mount, found by its id, and no other.
//!
//! SIGUSR1 asks for the counters, on stderr or in the log. SIGUSR2 means nothing, and so must not end a mount.
//!
//! The first of the others unmounts, if nobody uses it; the second detaches it even so (the daemon then serves until the last user is
//! gone); the third ends the daemon at once.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use super::mountinfo::MountKey;
use super::unmount;
use crate::sys;

const KNOWN: [libc::c_int; 5] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Blocks the signals that mean something to a mount; to be called before any thread is started.
pub fn block() -> io::Result<OwnedFd> {
    Ok(sys::signal_fd(&KNOWN)?)
}

/// Acts on signals from now on, in a thread of its own. `abandon` is what must be done before the process is ended,
/// `counters` what SIGUSR1 prints.
pub fn watch(
    signals: OwnedFd,
    mount: MountKey,
    abandon: impl FnOnce() + Send + 'static,
    counters: impl Fn() -> String + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("ovl-signals".into())
        .spawn(move || {
            let mut asked = 0;
            while let Ok(signal) = sys::read_signal(signals.as_fd()) {
                if signal == libc::SIGUSR1 {
                    // Nobody may be there to read it.
                    let _ = io::stderr().write_all(counters().as_bytes());
                    continue;
                }
                if signal == libc::SIGUSR2 {
                    continue;
                }
                asked += 1;
                if asked > 2 {
                    tracing::warn!(signal, "ending at once");
                    abandon();
                    std::process::exit(1);
                }
                let lazy = asked == 2;
                match unmount::patiently(&mount, lazy) {
                    Ok(_) => tracing::info!(signal, lazy, "unmounted"),
                    Err(error) => tracing::warn!(
                        signal,
                        %error,
                        "the mount stays; a further signal is more forceful"
                    ),
                }
            }
        })?;
    Ok(())
}
