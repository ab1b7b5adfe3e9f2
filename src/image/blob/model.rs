//! A model of the encoder that most container tools use: the match finder of Go's fast DEFLATE at its default level, as
//! podman, buildah, skopeo and umoci link it.
//!
//! It foretells the matches of a stream from the plain bytes. Where it is right, nothing has to be kept of them; where an
//! encoder does otherwise, they are kept, so nothing depends on the model but the size of what is kept. Changing what
//! it foretells would make kept blobs unreadable, so it must stay as it is; another encoder gets another model.
//!
//! How it works: the stream is cut into pieces of 65,535 bytes. A table finds the latest place with the same four bytes,
//! another the two latest with the same seven. A position that matches neither is a literal; the longer nothing is
//! found, the larger the steps. A short match gives way to a longer one that begins at the next position.

use super::deflate::{Match, WINDOW};

/// Bytes of a piece.
pub const PIECE: usize = 65_535;
const BITS: u32 = 15;
/// No search in the last bytes of a piece.
const MARGIN: usize = 11;
const MAX_LENGTH: usize = 258;
/// Farther away than any match.
const NOWHERE: i32 = i32::MIN / 2;

/// The model's memory: where it has seen what, in bytes that its caller has at hand up to a window back.
pub struct Model {
    short: Box<[i32; 1 << BITS]>,
    long: Box<[[i32; 2]; 1 << BITS]>,
    /// The first byte it has seen.
    first: usize,
}

#[inline(always)]
fn hash_short(eight: u64) -> usize {
    ((eight as u32).wrapping_mul(2_654_435_761) >> (32 - BITS)) as usize
}

#[inline(always)]
fn hash_long(eight: u64) -> usize {
    ((eight << 8).wrapping_mul(58_295_818_150_454_627) >> (64 - BITS)) as usize
}

/// The eight bytes from `at` on; nothing if there are fewer.
#[inline(always)]
fn eight(data: &[u8], at: usize) -> u64 {
    let rest = data.get(at..).and_then(|rest| rest.first_chunk());
    rest.map_or(0, |eight| u64::from_le_bytes(*eight))
}

/// The four bytes from `at` on.
#[inline(always)]
fn four(data: &[u8], at: usize) -> u32 {
    let rest = data.get(at..).and_then(|rest| rest.first_chunk());
    rest.map_or(0, |four| u32::from_le_bytes(*four))
}

/// Whether a match at `at` reaches `candidate`.
#[inline(always)]
fn near(at: usize, candidate: i32) -> bool {
    at as i32 - candidate < WINDOW as i32
}

/// Whether the four bytes at `at`, the low ones of `come`, also stand at `candidate`, within reach.
#[inline(always)]
fn matches(data: &[u8], come: u64, at: usize, candidate: i32) -> bool {
    near(at, candidate) && four(data, candidate as usize) == come as u32
}

