//! SHA-256 (FIPS 180-4) of two streams at once.
//!
//! An import hashes every byte of a file twice, as part of its layer and as part of a chunk. A round of SHA-256 needs the
//! result of the round before, so one stream leaves the processor's SHA unit idle half of the time. Rounds of a second,
//! independent stream fit into the gaps: both together take 1.1 to 1.3 times as long as one. The crate sha2 takes one
//! stream at a time; it does that here, too, and everything on processors without the SHA extensions.

use sha2::block_api::compress256;

const BLOCK: usize = 64;
/// FIPS 180-4, 5.3.3.
const START: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The digest of a stream that comes in pieces.
#[derive(Clone)]
pub struct Sha256 {
    state: [u32; 8],
    /// The bytes since the last whole block; how many follows from `len`.
    tail: [u8; BLOCK],
    /// Bytes so far.
    len: u64,
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl Sha256 {
    pub const fn new() -> Self {
        Self {
            state: START,
            tail: [0; BLOCK],
            len: 0,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        let bytes = self.fill_block(bytes);
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.keep(blocks.len(), rest);
    }

    /// Appends the same bytes to both streams, which may be of different lengths.
    pub fn update_both(&mut self, other: &mut Self, bytes: &[u8]) {
        let (mine, theirs) = (self.fill_block(bytes), other.fill_block(bytes));
        let same = mine.len() == theirs.len();
        let ((a, mine), (b, theirs)) = (mine.as_chunks(), theirs.as_chunks());
        let both = a.len().min(b.len());
        let ((a, a_more), (b, b_more)) = (a.split_at(both), b.split_at(both));
        if !(same && pair::same(&mut self.state, &mut other.state, a)
            || pair::two(&mut self.state, a, &mut other.state, b))
        {
            compress256(&mut self.state, a);
            compress256(&mut other.state, b);
        }
        // At most one block of one of them.
        compress256(&mut self.state, a_more);
        compress256(&mut other.state, b_more);
        self.keep(both + a_more.len(), mine);
        other.keep(both + b_more.len(), theirs);
    }

    /// The digest of all bytes.
    pub fn finish(mut self) -> [u8; 32] {
        // FIPS 180-4, 5.1.1: a one bit, zeros, and the length in bits at the end of a block.
        let bits = self.len.wrapping_mul(8).to_be_bytes();
        let used = self.used();
        self.tail[used] = 0x80;
        self.tail[used + 1..].fill(0);
        if used + 1 + bits.len() > BLOCK {
            compress256(&mut self.state, &[self.tail]);
            self.tail.fill(0);
        }
        self.tail[BLOCK - bits.len()..].copy_from_slice(&bits);
        compress256(&mut self.state, &[self.tail]);
        let mut digest = [0; 32];
        for (bytes, word) in digest.chunks_exact_mut(4).zip(self.state) {
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        digest
    }

    fn used(&self) -> usize {
        (self.len % BLOCK as u64) as usize
    }

    /// Completes a begun block, as far as `bytes` go; gives those that are left.
    fn fill_block<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let used = self.used();
        if used == 0 {
            return bytes;
        }
        let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - used));
        self.tail[used..used + now.len()].copy_from_slice(now);
        self.len += now.len() as u64;
        if used + now.len() == BLOCK {
            compress256(&mut self.state, &[self.tail]);
        }
        rest
    }

    /// Counts whole blocks that were hashed, and keeps what follows them for the next.
    fn keep(&mut self, blocks: usize, rest: &[u8]) {
        // Where a begun block is still in use, nothing is left.
        self.tail[..rest.len()].copy_from_slice(rest);
        self.len += (blocks * BLOCK + rest.len()) as u64;
    }
}

/// The instructions of x86-64 with SHA extensions. Every function tells whether it did its work.
#[cfg(target_arch = "x86_64")]
mod pair {
    use std::arch::x86_64::*;

    use super::BLOCK;

    /// FIPS 180-4, 4.2.2.
    #[rustfmt::skip]
    const K: [u32; 64] = [
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    ];

    fn supported() -> bool {
        is_x86_feature_detected!("sha") && is_x86_feature_detected!("avx")
    }

