//! The bounds on what an image may cost, as options.

use clap::Args;
use ovl::image::Limits;

#[derive(Args)]
#[command(next_help_heading = "Limits, for images you trust")]
pub struct LimitArgs {
    /// Bytes of a layer, uncompressed
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().layer_bytes, hide_short_help = true)]
    max_layer_size: u64,
    /// Entries of a layer
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().entries, hide_short_help = true)]
    max_entries: u64,
    /// Bytes of one file, holes included
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().file_size, hide_short_help = true)]
    max_file_size: u64,
    /// Bytes of a path
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().path, hide_short_help = true)]
    max_path: usize,
    /// Components of a path
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().components, hide_short_help = true)]
    max_depth: usize,
    /// Bytes of one file's extended attributes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().xattrs, hide_short_help = true)]
    max_xattrs: usize,
    /// Bytes of a manifest, an index or a configuration [default: 4 MiB, configurations 8 MiB]
    #[arg(long, value_name = "BYTES", hide_short_help = true)]
    max_document_size: Option<u64>,
    /// Members of an archive of images
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().members, hide_short_help = true)]
    max_members: usize,
    /// Indexes within indexes
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().index_depth, hide_short_help = true)]
    max_index_depth: usize,
    /// Bytes of a zstd window
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().zstd_window, hide_short_help = true)]
    max_zstd_window: u64,
}

impl LimitArgs {
    pub fn limits(&self) -> Limits {
        let defaults = Limits::default();
        Limits {
            layer_bytes: self.max_layer_size,
            entries: self.max_entries,
            path: self.max_path,
            components: self.max_depth,
            xattrs: self.max_xattrs,
            file_size: self.max_file_size,
            manifest: self.max_document_size.unwrap_or(defaults.manifest),
            config: self.max_document_size.unwrap_or(defaults.config),
            members: self.max_members,
            zstd_window: self.max_zstd_window,
            index_depth: self.max_index_depth,
        }
    }
}
