//! What can go wrong in the store, told for people, and the exit code each failure maps to.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// Why a call to the store failed. Nothing is half-applied: every change is one transaction.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Writing to the caller's output failed (not the store's own files).
    #[error("writing the output: {0}")]
    Output(io::Error),
    /// The file system of the store (or of SQLite's temporary files) is full. The store is as before.
    #[error(
        "no space left for the store{}: nothing was changed; free some space and try again",
        at(root)
    )]
    NoSpace { root: PathBuf },
    /// The directory or database is not an ovl store, and was left alone.
    #[error("{path} is not an ovl store: {reason}", path = path.display())]
    NotAStore { path: PathBuf, reason: String },
    #[error(
        "{path} has store format {found}, newer than this program knows ({known}); use a newer ovl",
        path = path.display()
    )]
    NewerFormat {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    /// Others may write to the store's files, so nothing in it can be trusted.
    #[error("{path} cannot hold a store: {reason}", path = path.display())]
    Unsafe { path: PathBuf, reason: String },
    #[error("database{}: {message}", at(root))]
    Sqlite { root: PathBuf, message: String },
    #[error("store is damaged: {0}")]
    Corrupt(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// Somebody else holds what is needed; the text says who. Trying again later helps.
    #[error("{0}")]
    Busy(String),
    /// An entry of the layer being written makes no sense; the layer is refused.
    #[error("{path:?}: {reason}")]
    InvalidEntry { path: OsString, reason: String },
    /// The caller broke the order of calls that the store's documentation asks for.
    #[error("wrong use of the store: {0}")]
    Misuse(&'static str),
}

/// What SQLite's own refusal says before [`super::db::Database::explain`] tells who is in the way.
pub(super) const BUSY: &str = "another process is writing to the store; try again";

/// How the message of an I/O error of SQLite begins.
const IO_FAILED: &str = "input or output failed";
/// With less than this the file system is full, bytes: the least that SQLite adds to a file beside the database.
const FULL: u64 = 64 << 10;

/// Result of every call of this room.
pub type Result<T> = std::result::Result<T, Error>;

fn at(root: &Path) -> String {
    if root.as_os_str().is_empty() {
        String::new()
    } else {
        format!(" at {}", root.display())
    }
}

impl Error {
    /// The exit code of a command that ends with this error: 1 failure, 3 conflict, 4 not found, 5 integrity, 75 busy.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Conflict(_) => 3,
            Self::NotFound(_) => 4,
            Self::Corrupt(_) => 5,
            Self::Busy(_) => 75,
            Self::Io { .. }
            | Self::Output(_)
            | Self::NoSpace { .. }
            | Self::NotAStore { .. }
            | Self::NewerFormat { .. }
            | Self::Unsafe { .. }
            | Self::Sqlite { .. }
            | Self::InvalidEntry { .. }
            | Self::Misuse(_) => 1,
        }
    }

    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                Self::NoSpace {
                    root: path.to_owned(),
                }
            } else {
                Self::Io {
                    path: path.to_owned(),
                    source,
                }
            }
        }
    }

    pub(super) fn entry(path: &std::ffi::OsStr, reason: impl Into<String>) -> Self {
        Self::InvalidEntry {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// Adds the store's place to errors that SQLite reported without one. Where it only says that I/O failed, and nothing
    /// is left to write to, that is why: it has no other word for a sync, or a file beside the database, without room.
    pub(super) fn in_store(mut self, store: &Path) -> Self {
        if let Self::Sqlite { message, .. } = &self
            && message.starts_with(IO_FAILED)
            && super::space::free(store).is_ok_and(|free| free < FULL)
        {
            self = Self::NoSpace {
                root: PathBuf::new(),
            };
        }
        if let Self::NoSpace { root } | Self::Sqlite { root, .. } = &mut self
            && root.as_os_str().is_empty()
        {
            store.clone_into(root);
        }
        self
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        let message = error.to_string();
        match &error {
            rusqlite::Error::SqliteFailure(code, _) => match code.code {
                ErrorCode::DiskFull => Self::NoSpace {
                    root: PathBuf::new(),
                },
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy(BUSY.to_owned()),
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Corrupt(message),
                // SQLite opens for reading what it may not write, and stumbles later.
                ErrorCode::ReadOnly => Self::Sqlite {
                    root: PathBuf::new(),
                    message: "it could not be opened for writing".to_owned(),
                },
                ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Self::Sqlite {
                    root: PathBuf::new(),
                    message: format!("{IO_FAILED}: {message}"),
                },
                _ => Self::Sqlite {
                    root: PathBuf::new(),
                    message,
                },
            },
            rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::Utf8Error(..) => {
                Self::Corrupt(format!("a row holds a wrong value: {message}"))
            }
            _ => Self::Sqlite {
                root: PathBuf::new(),
                message,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_table() {
        for (error, code) in [
            (Error::Conflict(String::new()), 3),
            (Error::NotFound(String::new()), 4),
            (Error::Corrupt(String::new()), 5),
            (Error::Busy(String::new()), 75),
            (
                Error::NoSpace {
                    root: PathBuf::new(),
                },
                1,
            ),
            (Error::Misuse(""), 1),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }

    #[test]
    fn no_space_names_the_store() {
        let error = Error::NoSpace {
            root: PathBuf::new(),
        }
        .in_store(Path::new("/s"));
        assert!(
            error
                .to_string()
                .starts_with("no space left for the store at /s"),
            "{error}"
        );
    }
}
