//! SIGTERM, SIGINT and SIGHUP end a mount from inside: our mount, found by its id, and no other.
//!
//! The first unmounts, if nobody uses it; the second detaches it even so (the daemon then serves until the last user is
//! gone); the third ends the daemon at once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::kernel;
use super::mountinfo::MountKey;
use crate::sys;

const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Blocks the signals that end a mount; to be called before any thread is started.
pub fn block() -> io::Result<OwnedFd> {
    Ok(sys::signal_fd(&ENDING)?)
}

/// Acts on signals from now on, in a thread of its own. `abandon` is what must be done before the process is ended.
pub fn watch(
    signals: OwnedFd,
    mount: MountKey,
    abandon: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name("ovl-signals".into())
        .spawn(move || {
            for lazy in [false, true] {
                let Ok(signal) = sys::read_signal(signals.as_fd()) else {
                    return;
                };
                match kernel::unmount(&mount, lazy) {
                    Ok(_) => tracing::info!(signal, lazy, "unmounted"),
                    Err(error) => tracing::warn!(
                        signal,
                        %error,
                        "the mount stays; a further signal is more forceful"
                    ),
                }
            }
            if let Ok(signal) = sys::read_signal(signals.as_fd()) {
                tracing::warn!(signal, "ending at once");
                abandon();
                std::process::exit(1);
            }
        })?;
    Ok(())
}
