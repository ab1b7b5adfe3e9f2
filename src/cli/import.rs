//! `ovl import`: an image archive, or the tar of a root file system, into the store.

use std::ffi::OsString;
use std::time::Instant;

use clap::{Args, ValueEnum};
use ovl::image::{ImportOptions, KeepCompressed, Platform, Reference, Source};
use ovl::store::Store;

use super::Context;
use super::error::{Failure, exit_code, one_line};
use super::find::familiar;
use super::output::{self, count, size};
use super::progress::Progress;
use super::tag::new_name;

/// Take an image into the store
///
/// SOURCE is a docker-archive (`docker save`, `podman save`), an oci-archive, an OCI layout or the tar of a root file
/// system, plain or compressed with gzip or zstd, found out by its content; `-` reads standard input. `docker-archive:PATH`,
/// `oci-archive:PATH`, `oci:PATH` and `rootfs:PATH` say what it must be, and the first three may end in `:NAME` to take one
/// image of several. `dir:PATH` takes a directory of this machine as a root file system, or the image that `skopeo copy`
/// wrote there; `skopeo-dir:PATH` only such an image. Prints the ID of each image.
#[derive(Args)]
pub struct Import {
    #[arg(value_name = "SOURCE")]
    source: OsString,
    /// Name the image so, instead of as the archive says; may be given several times
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
    /// Take the image for this machine from an archive of several
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Take the images of all platforms, and attestations; names point to the one of --platform, or of this machine
    #[arg(long)]
    all_platforms: bool,
    /// Move names that point to other images
    #[arg(long)]
    replace: bool,
    /// Keep what gives back layers as they came, compressed, and so the image with its own manifest: auto (where it costs
    /// little), always or never
    #[arg(long, value_enum, default_value_t = Keep::Auto, value_name = "WHEN", hide_possible_values = true)]
    keep_compressed: Keep,
    /// Say nothing on stderr but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    limits: super::limits::LimitArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum Keep {
    Auto,
    Always,
    Never,
}

impl From<Keep> for KeepCompressed {
    fn from(keep: Keep) -> Self {
        match keep {
            Keep::Auto => Self::Auto,
            Keep::Always => Self::Always,
            Keep::Never => Self::Never,
        }
    }
}

impl Import {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let options = self.options()?;
        let source = Source::parse(&self.source)?;
        let progress = Progress::new(if self.quiet {
            super::progress::Mode::None
        } else {
            context.progress
        });
        let started = Instant::now();
        let store = context.store()?;
        let images = ovl::image::import(&store, &source, &options, &progress)
            .map_err(|error| with_what_stays(&store, error.into()))?;
        if !self.quiet {
            let names: Vec<String> = images
                .iter()
                .flat_map(|image| &image.names)
                .map(|name| familiar(name))
                .collect();
            let (layers, new, bytes) = progress.counts();
            let what = if names.is_empty() {
                "an image without a name".to_owned()
            } else {
                names.join(", ")
            };
            let seconds = started.elapsed().as_secs_f64();
            let layers = count(layers as u64, "layer");
            eprintln!(
                "imported {what}: {layers}, {new} new ({}), {seconds:.1} s",
                size(bytes)
            );
        }
        if !self.quiet && images.iter().any(|image| !image.restorable) {
            eprintln!(
                "its compressed layers were not kept: exported in OCI form, it gets a new manifest (see --keep-compressed)"
            );
        }
        output::stdout(|out| {
            images
                .iter()
                .try_for_each(|image| writeln!(out, "{}", image.config))
        })
    }

    fn options(&self) -> anyhow::Result<ImportOptions> {
        Ok(ImportOptions {
            tags: self
                .tag
                .iter()
                .map(|name| new_name(name))
                .collect::<anyhow::Result<Vec<Reference>>>()?,
            platform: self
                .platform
                .as_deref()
                .map(str::parse::<Platform>)
                .transpose()?,
            all_platforms: self.all_platforms,
            replace_names: self.replace,
            keep_compressed: self.keep_compressed.into(),
            limits: self.limits.limits(),
        })
    }
}

/// Adds to a failure that its work is not all lost, and where the room went.
fn with_what_stays(store: &Store, error: anyhow::Error) -> anyhow::Error {
    // A store that cannot tell has failed for the same reason.
    match store.layers_without_image() {
        Ok(layers @ 1..) => Failure::with_code(
            exit_code(&error),
            format!(
                "{}; {} of it found right so far: kept for another try, until ovl gc",
                one_line(&error),
                count(layers, "layer"),
            ),
        ),
        _ => error,
    }
}
