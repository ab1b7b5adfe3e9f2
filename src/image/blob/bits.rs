//! Bits as DEFLATE orders them: the first one is the lowest of its byte.

/// Reads bits of a slice. Beyond the end come zeros; [`BitReader::position`] tells.
pub struct BitReader<'a> {
    bytes: &'a [u8],
    /// Next byte that is not in `held` yet.
    next: usize,
    held: u64,
    count: u32,
}

impl<'a> BitReader<'a> {
    /// Starts `bit` bits into `bytes`.
    pub fn at(bytes: &'a [u8], bit: usize) -> Self {
        let mut reader = Self {
            bytes,
            next: bit / 8,
            held: 0,
            count: 0,
        };
        reader.take((bit % 8) as u32);
        reader
    }

    #[inline(always)]
    fn eight(&self) -> Option<u64> {
        let rest = self.bytes.get(self.next..)?;
        Some(u64::from_le_bytes(*rest.first_chunk()?))
    }

    #[inline(always)]
    fn refill(&mut self) {
        if let Some(eight) = self.eight() {
            self.held |= eight << self.count;
            self.next += ((63 - self.count) / 8) as usize;
            self.count |= 56;
            return;
        }
        self.refill_slowly();
    }

    #[cold]
    fn refill_slowly(&mut self) {
        // What a refill of eight bytes has left above is read again.
        self.held &= (1 << self.count) - 1;
        while self.count < 56 {
            let byte = self.bytes.get(self.next).copied().unwrap_or(0);
            self.held |= u64::from(byte) << self.count;
            self.next += 1;
            self.count += 8;
        }
    }

    /// At least 56 bits, without taking them.
    #[inline(always)]
    pub fn peek(&mut self) -> u64 {
        if self.count < 56 {
            self.refill();
        }
        self.held
    }

    /// The bits at hand: at least 56 less those that were taken since [`Self::peek`].
    #[inline(always)]
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Drops `n` bits that were seen by [`Self::peek`].
    #[inline(always)]
    pub fn skip(&mut self, n: u32) {
        self.held >>= n;
        self.count -= n;
    }

    /// The next `n` bits, at most 32.
    pub fn take(&mut self, n: u32) -> u32 {
        let bits = self.peek() & ((1 << n) - 1);
        self.skip(n);
        bits as u32
    }

    /// How many bits into the slice it stands.
    #[inline(always)]
    pub fn position(&self) -> usize {
        self.next * 8 - self.count as usize
    }

    /// Whether bits were taken that are not there.
    #[cfg(test)]
    fn overrun(&self) -> bool {
        self.position() > self.bytes.len() * 8
    }
}

/// Writes bits; whole bytes come out as they are complete.
#[derive(Default)]
pub struct BitWriter {
    pub bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl BitWriter {
    /// One that goes on with the low `count` bits, at most 7, of `held`.
    pub fn after(held: u8, count: u32) -> Self {
        Self {
            bytes: Vec::new(),
            held: u64::from(held) & ((1 << count) - 1),
            count,
        }
    }

    /// Adds the low `n` bits of `bits`, at most 48; those above must be zero.
    #[inline(always)]
    pub fn put(&mut self, bits: u64, n: u32) {
        self.push(bits, n);
        self.flush();
    }

    /// The same, but at most 48 bits in all until [`Self::flush`].
    #[inline(always)]
    pub fn push(&mut self, bits: u64, n: u32) {
        self.held |= bits << self.count;
        self.count += n;
    }

    #[inline(always)]
    pub fn flush(&mut self) {
        // At most 7 bits stay, so that 48 more always fit.
        let whole = (self.count / 8) as usize;
        // All eight, of which the complete ones stay: one store instead of a copy of any length.
        let len = self.bytes.len() + whole;
        self.bytes.extend_from_slice(&self.held.to_le_bytes());
        self.bytes.truncate(len);
        self.held >>= whole * 8;
        self.count %= 8;
    }

    /// Zeros up to the next whole byte.
    pub fn align(&mut self) {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
    }

    /// Bits of a byte that is not complete, and how many.
    pub fn pending(&self) -> (u8, u32) {
        (self.held as u8, self.count)
    }

    /// Forgets the bits of a byte that is not complete.
    pub fn drop_pending(&mut self) {
        (self.held, self.count) = (0, 0);
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(items in prop::collection::vec((any::<u32>(), 0..=32u32), 0..200), skip in 0..9usize) {
            let mut writer = BitWriter::default();
            (0..skip).for_each(|_| writer.put(1, 1));
            for (bits, n) in &items {
                writer.put(u64::from(*bits) & ((1 << n) - 1), *n);
            }
            let bits = skip + items.iter().map(|(_, n)| *n as usize).sum::<usize>();
            writer.align();
            prop_assert_eq!(writer.bytes.len(), bits.div_ceil(8));
            let mut reader = BitReader::at(&writer.bytes, skip);
            for (bits, n) in &items {
                prop_assert_eq!(u64::from(reader.take(*n)), u64::from(*bits) & ((1 << n) - 1));
            }
            prop_assert_eq!(reader.position(), bits);
            prop_assert!(!reader.overrun());
            reader.take(8);
            prop_assert!(reader.overrun() || bits % 8 == 0 && writer.bytes.len() * 8 == bits + 8 || reader.position() > bits);
        }
    }
}
