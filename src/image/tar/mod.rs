//! Reading tar archives: pure parsers for headers, PAX records and sparse maps, and a reader over them.
//!
//! What this is for: a layer must come back bit for bit, so the reader hands out *every* byte it consumes, either to a
//! tap (headers, extension bodies, padding, end of archive, whatever follows it) or as file data. Nothing is skipped
//! silently and nothing is guessed: an archive that two readers could understand differently is refused.
//!
//! Where writers and readers disagree we follow Go's `archive/tar`, because the tools that make and unpack images are
//! written with it: hard links, symlinks, devices, FIFOs and directories have no body whatever their size field says; a
//! GNU long name wins over a PAX path; a PAX size wins over the header's.
//!
//! Sources: POSIX.1-2017 *pax*, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Tar Internals".

mod header;
mod pax;
mod reader;
mod sparse;

pub use header::{Format, Header};
pub use pax::{PaxHeader, parse_global};
pub use reader::{Entry, Kind, TarLimits, TarReader};
pub use sparse::Extent;

/// Size of a tar block, bytes.
pub const BLOCK: usize = 512;

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the header's checksum is wrong: this is no tar archive, or it is damaged")]
    Checksum,
    #[error("header field {0} is not a number")]
    Number(&'static str),
    #[error("{0} is out of range")]
    Range(&'static str),
    #[error("entry type {:?} is not supported", char::from(*.0))]
    UnknownType(u8),
    #[error("malformed PAX record: {0}")]
    Pax(&'static str),
    #[error("PAX attribute {0} is malformed")]
    PaxValue(String),
    #[error("a global PAX header may not set {0}")]
    GlobalOverride(String),
    #[error("malformed sparse map: {0}")]
    Sparse(&'static str),
    #[error("two extension headers of type {:?} for one entry", char::from(*.0))]
    DuplicateExtension(u8),
    #[error("extension header without an entry after it")]
    OrphanExtension,
    #[error("{what} has {len} bytes, more than the limit of {max}")]
    TooLarge {
        what: &'static str,
        len: u64,
        max: u64,
    },
    #[error("a single zero block in the middle of the archive")]
    LoneZeroBlock,
    #[error("the archive is cut off here")]
    Truncated,
}

/// A fault and where it is, or a failed read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{}at byte {offset}: {fault}", describe(.entry))]
    Format {
        /// Bytes from the start of the (uncompressed) archive.
        offset: u64,
        /// Name of the entry, as far as it was known.
        entry: Option<Vec<u8>>,
        fault: Fault,
    },
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

fn describe(entry: &Option<Vec<u8>>) -> String {
    match entry {
        Some(name) => format!("entry \"{}\" ", name.escape_ascii()),
        None => String::new(),
    }
}
