//! A model of the encoder that most container tools use: the match finder of Go's fast DEFLATE at its default level, as
//! podman, buildah, skopeo and umoci link it.
//!
//! It foretells the tokens of a stream from the plain bytes. Where it is right, nothing has to be kept of them; where an
//! encoder does otherwise, the tokens are kept, so nothing depends on the model but the size of what is kept. Changing what
//! it foretells would make kept blobs unreadable, so it must stay as it is; another encoder gets another model.
//!
//! How it works: the stream is cut into pieces of 65,535 bytes. A table finds the latest place with the same four bytes,
//! another the two latest with the same seven. A position that matches neither is a literal; the longer nothing is
//! found, the larger the steps. A short match gives way to a longer one that begins at the next position.

use super::deflate::{Token, WINDOW};

/// Bytes of a piece.
pub const PIECE: usize = 65_535;
const BITS: u32 = 15;
/// No search in the last bytes of a piece.
const MARGIN: usize = 11;
const MAX_LENGTH: usize = 258;
/// Farther away than any match.
const NOWHERE: i32 = i32::MIN / 2;

/// The model's memory: what it has seen of the stream, up to a window back.
pub struct Model {
    short: Box<[i32]>,
    long: Box<[[i32; 2]]>,
    seen: Vec<u8>,
}

fn hash_short(eight: u64) -> usize {
    ((eight as u32).wrapping_mul(2_654_435_761) >> (32 - BITS)) as usize
}

fn hash_long(eight: u64) -> usize {
    ((eight << 8).wrapping_mul(58_295_818_150_454_627) >> (64 - BITS)) as usize
}

