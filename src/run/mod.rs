//! Containers: an OCI runtime bundle over a mount of an image, driven through runc or crun.
//!
//! For: `ovl run`, and what is done with containers afterwards.
//! Owns: what an image's configuration means for a process, how words of an image become paths of a root, the records of
//! containers, the runtime's processes.
//! Never: makes namespaces for containers or talks to the kernel about them (that is the runtime's), asks the host's name
//! service about an image, follows an image's symlinks but by descriptor.
//!
//! | file | holds |
//! |---|---|
//! | `request`, `volume` | what is asked for |
//! | `config`, `user`, `names` | the image's configuration, its users, names of containers |
//! | `rootfs`, `inside` | paths inside the root, by descriptor |
//! | `setup`, `spec` | the bundle: mounts, files, `config.json` |
//! | `runtime`, `attach` | the runtime's program; its process, signals, terminal |
//! | `record` | what is known of containers |
//! | `lifecycle`, `manage` | a container from beginning to end; those that are there |
//! | `userns` | for users who are not root |
//!
//! Invariants:
//! - Whoever looks after a container holds its lock; a lock that can be had means that what is left must be put right.
//! - A record is on disk before the first mount; everything made for a container lies in its two directories.
//! - No descriptor of ours above 2 reaches a runtime, hence a container.
//! - What an image says (users, paths, labels) is data: it is resolved inside its root, or refused.

mod attach;
mod config;
mod error;
mod inside;
mod lifecycle;
mod manage;
mod names;
mod record;
mod request;
mod rootfs;
mod runtime;
mod setup;
mod spec;
mod user;
mod userns;
mod volume;

pub use config::ImageConfig;
pub use error::{Error, Result};
pub use lifecycle::{Outcome, run};
pub use manage::{enter_for, exec, find, list, remove};
pub use record::{Container, Containers, State, user_of};
pub use request::{ExecRequest, Request};
pub use spec::Net;
pub use volume::{Access, Volume};