    /// Hashes the same blocks into two states: their message schedule is worked out once.
    pub(super) fn same(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; BLOCK]]) -> bool {
        let able = supported();
        if able {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { same_blocks(a, b, blocks) };
        }
        able
    }

    /// Hashes as many blocks of one stream as of the other; a longer one's rest is left out.
    pub(super) fn two(
        a: &mut [u32; 8],
        a_blocks: &[[u8; BLOCK]],
        b: &mut [u32; 8],
        b_blocks: &[[u8; BLOCK]],
    ) -> bool {
        let able = supported();
        if able {
            // SAFETY: the processor has what the function is compiled for.
            unsafe { two_blocks(a, a_blocks, b, b_blocks) };
        }
        able
    }

    #[target_feature(enable = "sha,avx")]
    fn same_blocks(a: &mut [u32; 8], b: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
        let (mut s, mut t) = (State::load(a), State::load(b));
        for block in blocks {
            let (s_before, t_before) = (s, t);
            let mut words = words(block);
            for four in 0..16 {
                let w = _mm_add_epi32(schedule(&mut words, four), constants(four));
                rounds(&mut s, w, &mut t, w);
            }
            s.add(s_before);
            t.add(t_before);
        }
        s.store(a);
        t.store(b);
    }

    #[target_feature(enable = "sha,avx")]
    fn two_blocks(
        a: &mut [u32; 8],
        a_blocks: &[[u8; BLOCK]],
        b: &mut [u32; 8],
        b_blocks: &[[u8; BLOCK]],
    ) {
        let (mut s, mut t) = (State::load(a), State::load(b));
        for (a_block, b_block) in a_blocks.iter().zip(b_blocks) {
            let (s_before, t_before) = (s, t);
            let (mut a_words, mut b_words) = (words(a_block), words(b_block));
            for four in 0..16 {
                let k = constants(four);
                let w = _mm_add_epi32(schedule(&mut a_words, four), k);
                let v = _mm_add_epi32(schedule(&mut b_words, four), k);
                rounds(&mut s, w, &mut t, v);
            }
            s.add(s_before);
            t.add(t_before);
        }
        s.store(a);
        t.store(b);
    }

    /// The eight working variables in the order that `SHA256RNDS2` wants.
    #[derive(Clone, Copy)]
    struct State {
        abef: __m128i,
        cdgh: __m128i,
    }

    impl State {
        #[inline]
        #[target_feature(enable = "sha,avx")]
        fn load(h: &[u32; 8]) -> Self {
            let [a, b, c, d, e, f, g, h] = h.map(u32::cast_signed);
            Self {
                abef: _mm_set_epi32(a, b, e, f),
                cdgh: _mm_set_epi32(c, d, g, h),
            }
        }

        #[inline]
        #[target_feature(enable = "sha,avx")]
        fn store(self, h: &mut [u32; 8]) {
            let words = |v| {
                [
                    _mm_extract_epi32::<3>(v),
                    _mm_extract_epi32::<2>(v),
                    _mm_extract_epi32::<1>(v),
                    _mm_extract_epi32::<0>(v),
                ]
                .map(i32::cast_unsigned)
            };
            let ([a, b, e, f], [c, d, g, i]) = (words(self.abef), words(self.cdgh));
            *h = [a, b, c, d, e, f, g, i];
        }

        #[inline]
        #[target_feature(enable = "sha,avx")]
        fn add(&mut self, other: Self) {
            self.abef = _mm_add_epi32(self.abef, other.abef);
            self.cdgh = _mm_add_epi32(self.cdgh, other.cdgh);
        }
    }

    /// The sixteen words of a block, which are big-endian.
    #[inline]
    #[target_feature(enable = "sha,avx")]
    fn words(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        std::array::from_fn(|i| {
            // SAFETY: a block has 64 bytes, of which these are 16, and the load needs no alignment.
            let four = unsafe { _mm_loadu_si128(block.as_ptr().add(16 * i).cast()) };
            _mm_shuffle_epi8(four, swap)
        })
    }

    /// Words `4 * four` to `4 * four + 3` of the message schedule (FIPS 180-4, 6.2.2, step 1). `words` is a ring of the last
    /// sixteen.
    #[inline]
    #[target_feature(enable = "sha,avx")]
    fn schedule(words: &mut [__m128i; 4], four: usize) -> __m128i {
        let at = |n: usize| words[(four + n) % 4];
        if four >= 4 {
            let older = _mm_sha256msg1_epu32(at(0), at(1));
            let middle = _mm_alignr_epi8::<4>(at(3), at(2));
            words[four % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(older, middle), at(3));
        }
        words[four % 4]
    }

    #[inline]
    #[target_feature(enable = "sha,avx")]
    fn constants(four: usize) -> __m128i {
        let k = |n: usize| K[4 * four + n].cast_signed();
        _mm_set_epi32(k(3), k(2), k(1), k(0))
    }

    /// Four rounds of each; `w` and `v` are words of the schedule with their constants added.
    #[inline]
    #[target_feature(enable = "sha,avx")]
    fn rounds(s: &mut State, w: __m128i, t: &mut State, v: __m128i) {
        s.cdgh = _mm_sha256rnds2_epu32(s.cdgh, s.abef, w);
        t.cdgh = _mm_sha256rnds2_epu32(t.cdgh, t.abef, v);
        s.abef = _mm_sha256rnds2_epu32(s.abef, s.cdgh, _mm_shuffle_epi32::<0x0e>(w));
        t.abef = _mm_sha256rnds2_epu32(t.abef, t.cdgh, _mm_shuffle_epi32::<0x0e>(v));
    }
}