/// How many bytes are the same from `a` and from `b < a` on, at most `max`.
fn same(data: &[u8], a: usize, b: usize, max: usize) -> usize {
    let max = max.min(data.len().saturating_sub(a));
    let (one, two) = (&data[a..a + max], &data[b..b + max]);
    let mut len = 0;
    for (x, y) in one.chunks_exact(8).zip(two.chunks_exact(8)) {
        let (Ok(x), Ok(y)) = (x.try_into(), y.try_into()) else {
            break;
        };
        let difference = u64::from_le_bytes(x) ^ u64::from_le_bytes(y);
        if difference != 0 {
            return len + difference.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + one[len..]
        .iter()
        .zip(&two[len..])
        .take_while(|(x, y)| x == y)
        .count()
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
            short: vec![NOWHERE; 1 << BITS].into(),
            long: vec![[NOWHERE; 2]; 1 << BITS].into(),
            seen: Vec::new(),
        }
    }

    /// Forgets everything, then takes `dictionary` in.
    pub fn reset(&mut self, dictionary: &[u8]) {
        self.short.fill(NOWHERE);
        self.long.fill([NOWHERE; 2]);
        self.seen.clear();
        if !dictionary.is_empty() {
            self.piece(dictionary, &mut Vec::new());
        }
    }

    fn eight(&self, at: usize) -> u64 {
        self.seen
            .get(at..at + 8)
            .and_then(|eight| eight.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    fn put_short(&mut self, eight: u64, at: usize) {
        self.short[hash_short(eight)] = at as i32;
    }

    fn put_long(&mut self, eight: u64, at: usize) {
        let slot = &mut self.long[hash_long(eight)];
        *slot = [at as i32, slot[0]];
    }

    fn put(&mut self, eight: u64, at: usize) {
        self.put_short(eight, at);
        self.put_long(eight, at);
    }

    /// Whether the four bytes at `at`, the low ones of `eight`, also stand at `candidate`, within reach.
    fn matches(&self, eight: u64, at: usize, candidate: i32) -> bool {
        at as i32 - candidate < WINDOW as i32
            && self.eight(candidate as usize) as u32 == eight as u32
    }

    fn length(&self, at: usize, from: i32) -> usize {
        4 + same(&self.seen, at + 4, from as usize + 4, MAX_LENGTH - 4)
    }

    /// Keeps only what can still be reached.
    fn slide(&mut self) {
        let Some(gone) = self.seen.len().checked_sub(WINDOW).filter(|n| *n > 4 << 20) else {
            return;
        };
        self.seen.drain(..gone);
        let move_back = |at: &mut i32| *at = (*at - gone as i32).max(NOWHERE);
        self.short.iter_mut().for_each(move_back);
        self.long.iter_mut().flatten().for_each(move_back);
    }

    /// Foretells the tokens of the next piece, at most [`PIECE`] bytes. None at all: no match was found.
    pub fn piece(&mut self, piece: &[u8], tokens: &mut Vec<Token>) {
        self.slide();
        let start = self.seen.len();
        self.seen.extend_from_slice(piece);
        let end = self.seen.len();
        if piece.len() < MARGIN + 2 {
            return;
        }
        let limit = end - MARGIN;
        let before = tokens.len();
        let mut emitted = start;
        let mut at = start;
        while let Some((found, next)) = self.search(at, emitted, limit) {
            let found = self.improve(found, emitted, limit);
            tokens.extend(
                self.seen[emitted..found.at]
                    .iter()
                    .copied()
                    .map(Token::literal),
            );
            push_match(tokens, found.len, found.at - found.from);
            let after = found.at + found.len;
            emitted = after;
            at = if next >= after { next + 1 } else { after };
            if at >= limit {
                break;
            }
            self.remember(at, found.len);
        }
        if tokens.len() > before {
            tokens.extend(self.seen[emitted..end].iter().copied().map(Token::literal));
        }
    }

    /// The next match from `at` on, and where the search would have gone on.
    fn search(&mut self, mut at: usize, emitted: usize, limit: usize) -> Option<(Found, usize)> {
        let mut eight = self.eight(at);
        loop {
            let next = at + 1 + ((at - emitted) >> 6);
            if next > limit {
                return None;
            }
            let short = self.short[hash_short(eight)];
            let long = self.long[hash_long(eight)];
            let following = self.eight(next);
            self.put(eight, at);
            let near = (at as i32 - long[0]) < WINDOW as i32;
            if self.matches(eight, at, long[0]) {
                self.put(following, next);
                let mut found = Found {
                    at,
                    from: long[0] as usize,
                    len: 0,
                };
                if self.matches(eight, at, long[1]) {
                    found.len = self.length(at, long[0]);
                    let other = self.length(at, long[1]);
                    if other > found.len {
                        (found.from, found.len) = (long[1] as usize, other);
                    }
                }
                return Some((found, next));
            }
            if near && self.matches(eight, at, long[1]) {
                self.put(following, next);
                let from = long[1] as usize;
                return Some((Found { at, from, len: 0 }, next));
            }
            if self.matches(eight, at, short) {
                let mut found = Found {
                    at,
                    from: short as usize,
                    len: self.length(at, short),
                };
                let long = self.long[hash_long(following)];
                self.put(following, next);
                if (next as i32 - long[0]) < WINDOW as i32 {
                    for candidate in long {
                        if self.matches(following, next, candidate) {
                            let len = self.length(next, candidate);
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
                return Some((found, next));
            }
            (at, eight) = (next, following);
        }
    }

    /// Makes a match as long as it can be, at both ends, or finds a longer one by where it ends.
    fn improve(&self, mut found: Found, emitted: usize, limit: usize) -> Found {
        let Found { at, from, len } = found;
        if len == 0 {
            found.len = 4 + same(&self.seen, at + 4, from + 4, usize::MAX);
        } else if len == MAX_LENGTH {
            found.len += same(&self.seen, at + len, from + len, usize::MAX);
        }
        let behind = at + found.len;
        if found.len < 30 && behind < limit {
            const SKIPPED: usize = 2;
            let candidate = self.long[hash_long(self.eight(behind))][0];
            let from = i64::from(candidate) - found.len as i64 + SKIPPED as i64;
            let distance = (at + SKIPPED) as i64 - from;
            if from >= 0 && distance < WINDOW as i64 && distance > 0 {
                let (at, from) = (at + SKIPPED, from as usize);
                let len = same(&self.seen, at, from, usize::MAX);
                if len > found.len {
                    found = Found { at, from, len };
                }
            }
        }
        while found.from > 0
            && found.at > emitted
            && self.seen[found.from - 1] == self.seen[found.at - 1]
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
    fn remember(&mut self, at: usize, len: usize) {
        // `at` may be past the end of the match; the places are counted from where the search goes on.
        let mut i = at - len + 1;
        if i < at - 1 {
            let eight = self.eight(i);
            self.put(eight, i);
            self.put_long(eight >> 8, i + 1);
            self.put_short(eight >> 16, i + 2);
            i += 4;
            while i < at - 1 {
                let eight = self.eight(i);
                self.put_long(eight, i);
                self.put_short(eight >> 8, i + 1);
                i += 3;
            }
        }
        self.put(self.eight(at - 1), at - 1);
    }
}

/// A match of any length as matches DEFLATE can say.
fn push_match(tokens: &mut Vec<Token>, mut len: usize, distance: usize) {
    while len > 0 {
        let part = match len {
            0..=MAX_LENGTH => len,
            // At least three bytes must be left.
            259..=261 => MAX_LENGTH - 3,
            _ => MAX_LENGTH,
        };
        tokens.push(Token::of_match(part, distance));
        len -= part;
    }
}
