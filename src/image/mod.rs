//! Images: OCI and Docker formats in and out of the store.
//!
//! For: references, manifests and configs, archives of images, layer tars both ways, import, commit, export.
//! Owns: what a tar entry means for a tree, which document is believed, what a name may look like.
//! Never: unpacks anything, resolves a name from an archive on the host, knows of mounts.
//!
//! Invariants: nothing is recorded whose digest and size were not checked; a layer's bytes reach the store whole, so they
//! come back bit for bit; an import that fails records no image and moves no name.

mod acl;
mod archive;
mod blob;
mod check;
mod commit;
mod compress;
mod documents;
mod error;
mod export;
mod export_index;
mod export_oci;
mod host_dir;
mod import;
mod import_stream;
mod ingest;
mod json;
mod layer_entry;
mod layer_tar;
mod limits;
mod links;
mod output;
#[doc(hidden)]
pub mod parsers;
mod plan;
mod plan_index;
mod platform;
mod progress;
mod pump;
mod record;
mod reference;
mod source;
mod stream;
pub mod tar;
mod timestamp;
mod unpack;
mod write_out;

pub use blob::KeepCompressed;
pub use check::check_documents;
pub use commit::{CommitOptions, CommittedImage, ConfigChanges, commit};
pub use compress::Compression;
pub use error::{Error, Result};
pub use export::{ExportFormat, ExportImage, ExportOptions, ExportTarget, ExportedImage, export};
pub use import::{ImportOptions, ImportedImage, import, import_stream};
pub use layer_entry::EntryFault;
pub use layer_tar::{EntryKind, EntrySink, LayerEntry, LayerTarWriter, NodeContent};
pub use limits::Limits;
pub use platform::{Platform, image_for};
pub use progress::{ImportProgress, LayerOutcome};
pub use reference::{Reference, ReferenceError};
pub use source::{Location, Source, Transport};
pub use timestamp::rfc3339;
pub use unpack::{export_rootfs, export_tree};

use std::fs::File;
use std::path::{Path, PathBuf};

/// A new file without a name, gone when closed, in `$TMPDIR` or `/var/tmp` (which is on a disk where `/tmp` may be
/// memory), and the directory it is in, for messages.
fn spool_file() -> Result<(PathBuf, File)> {
    use rustix::fs::{Mode, OFlags};
    let dir = match std::env::var_os("TMPDIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ if Path::new("/var/tmp").is_dir() => PathBuf::from("/var/tmp"),
        _ => std::env::temp_dir(),
    };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR);
    let file = opened.map_err(|error| Error::io(&dir)(error.into()))?;
    Ok((dir, file.into()))
}