/// Elsewhere sha2 does it all.
#[cfg(not(target_arch = "x86_64"))]
mod pair {
    use super::BLOCK;

    pub(super) fn same(_: &mut [u32; 8], _: &mut [u32; 8], _: &[[u8; BLOCK]]) -> bool {
        false
    }

    pub(super) fn two(
        _: &mut [u32; 8],
        _: &[[u8; BLOCK]],
        _: &mut [u32; 8],
        _: &[[u8; BLOCK]],
    ) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    fn reference(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    /// Bytes from a linear congruential generator (Knuth's MMIX constants).
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

    #[test]
    fn every_length_and_place_in_a_block() {
        let data = noise(400, 1);
        for before in 0..130 {
            for len in 0..=data.len() - before {
                let (mut a, mut b) = (Sha256::new(), Sha256::new());
                a.update(&data[..before]);
                a.update_both(&mut b, &data[before..before + len]);
                assert_eq!(a.finish(), reference(&data[..before + len]));
                assert_eq!(b.finish(), reference(&data[before..before + len]));
            }
        }
    }

    proptest! {
        #[test]
        fn any_pieces(
            seed: u64,
            pieces in prop::collection::vec((0..3_000usize, 0..3u8), 0..12),
        ) {
            let data = noise(pieces.iter().map(|(len, _)| len).sum(), seed);
            let (mut a, mut b) = (Sha256::new(), Sha256::new());
            let (mut a_bytes, mut b_bytes, mut at) = (Vec::new(), Vec::new(), 0);
            for (len, to) in pieces {
                let piece = &data[at..at + len];
                at += len;
                match to {
                    0 => a.update(piece),
                    1 => b.update(piece),
                    _ => a.update_both(&mut b, piece),
                }
                if to != 1 { a_bytes.extend_from_slice(piece) }
                if to != 0 { b_bytes.extend_from_slice(piece) }
            }
            prop_assert_eq!(a.finish(), reference(&a_bytes));
            prop_assert_eq!(b.finish(), reference(&b_bytes));
        }
    }

    /// Where the processor can, what is tested above is not only the way around it.
    #[test]
    fn both_ways_agree() {
        let data = noise(64 * 50, 3);
        let (a, _) = data.as_chunks();
        let (b, _) = data[7..].as_chunks();
        let (mut s, mut t) = (START, START.map(|word| word ^ 0x5555_5555));
        let (mut want_s, mut want_t) = (s, t);
        if pair::two(&mut s, a, &mut t, b) {
            compress256(&mut want_s, &a[..b.len()]);
            compress256(&mut want_t, b);
            assert_eq!((s, t), (want_s, want_t));
        }
        if pair::same(&mut s, &mut t, a) {
            compress256(&mut want_s, a);
            compress256(&mut want_t, a);
            assert_eq!((s, t), (want_s, want_t));
        }
    }
}
