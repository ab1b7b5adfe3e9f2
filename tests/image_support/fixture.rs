//! One store, and imports into it that must succeed or be refused.

use std::fs;
use std::io::Cursor;

use ovl::image::{Error, ImportOptions, ImportedImage, Source, import, import_stream};
use ovl::store::Store;

use super::*;

pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub store: Store,
    /// Images that were imported on purpose.
    pub known: std::cell::Cell<usize>,
}

impl Fixture {
    pub fn new() -> Self {
        let dir = temp();
        let store = store(dir.path());
        Self {
            dir,
            store,
            known: std::cell::Cell::new(0),
        }
    }

    pub fn file(&self, bytes: &[u8]) -> Source {
        let path = self.dir.path().join("archive");
        fs::write(&path, bytes).unwrap();
        Source::parse(path.as_os_str()).unwrap()
    }

    pub fn import_with(
        &self,
        bytes: &[u8],
        options: &ImportOptions,
    ) -> Result<Vec<ImportedImage>, Error> {
        import(&self.store, &self.file(bytes), options, &())
    }

    pub fn import(&self, bytes: &[u8]) -> Result<Vec<ImportedImage>, Error> {
        self.import_with(bytes, &ImportOptions::default())
    }

    pub fn pipe(&self, bytes: &[u8]) -> Result<Vec<ImportedImage>, Error> {
        let stream = Box::new(Cursor::new(bytes.to_vec()));
        import_stream(&self.store, stream, &ImportOptions::default(), &())
    }

    /// A layer alone must be refused, as a tar, within an archive, and through a pipe.
    #[track_caller]
    pub fn refused(&self, layer: &[u8], reason: &str) {
        for (form, bytes) in [
            ("rootfs", layer.to_vec()),
            ("docker", docker_archive(&[layer.to_vec()])),
        ] {
            for (way, result) in [("file", self.import(&bytes)), ("pipe", self.pipe(&bytes))] {
                let error = result.expect_err(reason);
                let text = error.to_string();
                assert!(
                    text.contains(reason),
                    "{form} {way}: {reason:?} not in {text:?}"
                );
                assert!(!text.contains('\n'), "{text}");
                self.untouched();
            }
        }
    }

    #[track_caller]
    pub fn untouched(&self) {
        assert_eq!(
            self.store.images().unwrap().len(),
            self.known.get(),
            "an image was recorded"
        );
    }

    /// The tree of the only layer; the layer must come back bit for bit.
    #[track_caller]
    pub fn tree(&self, layer: &[u8]) -> Tree {
        let images = self.import(layer).unwrap_or_else(|e| panic!("{e}"));
        self.known.set(self.store.images().unwrap().len());
        let id = images[0].layers[0];
        assert!(layer_tar(&self.store, &id) == layer, "not bit for bit");
        stored_tree(&self.store, &id)
    }

    /// Trees of the layers of an image.
    #[track_caller]
    pub fn trees(&self, layers: &[Vec<u8>]) -> Vec<Tree> {
        let archive = docker_archive(layers);
        let images = self.import(&archive).unwrap_or_else(|e| panic!("{e}"));
        images[0]
            .layers
            .iter()
            .map(|id| stored_tree(&self.store, id))
            .collect()
    }
}

pub fn paths(tree: &Tree) -> Vec<&str> {
    tree.keys().map(|path| path.to_str().unwrap()).collect()
}
