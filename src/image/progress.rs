//! What an import tells while it runs, so that a terminal can draw one bar per layer.

/// Watches an import. Called from several threads.
pub trait ImportProgress: Sync {
    /// A layer is about to be read or found present. `of` is how many there will be, where that is known; `expected` the
    /// size of its blob, bytes.
    fn layer_started(&self, index: usize, of: Option<usize>, name: &str, expected: Option<u64>) {
        let _ = (index, of, name, expected);
    }

    /// So many more bytes of the blob were read.
    fn layer_bytes(&self, index: usize, bytes: u64) {
        let _ = (index, bytes);
    }

    /// The layer was read whole, or need not be.
    fn layer_done(&self, index: usize, outcome: LayerOutcome) {
        let _ = (index, outcome);
    }
}

/// Tells nobody.
impl ImportProgress for () {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerOutcome {
    /// The store had it already.
    Present,
    /// It was read; size of its uncompressed tar, bytes.
    New { tar_size: u64 },
}

/// One layer's progress.
pub(super) struct Bar<'a> {
    progress: &'a dyn ImportProgress,
    index: usize,
}

impl<'a> Bar<'a> {
    pub fn start(
        progress: &'a dyn ImportProgress,
        index: usize,
        of: Option<usize>,
        name: &str,
        expected: Option<u64>,
    ) -> Self {
        progress.layer_started(index, of, name, expected);
        Self { progress, index }
    }

    pub fn bytes(&self, n: u64) {
        self.progress.layer_bytes(self.index, n);
    }

    pub fn done(self, outcome: LayerOutcome) {
        self.progress.layer_done(self.index, outcome);
    }
}
