//! Bounds on what input may cost. The defaults fit every honest image we know of; each has a command-line flag.

use super::tar::TarLimits;

#[derive(Clone, Debug)]
pub struct Limits {
    /// Uncompressed tar of one layer, bytes.
    pub layer_bytes: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Path from the root, bytes.
    pub path: usize,
    /// Components of a path.
    pub components: usize,
    /// Names and values of one entry's xattrs together, bytes.
    pub xattrs: usize,
    /// One file with its holes, bytes.
    pub file_size: u64,
    /// A manifest or index, bytes.
    pub manifest: u64,
    /// An image configuration, bytes.
    pub config: u64,
    /// Members of an archive of images.
    pub members: usize,
    /// zstd window, bytes; a power of two.
    pub zstd_window: u64,
    /// Indexes within indexes.
    pub index_depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layer_bytes: 64 << 30,
            entries: 10_000_000,
            path: 4096,
            components: 1024,
            xattrs: 1 << 20,
            file_size: 16 << 40,
            manifest: 4 << 20,
            config: 8 << 20,
            members: 1 << 16,
            zstd_window: 128 << 20,
            index_depth: 4,
        }
    }
}

impl Limits {
    pub(super) fn tar(&self) -> TarLimits {
        TarLimits {
            path: self.path,
            // Room for xattrs written twice, once of it in base64, and the other attributes.
            extension: 3 * self.xattrs as u64 + (64 << 10),
            file_size: self.file_size,
        }
    }
}
