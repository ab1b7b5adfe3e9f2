//! Import from sources that are read once, from front to back: pipes, and files that are compressed as a whole.
//!
//! What comes by is taken in by [`super::stream`]; here is how the stream is told and opened, and how the layers that came
//! are compared with the documents at the end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use crate::store::{Digest, Lease};

use super::blob::Keeping;
use super::compress::{self, Compression, Sniffed};
use super::import::{ImportedImage, Importer, check_size};
use super::ingest::{self, LayerFacts};
use super::plan::{Dialect, PlannedLayer, plan};
use super::pump::{self, PIECE, PumpReader, pump};
use super::source::Transport;
use super::stream::{Beginning, StreamArchive, StreamLayer};
use super::tar::{BLOCK, TarReader};
use super::{Error, Result};

impl Importer<'_> {
    pub(super) fn stream(&self, stream: Box<dyn Read + Send>) -> Result<Vec<ImportedImage>> {
        let reading = |source| Error::Read {
            what: self.what.clone(),
            source,
        };
        let (head, stream) = compress::peek(stream).map_err(reading)?;
        let sniffed = Sniffed::of(&head);
        let compression = sniffed
            .compression()
            .ok_or_else(|| self.unlike(&sniffed.complaint()))?;
        std::thread::scope(|scope| {
            let (mut to, from) = pump();
            let limits = self.limits();
            let feeder = scope.spawn(move || {
                let input = BufReader::with_capacity(PIECE, stream);
                let mut input = compress::decoder(input, compression, limits)?;
                while to.fill_from(&mut input, &mut |_| Ok(()))? {}
                to.finish()
            });
            let result = self.plain_stream(from, compression);
            match feeder
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            {
                // The consumer stopped first, and knows why.
                Err(error) if pump::is_reader_gone(&error) && result.is_err() => result,
                Err(source) if compression == Compression::None => Err(reading(source)),
                Err(source) => Err(Error::Decompress {
                    what: self.what.clone(),
                    format: compression.name(),
                    source,
                }),
                Ok(()) => result,
            }
        })
    }

    fn plain_stream(&self, mut from: PumpReader, outer: Compression) -> Result<Vec<ImportedImage>> {
        let reading = |source| Error::Read {
            what: self.what.clone(),
            source,
        };
        let head = from.fill_buf().map_err(reading)?;
        if Sniffed::of(&head[..head.len().min(BLOCK)]) != Sniffed::Tar {
            return Err(
                self.unlike("unknown format: what is compressed in it is not a tar archive")
            );
        }
        if head.starts_with(&[0; BLOCK]) {
            let reason = "the tar archive is empty";
            return Err(Error::MissingManifest {
                what: self.what.clone(),
                reason,
            });
        }
        let beginning = match self.source.transport {
            Transport::Rootfs | Transport::Directory | Transport::SkopeoDir => Beginning::Rootfs,
            Transport::Auto => Beginning::of(head, self.limits()),
            Transport::DockerArchive | Transport::OciArchive | Transport::OciLayout => {
                Beginning::Images
            }
        };
        match beginning {
            Beginning::Rootfs => self.rootfs(from),
            Beginning::Images => {
                let mut limits = self.limits().clone();
                if outer == Compression::Zstd {
                    // Two large windows at once would be more memory than an import may take.
                    limits.zstd_window = limits.zstd_window.min(32 << 20);
                }
                let tar = TarReader::new(from, limits.tar());
                let keeping = Keeping {
                    limits: &limits,
                    ..self.keeping()
                };
                let archive = StreamArchive::read(&keeping, &self.what, tar, self.progress)?;
                match self.dialect(archive.members())? {
                    Some(dialect) => self.streamed(archive, dialect),
                    None => Err(self.unlike("it begins like an archive of images, but is none")),
                }
            }
            Beginning::Unclear => self.seekable(self.spool(from)?),
        }
    }

    /// The stream as an unnamed file.
    fn spool(&self, mut from: PumpReader) -> Result<File> {
        let (dir, mut file) = super::spool_file()?;
        let max = self.limits().layer_bytes;
        let copied =
            io::copy(&mut from.by_ref().take(max + 1), &mut file).map_err(Error::io(&dir))?;
        if copied > max {
            return Err(Error::Limit {
                what: self.what.clone(),
                max,
                unit: "bytes uncompressed",
                flag: "--max-layer-size",
            });
        }
        file.seek(SeekFrom::Start(0)).map_err(Error::io(&dir))?;
        Ok(file)
    }

    fn streamed(&self, mut archive: StreamArchive, dialect: Dialect) -> Result<Vec<ImportedImage>> {
        let images = self.name(plan(&archive, dialect, &self.wish())?)?;
        let mut ready = Vec::new();
        let mut held = Vec::new();
        for image in images {
            let mut lowers = Vec::new();
            for layer in &image.layers {
                held.extend(self.settle(&mut archive, layer, &lowers)?);
                lowers.push(layer.diff_id);
            }
            ready.push(self.ready(image)?);
        }
        self.record(ready)
    }

    /// Compares a layer that came by with what the documents say of it, and finishes it where that waited.
    fn settle(
        &self,
        archive: &mut StreamArchive,
        layer: &PlannedLayer,
        lowers: &[Digest],
    ) -> Result<Option<Lease>> {
        let name = format!("layer {}", layer.path.escape_ascii());
        let found = archive.take_layer(&layer.path)?;
        let (size, found) = found.ok_or_else(|| Error::MissingMember { what: name.clone() })?;
        check_size(&name, layer, size)?;
        match found {
            Some(StreamLayer::Failed(error)) => Err(error),
            Some(StreamLayer::Present(diff_id, lease)) => {
                check_digest(name, layer.diff_id, diff_id)?;
                Ok(Some(lease))
            }
            Some(StreamLayer::Published(facts)) => check_facts(&name, layer, &facts).map(|()| None),
            Some(StreamLayer::Unpublished(read)) => {
                check_facts(&name, layer, &read.facts)?;
                read.publish(self.store, lowers)?;
                Ok(None)
            }
            // Another image of this archive has taken it already; or it is no layer at all.
            None => match ingest::hold(self.store, &layer.diff_id)? {
                Some(lease) => Ok(Some(lease)),
                None => Err(Error::NotALayer {
                    what: name,
                    hint: "it is neither a tar archive nor gzip or zstd data".to_owned(),
                }),
            },
        }
    }
}

fn check_digest(what: String, expected: Digest, actual: Digest) -> Result<()> {
    if actual != expected {
        return Err(Error::DigestMismatch {
            what,
            expected,
            actual,
        });
    }
    Ok(())
}

fn check_facts(what: &str, layer: &PlannedLayer, facts: &LayerFacts) -> Result<()> {
    check_size(what, layer, facts.blob_size)?;
    if let Some(blob) = layer.blob {
        check_digest(what.to_owned(), blob, facts.blob)?;
    }
    check_digest(
        format!("{what}, uncompressed,"),
        layer.diff_id,
        facts.diff_id,
    )
}
