//! What can go wrong with images, in words for people, and the exit code each failure deserves.

use std::path::PathBuf;

use crate::store::{self, Digest};

use super::layer_entry::EntryFault;
use super::reference::ReferenceError;
use super::tar::TarError;

pub type Result<T> = std::result::Result<T, Error>;

/// Errors of the image room. Every message stands on its own in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("writing the output: {0}")]
    Output(std::io::Error),
    #[error("reading the changes: {0}")]
    Changes(std::io::Error),
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("reading {what}: {source}")]
    Read {
        what: String,
        source: std::io::Error,
    },
    #[error("{what}: {source}")]
    Tar { what: String, source: TarError },
    #[error("{what}: the {format} data is damaged or cut off: {source}")]
    Decompress {
        what: String,
        format: &'static str,
        source: std::io::Error,
    },
    #[error("{what}: entry \"{}\": {fault}", path.escape_ascii())]
    Entry {
        what: String,
        path: Vec<u8>,
        fault: EntryFault,
    },
    #[error("{what}: {hint}")]
    UnknownFormat { what: String, hint: String },
    #[error("{what} is damaged or no layer: {hint}")]
    NotALayer { what: String, hint: String },
    #[error("{what} holds no image: {reason}")]
    MissingManifest { what: String, reason: &'static str },
    #[error("{document}: {reason}")]
    Document { document: String, reason: String },
    #[error("{what} is missing from the archive")]
    MissingMember { what: String },
    #[error(
        "{what} has digest {actual}, but should have {expected}: it is damaged or not what it claims to be"
    )]
    DigestMismatch {
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{what} has {actual} bytes, but should have {expected}")]
    SizeMismatch {
        what: String,
        expected: u64,
        actual: String,
    },
    #[error(
        "{what}: more than the limit of {max} {unit}; raise it with {flag} if you trust the source"
    )]
    Limit {
        what: String,
        max: u64,
        unit: &'static str,
        flag: &'static str,
    },
    #[error("{what}: {reason}")]
    Unsupported { what: String, reason: String },
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(
        "name {name} already points to {present}, not to {new}; choose another name, or move it with --replace"
    )]
    Conflict {
        name: String,
        present: Digest,
        new: Digest,
    },
    #[error("{what} holds no image {wanted:?}; it has: {available}")]
    NoSuchImage {
        what: String,
        wanted: String,
        available: String,
    },
    #[error("{what} has no image for platform {wanted}; it has: {available}")]
    NoPlatform {
        what: String,
        wanted: String,
        available: String,
    },
    #[error(
        "{what} holds {count} images, so one --tag cannot name them all; choose one as {what}:NAME"
    )]
    SeveralImages { what: String, count: usize },
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// The process exit code: 1 failure, 2 usage, 3 conflict, 4 not found, 5 integrity, 75 busy.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Store(error) => i32::from(error.exit_code()),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => 4,
            Self::Tar {
                source: TarError::Format { .. },
                ..
            }
            | Self::Decompress { .. }
            | Self::NotALayer { .. }
            | Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. } => 5,
            Self::Conflict { .. } | Self::Exists { .. } => 3,
            Self::NoSuchImage { .. } | Self::NoPlatform { .. } => 4,
            Self::Reference(_) | Self::Usage(_) | Self::SeveralImages { .. } => 2,
            Self::Output(_)
            | Self::Changes(_)
            | Self::Io { .. }
            | Self::Read { .. }
            | Self::Tar { .. }
            | Self::Entry { .. }
            | Self::UnknownFormat { .. }
            | Self::MissingManifest { .. }
            | Self::Document { .. }
            | Self::MissingMember { .. }
            | Self::Limit { .. }
            | Self::Unsupported { .. } => 1,
        }
    }

    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(super) fn document(document: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Document {
            document: document.into(),
            reason: reason.to_string(),
        }
    }
}
