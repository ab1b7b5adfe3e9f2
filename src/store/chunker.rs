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

/// Feeds on bytes, gives chunks. One run of data at a time; `finish` makes it ready for the next.
///
/// Chunks are cut out of the caller's slices; only those that begin in one slice and may end in another are copied.
pub(super) struct Chunker {
    /// From `start` on, what is not cut yet, less than [`MAX`].
    buffer: Vec<u8>,
    start: usize,
    cut_any: bool,
}

/// Cuts a content that lies there whole.
pub(super) fn cut_whole(bytes: &[u8], sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    if bytes.len() <= WHOLE {
        return if bytes.is_empty() {
            Ok(())
        } else {
            sink(bytes)
        };
    }
    cut_while(bytes, 1, sink).map(drop)
}

fn cutter(bytes: &[u8]) -> FastCDC<'_> {
    FastCDC::new(bytes, MIN, AVERAGE, MAX)
}

/// Cuts while at least so many bytes are left; gives where the uncut ones begin.
fn cut_while(
    bytes: &[u8],
    least: usize,
    sink: &mut impl FnMut(&[u8]) -> Result<()>,
) -> Result<usize> {
    let cutter = cutter(bytes);
    let mut start = 0;
    while bytes.len() - start >= least {
        let (_, end) = cutter.cut(start, bytes.len() - start);
        sink(&bytes[start..end])?;
        start = end;
    }
    Ok(start)
}

impl Chunker {
    pub(super) fn new() -> Self {
        Self {
            buffer: Vec::with_capacity(2 * MAX),
            start: 0,
            cut_any: false,
        }
    }

    pub(super) fn feed(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.buffer.drain(..self.start);
        self.start = 0;
        // Bytes from before this slice; behind them, the buffer holds the slice's first ones.
        let old = self.buffer.len();
        let mut taken = 0;
        while self.start < old {
            // Only where a whole MAX lies ahead does the boundary not depend on what is yet to come.
            let wanted = self.start + MAX - self.buffer.len();
            let more = &bytes[taken..bytes.len().min(taken + wanted)];
            self.buffer.extend_from_slice(more);
            taken += more.len();
            if more.len() < wanted {
                return Ok(());
            }
            let (_, end) = cutter(&self.buffer).cut(self.start, MAX);
            sink(&self.buffer[self.start..end])?;
            self.start = end;
            self.cut_any = true;
        }
        let rest = &bytes[self.start - old..];
        let cut = cut_while(rest, MAX, sink)?;
        self.cut_any |= cut > 0;
        self.buffer.clear();
        self.start = 0;
        self.buffer.extend_from_slice(&rest[cut..]);
        Ok(())
    }

    /// The data ends here: cuts what is left.
    pub(super) fn finish(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let left = &self.buffer[self.start..];
        if self.cut_any {
            cut_while(left, 1, sink)?;
        } else {
            cut_whole(left, sink)?;
        }
        self.buffer.clear();
        self.start = 0;
        self.cut_any = false;
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
        for step in [1_000, 65_536, 262_144, 300_001, 524_288, 1_000_003] {
            assert_eq!(lengths(&data, step), want, "fed by {step}");
        }
    }

    #[test]
    fn a_content_that_is_there_whole_is_cut_the_same() {
        for len in [0, 1, WHOLE, WHOLE + 1, MAX, MAX + 1, 1_500_001] {
            let data = noise(len, 5);
            let (mut whole, mut joined) = (Vec::new(), Vec::new());
            let mut sink = |chunk: &[u8]| {
                whole.push(chunk.len());
                joined.extend_from_slice(chunk);
                Ok(())
            };
            cut_whole(&data, &mut sink).unwrap();
            assert_eq!(joined, data);
            assert_eq!(whole, lengths(&data, 100_003), "{len}");
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
            (4 * MAX, vec![MAX; 4]),
            (4 * MAX + 5, vec![MAX, MAX, MAX, MAX, 5]),
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
