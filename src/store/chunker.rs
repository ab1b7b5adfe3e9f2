//! Cuts a content into chunks by what it says, not by position, so that versions of a file share chunks.
//!
//! FastCDC v2020 (Xia et al., "The Design of Fast Content-Defined Chunking", IEEE TPDS 2020), normalisation level 1. The
//! constants and the algorithm are part of the store format: moving a boundary breaks no old data, but no new import
//! would share a chunk with an old one. Where the caller's slices begin and end never matters.

use fastcdc::v2020::FastCDC;

use super::Result;

/// No chunk but the last of a content is shorter, bytes.
pub(super) const MIN: usize = 16 << 10;
pub(super) const AVERAGE: usize = 64 << 10;
/// No chunk is longer, bytes.
pub(super) const MAX: usize = 256 << 10;
/// Contents up to this size are one chunk, uncut: a content row and list would cost more than sharing parts saves.
pub(super) const WHOLE: usize = 64 << 10;

/// Gathered before cutting; a multiple of [`MAX`] so that the tail is seldom moved.
const BUFFER: usize = 4 * MAX;

/// Feeds on bytes, gives chunks. One run of data at a time; `finish` makes it ready for the next.
pub(super) struct Chunker {
    buffer: Vec<u8>,
    cut_any: bool,
}

impl Chunker {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(BUFFER),
            cut_any: false,
        }
    }

    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            let take = bytes.len().min(BUFFER - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.buffer.len() == BUFFER {
                // Only where a whole MAX lies ahead does the boundary not depend on what is yet to come.
                self.cut_while(MAX, sink)?;
            }
        }
        Ok(())
    }

    /// The data ends here: cuts what is left.
    pub(super) fn finish(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        if !self.cut_any && self.buffer.len() <= WHOLE {
            if !self.buffer.is_empty() {
                sink(&self.buffer)?;
                self.buffer.clear();
            }
        } else {
            self.cut_while(1, sink)?;
        }
        self.cut_any = false;
        Ok(())
    }

    fn cut_while(
        &mut self,
        least: usize,
        sink: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let cutter = FastCDC::new(&self.buffer, MIN, AVERAGE, MAX);
        let mut start = 0;
        while self.buffer.len() - start >= least {
            let (_, end) = cutter.cut(start, self.buffer.len() - start);
            sink(&self.buffer[start..end])?;
            start = end;
        }
        self.cut_any |= start > 0;
        self.buffer.drain(..start);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes from a linear congruential generator (Knuth's MMIX constants): the same everywhere, for ever.
    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    fn lengths(data: &[u8], step: usize) -> Vec<usize> {
        let (mut chunker, mut lengths, mut joined) = (Chunker::new(), Vec::new(), Vec::new());
        let mut sink = |chunk: &[u8]| {
            lengths.push(chunk.len());
            joined.extend_from_slice(chunk);
            Ok(())
        };
        for piece in data.chunks(step) {
            chunker.feed(piece, &mut sink).unwrap();
        }
        chunker.finish(&mut sink).unwrap();
        assert_eq!(joined, data);
        lengths
    }

    /// If this fails after an update of the fastcdc crate, the update must not go in: it would stop new imports from
    /// sharing chunks with what users already have.
    #[test]
    fn boundaries_are_pinned() {
        let got = lengths(&noise(2_000_000, 1), usize::MAX);
        assert_eq!(got, PINNED);
    }

    const PINNED: [usize; 24] = [
        125811, 78145, 101666, 83949, 47712, 79075, 41827, 73610, 78850, 68194, 98023, 155785,
        49204, 200526, 28626, 96444, 90358, 35313, 75904, 68382, 66520, 79458, 72179, 104439,
    ];

    #[test]
    fn how_the_data_is_fed_does_not_matter() {
        let data = noise(3_000_000, 2);
        let want = lengths(&data, usize::MAX);
        for step in [1_000, 65_536, 262_144, 1_000_003] {
            assert_eq!(lengths(&data, step), want, "fed by {step}");
        }
    }

    #[test]
    fn sizes_around_the_limits() {
        for (len, want) in [
            (0, vec![]),
            (1, vec![1]),
            (WHOLE, vec![WHOLE]),
            (MAX, vec![MAX]),
            (MAX + 1, vec![MAX, 1]),
            (BUFFER, vec![MAX; 4]),
            (BUFFER + 5, vec![MAX, MAX, MAX, MAX, 5]),
        ] {
            // Zeros hold no boundary, so only MAX cuts.
            assert_eq!(lengths(&vec![0; len], 4096), want, "{len}");
        }
        assert!(
            lengths(&noise(WHOLE + 1, 3), 4096)
                .iter()
                .all(|len| *len <= WHOLE + 1)
        );
    }

    #[test]
    fn an_insertion_moves_few_chunks() {
        let old = noise(4_000_000, 4);
        let mut new = old.clone();
        new.splice(1_000_000..1_000_000, *b"inserted");
        let cut = |data: &[u8]| {
            let mut set = std::collections::HashSet::new();
            let mut chunker = Chunker::new();
            let mut sink = |chunk: &[u8]| {
                set.insert(chunk.to_vec());
                Ok(())
            };
            chunker.feed(data, &mut sink).unwrap();
            chunker.finish(&mut sink).unwrap();
            set
        };
        let (old, new) = (cut(&old), cut(&new));
        assert!(
            new.difference(&old).count() <= 3,
            "{} of {} chunks are new",
            new.difference(&old).count(),
            new.len()
        );
    }
}
