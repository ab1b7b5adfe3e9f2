//! Bits as DEFLATE orders them: the first one is the lowest of its byte.

/// Reads bits of a slice. Beyond the end come zeros; [`BitReader::overrun`] tells.
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

    fn refill(&mut self) {
        if let Some(eight) = self.bytes.get(self.next..self.next + 8)
            && let Ok(eight) = eight.try_into()
        {
            self.held |= u64::from_le_bytes(eight) << self.count;
            let whole = (63 - self.count) / 8;
            self.next += whole as usize;
            self.count += whole * 8;
            return;
        }
        while self.count <= 56 {
            let byte = self.bytes.get(self.next).copied().unwrap_or(0);
            self.held |= u64::from(byte) << self.count;
            self.next += 1;
            self.count += 8;
        }
    }

    /// At least 56 bits, without taking them.
    pub fn peek(&mut self) -> u64 {
        if self.count < 56 {
            self.refill();
        }
        self.held
    }

    /// Drops `n` bits that were seen by [`Self::peek`].
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
    pub fn position(&self) -> usize {
        self.next * 8 - self.count as usize
    }

    /// Whether bits were taken that are not there.
    pub fn overrun(&self) -> bool {
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
    /// Adds the low `n` bits of `bits`, at most 48; those above must be zero.
    pub fn put(&mut self, bits: u64, n: u32) {
        self.held |= bits << self.count;
        self.count += n;
        // At most 7 bits stay, so that 48 more always fit.
        let whole = (self.count / 8) as usize;
        if whole > 0 {
            // All eight, of which the complete ones stay: one store instead of a copy of any length.
            let len = self.bytes.len() + whole;
            self.bytes.extend_from_slice(&self.held.to_le_bytes());
            self.bytes.truncate(len);
            self.held = self.held.checked_shr(whole as u32 * 8).unwrap_or(0);
            self.count %= 8;
        }
    }

    /// Zeros up to the next whole byte.
    pub fn align(&mut self) {
        if self.count > 0 {
            self.put(0, 8 - self.count);
        }
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
