//! What can go wrong with a container, in words for people.

use std::io;
use std::path::{Path, PathBuf};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Words that cannot be meant.
    #[error("{0}")]
    Usage(String),
    #[error("no container {0}; see: ovl ps -a")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// The image asks for what it cannot have.
    #[error("{0}")]
    Image(String),
    /// The command is there, but cannot be run.
    #[error("{0}")]
    NotExecutable(String),
    /// There is no such command in the container.
    #[error("{0}")]
    NoSuchCommand(String),
    #[error("{runtime} failed: {said}", runtime = runtime.display())]
    Runtime { runtime: PathBuf, said: String },
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Mount(#[from] crate::mount::Error),
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// An error of the process in the background, as it told it.
    #[error("{message}")]
    Detached { code: u8, message: String },
}

impl Error {
    /// For commands that have a result of their own: 1 failure, 2 usage, 3 conflict, 4 not found, 5 integrity, 75 busy.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Conflict(_) => 3,
            Self::NotFound(_) => 4,
            Self::Mount(error) => error.exit_code(),
            Self::Store(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// For commands whose exit code is the container's: 126 the command cannot be run, 127 there is no such command, 125
    /// everything else.
    pub fn run_exit_code(&self) -> u8 {
        match self {
            Self::NotExecutable(_) => 126,
            Self::NoSuchCommand(_) => 127,
            Self::Detached { code, .. } => *code,
            _ => 125,
        }
    }

    pub(super) fn io(what: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            what,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
