//! What can go wrong with a mount, in words for people, and the exit code each has.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::holders::Holder;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Words that cannot be meant.
    #[error("{0}")]
    Usage(String),
    #[error("{what} {path} does not exist{hint}", path = path.display())]
    Missing {
        what: &'static str,
        path: PathBuf,
        hint: &'static str,
    },
    #[error("{what} {path} is not a directory", path = path.display())]
    NotDirectory { what: &'static str, path: PathBuf },
    #[error("{lower:?} is neither a directory nor an image of the store")]
    NoSuchLower { lower: String },
    #[error("image {reference}: {source}")]
    Image {
        reference: String,
        source: crate::store::Error,
    },
    #[error("{inner} is inside {outer}: keep lower, upper and work directories apart", inner = inner.display(), outer = outer.display())]
    Nested { inner: PathBuf, outer: PathBuf },
    #[error(
        "work directory {work} is not on the file system of {upper}: give another with --work",
        work = work.display(), upper = upper.display()
    )]
    WorkElsewhere { work: PathBuf, upper: PathBuf },
    #[error("upper directory {path} cannot be written: {source}", path = path.display())]
    UpperNotWritable { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another mount{by}", path = path.display(), by = By(.by))]
    UpperInUse { path: PathBuf, by: Option<String> },
    #[error("{path} is already a mount of ovl: unmount it first (ovl umount {path})", path = path.display())]
    AlreadyMounted { path: PathBuf },
    #[error("{path} is no mount of ovl", path = path.display())]
    NotMounted { path: PathBuf },
    #[error("{path} is busy{holders}; end what uses it, or detach it now with --lazy", path = path.display(), holders = Holders(.holders))]
    Busy { path: PathBuf, holders: Vec<Holder> },
    #[error(
        "{path} is unmounted, but its daemon (pid {pid}) still works on the upper directory after {seconds} s{holders}",
        path = path.display(), holders = Holders(.holders)
    )]
    StillRunning {
        path: PathBuf,
        pid: u32,
        seconds: u64,
        holders: Vec<Holder>,
    },
    #[error(
        "{path} is unmounted here, but not everywhere{holders}: the upper directory is still in use",
        path = path.display(), holders = Holders(.holders)
    )]
    StillMounted { path: PathBuf, holders: Vec<Holder> },
    #[error("{path} is mounted in another mount namespace, that of pid {pid}: unmount it there", path = path.display())]
    Elsewhere { path: PathBuf, pid: u32 },
    #[error("{what} {path}: {source}", path = path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("mounting on {path}: {reason}", path = path.display())]
    Kernel { path: PathBuf, reason: String },
    #[error(transparent)]
    Overlay(#[from] crate::overlay::OpenError),
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// An error of the daemon, as it told it.
    #[error("{message}")]
    Daemon { code: u8, message: String },
}

impl Error {
    /// 1 failure, 2 usage, 3 conflict, 4 not found, 5 integrity, 75 busy.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::NotDirectory { .. }
            | Self::Nested { .. }
            | Self::WorkElsewhere { .. } => 2,
            Self::Missing { .. } | Self::NoSuchLower { .. } | Self::NotMounted { .. } => 4,
            Self::Image { source, .. } | Self::Store(source) => store_code(source),
            Self::UpperInUse { .. }
            | Self::AlreadyMounted { .. }
            | Self::Busy { .. }
            | Self::StillRunning { .. }
            | Self::StillMounted { .. }
            | Self::Elsewhere { .. }
            | Self::Overlay(crate::overlay::OpenError::Busy(_)) => 75,
            Self::UpperNotWritable { .. }
            | Self::Io { .. }
            | Self::Kernel { .. }
            | Self::Overlay(_) => 1,
            Self::Daemon { code, .. } => *code,
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

fn store_code(error: &crate::store::Error) -> u8 {
    match error {
        crate::store::Error::NotFound(_) => 4,
        crate::store::Error::Corrupt(_) => 5,
        _ => 1,
    }
}

struct By<'a>(&'a Option<String>);

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(by) => write!(f, " ({by})"),
            None => Ok(()),
        }
    }
}

struct Holders<'a>(&'a [Holder]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More are not named.
        const NAMED: usize = 4;
        for (i, holder) in self.0.iter().take(NAMED).enumerate() {
            f.write_str(if i == 0 { ": used by " } else { ", " })?;
            write!(f, "{holder}")?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