/// How many bytes are the same from `a` and from `b < a` on, at most `max`.
#[inline(always)]
fn same(data: &[u8], a: usize, b: usize, max: usize) -> usize {
    let max = max.min(data.len().saturating_sub(a));
    let (one, two) = (&data[a..a + max], &data[b..b + max]);
    let mut len = 0;
    while let (Some(x), Some(y)) = (one[len..].first_chunk(), two[len..].first_chunk()) {
        let difference = u64::from_le_bytes(*x) ^ u64::from_le_bytes(*y);
        if difference != 0 {
            return len + difference.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    while len < max && one[len] == two[len] {
        len += 1;
    }
    len
}

/// A match as the search goes on: it ends where it ends, but may still begin earlier or elsewhere.
#[derive(Clone, Copy)]
struct Found {
    at: usize,
    from: usize,
    len: usize,
}

impl Model {
    pub fn new() -> Self {
        Self {
            short: Box::new([NOWHERE; 1 << BITS]),
            long: Box::new([[NOWHERE; 2]; 1 << BITS]),
            first: 0,
        }
    }

    /// Forgets everything, then takes `seen[from..]` in.
    pub fn reset(&mut self, seen: &[u8], from: usize) {
        self.short.fill(NOWHERE);
        self.long.fill([NOWHERE; 2]);
        self.first = from;
        if from < seen.len() {
            self.piece(seen, from, 0, &mut Vec::new());
        }
    }

    /// The caller has dropped so many bytes, none of which can be reached any more.
    pub fn shift(&mut self, gone: usize) {
        if gone > 0 {
            let move_back = |at: &mut i32| *at = (*at - gone as i32).max(NOWHERE);
            self.short.iter_mut().for_each(move_back);
            self.long.as_flattened_mut().iter_mut().for_each(move_back);
            self.first = self.first.saturating_sub(gone);
        }
    }

    #[inline(always)]
    fn put_short(&mut self, eight: u64, at: usize) {
        self.short[hash_short(eight)] = at as i32;
    }

    #[inline(always)]
    fn put_long(&mut self, eight: u64, at: usize) {
        let slot = &mut self.long[hash_long(eight)];
        *slot = [at as i32, slot[0]];
    }

    #[inline(always)]
    fn put(&mut self, eight: u64, at: usize) {
        self.put_short(eight, at);
        self.put_long(eight, at);
    }

    /// Foretells the matches of the next piece, `data[start..]`, at most [`PIECE`] bytes; their places are counted from
    /// `origin`.
    pub fn piece(&mut self, data: &[u8], start: usize, origin: usize, matches: &mut Vec<Match>) {
        let end = data.len();
        if end < start + MARGIN + 2 {
            return;
        }
        let limit = end - MARGIN;
        let mut emitted = start;
        let mut at = start;
        while let Some((found, next)) = self.search(data, at, emitted, limit) {
            let found = self.improve(data, found, emitted, limit);
            push_match(matches, found, origin);
            let after = found.at + found.len;
            emitted = after;
            at = if next >= after { next + 1 } else { after };
            if at >= limit {
                break;
            }
            self.remember(data, at, found.len);
        }
    }

    /// The next match from `at` on, and where the search would have gone on.
    #[inline(always)]
    fn search(
        &mut self,
        data: &[u8],
        mut at: usize,
        emitted: usize,
        limit: usize,
    ) -> Option<(Found, usize)> {
        let length =
            |at: usize, from: i32| 4 + same(data, at + 4, from as usize + 4, MAX_LENGTH - 4);
        let mut come = eight(data, at);
        loop {
            let next = at + 1 + ((at - emitted) >> 6);
            if next > limit {
                return None;
            }
            let short = std::mem::replace(&mut self.short[hash_short(come)], at as i32);
            let slot = &mut self.long[hash_long(come)];
            let long = *slot;
            *slot = [at as i32, long[0]];
            let following = eight(data, next);
            let mut found = Found {
                at,
                from: long[0] as usize,
                len: 0,
            };
            if matches(data, come, at, long[0]) {
                self.put(following, next);
                if matches(data, come, at, long[1]) {
                    found.len = length(at, long[0]);
                    let other = length(at, long[1]);
                    if other > found.len {
                        (found.from, found.len) = (long[1] as usize, other);
                    }
                }
            } else if near(at, long[0]) && matches(data, come, at, long[1]) {
                self.put(following, next);
                found.from = long[1] as usize;
            } else if matches(data, come, at, short) {
                found.from = short as usize;
                found.len = length(at, short);
                let long = self.long[hash_long(following)];
                self.put(following, next);
                if near(next, long[0]) {
                    for candidate in long {
                        if matches(data, following, next, candidate) {
                            let len = length(next, candidate);
                            if len > found.len {
                                let from = candidate as usize;
                                found = Found {
                                    at: next,
                                    from,
                                    len,
                                };
                                break;
                            }
                        }
                    }
                }
            } else {
                (at, come) = (next, following);
                continue;
            }
            return Some((found, next));
        }
    }

    /// Makes a match as long as it can be, at both ends, or finds a longer one by where it ends.
    #[inline(always)]
    fn improve(&self, data: &[u8], mut found: Found, emitted: usize, limit: usize) -> Found {
        let Found { at, from, len } = found;
        if len == 0 {
            found.len = 4 + same(data, at + 4, from + 4, usize::MAX);
        } else if len == MAX_LENGTH {
            found.len += same(data, at + len, from + len, usize::MAX);
        }
        let behind = at + found.len;
        if found.len < 30 && behind < limit {
            const SKIPPED: usize = 2;
            let candidate = self.long[hash_long(eight(data, behind))][0];
            let from = candidate as isize - found.len as isize + SKIPPED as isize;
            let at = at + SKIPPED;
            let distance = at as isize - from;
            let reached =
                (from >= self.first as isize) & (distance < WINDOW as isize) & (distance > 0);
            let from = from.max(0) as usize;
            // A longer one has the same four bytes at least.
            if reached & (four(data, from) == four(data, at)) {
                let len = same(data, at, from, usize::MAX);
                if len > found.len {
                    found = Found { at, from, len };
                }
            }
        }
        while found.from > self.first
            && found.at > emitted
            && data[found.from - 1] == data[found.at - 1]
        {
            found = Found {
                at: found.at - 1,
                from: found.from - 1,
                len: found.len + 1,
            };
        }
        found
    }

    /// Notes places within a match of `len` bytes that ended at `at`, where the search goes on.
    #[inline(always)]
    fn remember(&mut self, data: &[u8], at: usize, len: usize) {
        // `at` may be past the end of the match; the places are counted from where the search goes on.
        let mut i = at - len + 1;
        if i < at - 1 {
            let come = eight(data, i);
            self.put(come, i);
            self.put_long(come >> 8, i + 1);
            self.put_short(come >> 16, i + 2);
            i += 4;
            while i < at - 1 {
                let come = eight(data, i);
                self.put_long(come, i);
                self.put_short(come >> 8, i + 1);
                i += 3;
            }
        }
        self.put(eight(data, at - 1), at - 1);
    }
}

/// A match of any length as matches DEFLATE can say.
#[inline(always)]
fn push_match(matches: &mut Vec<Match>, found: Found, origin: usize) {
    let distance = found.at - found.from;
    let (mut at, mut len) = (found.at - origin, found.len);
    while len > 0 {
        let part = match len {
            0..=MAX_LENGTH => len,
            // At least three bytes must be left.
            259..=261 => MAX_LENGTH - 3,
            _ => MAX_LENGTH,
        };
        matches.push(Match::new(at, part, distance));
        at += part;
        len -= part;
    }
}
