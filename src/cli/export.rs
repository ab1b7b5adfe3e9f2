//! `ovl export`: images as archives that podman, skopeo and docker load.

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::{Args, ValueEnum};
use ovl::image::{
    Compression, EntrySink, ExportFormat, ExportImage, ExportOptions, ExportTarget, ExportedImage,
    export_rootfs, export_tree,
};
use ovl::overlay::{Entry, NodeId};
use ovl::store::Store;
use ovl::view::View;

use super::Context;
use super::entries::LayerFrom;
use super::error::Failure;

/// Write images as an archive
///
/// TARGET is `docker-archive:PATH`, `oci-archive:PATH`, `oci:DIRECTORY`, `skopeo-dir:DIRECTORY` (what skopeo calls `dir:`, of one
/// image), a bare path (a docker-archive, unless --format says otherwise) or `-` for standard output. `rootfs:PATH` and
/// `dir:DIRECTORY` take one image and give its files, all layers
/// merged, as a tar or as a new directory, with owners (as root only). Each layer is proven against its digest while it is written; a failure leaves
/// no file.
#[derive(Args)]
#[command(override_usage = "ovl export [OPTIONS] IMAGE... TARGET")]
pub struct Export {
    /// Names or IDs of images, and where to
    #[arg(required = true, num_args = 2.., value_name = "IMAGE TARGET")]
    words: Vec<OsString>,
    /// docker-archive, oci-archive, oci, skopeo-dir, rootfs or dir
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<Kind>,
    /// Compress layers anew: none, gzip or zstd [default: as they came, if that was kept, else none]
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = true)]
    compress: Option<Compress>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    DockerArchive,
    OciArchive,
    Oci,
    SkopeoDir,
    Rootfs,
    Dir,
}

#[derive(Clone, Copy, ValueEnum)]
enum Compress {
    None,
    Gzip,
    Zstd,
}

impl Export {
    pub fn run(mut self, context: &Context) -> anyhow::Result<()> {
        let Some(target) = self.words.pop() else {
            return Err(Failure::usage(
                "export wants an image and where to write it",
            ));
        };
        let (kind, path) = self.target(&target)?;
        let mut images = Vec::new();
        let mut store = None;
        for words in &self.words {
            let words = words
                .to_str()
                .ok_or_else(|| Failure::usage(format!("not an image name: {}", words.display())))?;
            let found = context.find(words)?;
            let names = found
                .name
                .into_iter()
                .filter(|name| name.digest().is_none())
                .collect();
            images.push(ExportImage {
                manifest: found.record.manifest,
                names,
            });
            store = Some(found.store);
        }
        let Some(store) = store else {
            return Err(Failure::usage(
                "export wants an image and where to write it",
            ));
        };
        let Some(format) = kind.format() else {
            return self.files(&store, &images, kind, path);
        };
        let options = ExportOptions {
            format,
            compression: self.compress.map(Into::into),
        };
        if path != "-" {
            let target = ExportTarget::Path(Path::new(path));
            report(&ovl::image::export(&store, &images, options, target)?);
            return Ok(());
        }
        let stdout = stdout_for_archive()?;
        let target = ExportTarget::Stream(&mut stdout.lock());
        report(&ovl::image::export(&store, &images, options, target)?);
        Ok(())
    }

    /// The merged files of one image.
    fn files(
        &self,
        store: &Store,
        images: &[ExportImage],
        kind: Kind,
        path: &OsStr,
    ) -> anyhow::Result<()> {
        let [image] = images else {
            return Err(Failure::usage("rootfs: and dir: take one image"));
        };
        if self.compress.is_some() {
            return Err(Failure::usage(
                "--compress is for layers, which rootfs: and dir: have not",
            ));
        }
        let record = store.image(&image.manifest)?;
        let layers = record.map(|record| record.layers).unwrap_or_default();
        let view = View::open(store, &layers, "export")?;
        let whole = |sink: &mut dyn EntrySink| {
            let root = view.engine().getattr(NodeId::ROOT)?;
            let attr = Entry {
                node: NodeId::ROOT,
                attr: root,
            };
            LayerFrom::new(view.engine(), sink).with_root(&attr)
        };
        if kind == Kind::Dir {
            return Ok(export_tree(Path::new(path), whole)?);
        }
        if path != "-" {
            return Ok(export_rootfs(ExportTarget::Path(Path::new(path)), whole)?);
        }
        let stdout = stdout_for_archive()?;
        Ok(export_rootfs(
            ExportTarget::Stream(&mut stdout.lock()),
            whole,
        )?)
    }

    fn target<'a>(&self, target: &'a OsStr) -> anyhow::Result<(Kind, &'a OsStr)> {
        let prefixes = [
            (Kind::DockerArchive, "docker-archive:"),
            (Kind::OciArchive, "oci-archive:"),
            (Kind::Oci, "oci:"),
            (Kind::SkopeoDir, "skopeo-dir:"),
            (Kind::Rootfs, "rootfs:"),
            (Kind::Dir, "dir:"),
        ];
        let prefixed = prefixes.iter().find_map(|(kind, prefix)| {
            Some((
                *kind,
                OsStr::from_bytes(target.as_bytes().strip_prefix(prefix.as_bytes())?),
            ))
        });
        match prefixed {
            Some((kind, _)) if self.format.is_some_and(|format| format != kind) => {
                Err(Failure::usage(format!(
                    "--format and {} contradict each other",
                    target.display()
                )))
            }
            Some((_, path)) if path.is_empty() => {
                Err(Failure::usage(format!("{} lacks a path", target.display())))
            }
            Some(found) => Ok(found),
            None => Ok((self.format.unwrap_or(Kind::DockerArchive), target)),
        }
    }
}

fn stdout_for_archive() -> anyhow::Result<std::io::Stdout> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(Failure::usage(
            "an archive is nothing for a terminal; send it to a file or a pipe",
        ));
    }
    Ok(stdout)
}

/// Says which images did not keep their manifest.
fn report(images: &[ExportedImage]) {
    for image in images {
        if let (Some(manifest), Some(because)) = (image.manifest, &image.new_because) {
            eprintln!("ovl: the manifest is new, {manifest}: {because}");
        }
    }
}

impl Kind {
    /// The format of an archive of images; `None` for forms that hold files.
    fn format(self) -> Option<ExportFormat> {
        match self {
            Self::DockerArchive => Some(ExportFormat::DockerArchive),
            Self::OciArchive => Some(ExportFormat::OciArchive),
            Self::Oci => Some(ExportFormat::OciDir),
            Self::SkopeoDir => Some(ExportFormat::SkopeoDir),
            Self::Rootfs | Self::Dir => None,
        }
    }
}

impl From<Compress> for Compression {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::None => Self::None,
            Compress::Gzip => Self::Gzip,
            Compress::Zstd => Self::Zstd,
        }
    }
}
