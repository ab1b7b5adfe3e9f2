//! Sparse files: the maps of old GNU tar and of PAX 0.0, 0.1 and 1.0 come out as one list of extents.

use super::header::number;
use super::pax::decimal;
use super::{BLOCK, Fault};

/// Most extents one file may have: 16 MiB of memory, a file fragmented beyond any that tar programs write.
pub const MAX_EXTENTS: usize = 1 << 20;

/// A run of data inside a sparse file; between extents are holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// Checks that extents ascend without overlap, stay inside the file, and take up exactly the `stored` bytes.
pub fn validate(extents: &[Extent], real_size: u64, stored: u64) -> Result<(), Fault> {
    let (mut end, mut sum) = (0u64, 0u64);
    for extent in extents {
        if extent.offset < end {
            return Err(Fault::Sparse("extents overlap or are out of order"));
        }
        let next = extent.offset.checked_add(extent.len);
        end = next
            .filter(|&next| next <= real_size)
            .ok_or(Fault::Sparse("an extent ends beyond the file"))?;
        // No overflow: the extents lie apart inside real_size.
        sum += extent.len;
    }
    if sum != stored {
        return Err(Fault::Sparse(
            "the extents do not add up to the stored size",
        ));
    }
    Ok(())
}

/// The part of an old GNU sparse header (type `S`) that stands in the main header block.
pub struct OldGnu {
    pub extents: Vec<Extent>,
    pub real_size: u64,
    /// Another block of extents follows.
    pub extended: bool,
}

impl OldGnu {
    pub fn parse(block: &[u8; BLOCK]) -> Result<Self, Fault> {
        let mut this = Self {
            extents: Vec::new(),
            real_size: unsigned(&block[483..495])?,
            extended: block[482] != 0,
        };
        this.take_entries(&block[386..482])?;
        Ok(this)
    }

    /// Takes one extension block.
    pub fn extend(&mut self, block: &[u8; BLOCK]) -> Result<(), Fault> {
        self.extended = block[504] != 0;
        self.take_entries(&block[..504])
    }

    fn take_entries(&mut self, entries: &[u8]) -> Result<(), Fault> {
        for entry in entries.chunks_exact(24) {
            // An unused slot ends the list.
            if entry[0] == 0 {
                break;
            }
            if self.extents.len() >= MAX_EXTENTS {
                return Err(Fault::Sparse("too many extents"));
            }
            let (offset, len) = (unsigned(&entry[..12])?, unsigned(&entry[12..])?);
            self.extents.push(Extent { offset, len });
        }
        Ok(())
    }
}

fn unsigned(field: &[u8]) -> Result<u64, Fault> {
    let n = number(field, "sparse map")?;
    u64::try_from(n).map_err(|_| Fault::Range("sparse map"))
}

/// Parser of the PAX 1.0 map, which stands in front of the file's data: decimal numbers, a newline after each: how many
/// extents, then offset and length of each; padded with NULs to a whole block. Fed one block at a time.
#[derive(Default)]
pub struct Map10 {
    count: Option<u64>,
    digits: Vec<u8>,
    offset: Option<u64>,
    extents: Vec<Extent>,
}

impl Map10 {
    /// Takes the next block; the finished map once this was the last one.
    pub fn take(&mut self, block: &[u8; BLOCK]) -> Result<Option<Vec<Extent>>, Fault> {
        for &byte in block {
            if self.is_complete() {
                break;
            }
            if byte == b'\n' {
                let number = decimal(&self.digits).ok_or(Fault::Sparse("not a number"))?;
                self.digits.clear();
                self.take_number(number)?;
            } else if self.digits.len() < 20 {
                self.digits.push(byte);
            } else {
                return Err(Fault::Sparse("a number is too long"));
            }
        }
        Ok(self
            .is_complete()
            .then(|| std::mem::take(&mut self.extents)))
    }

    fn is_complete(&self) -> bool {
        self.count == Some(self.extents.len() as u64)
    }

    fn take_number(&mut self, number: u64) -> Result<(), Fault> {
        match (self.count, self.offset.take()) {
            (None, _) if number > MAX_EXTENTS as u64 => Err(Fault::Sparse("too many extents")),
            (None, _) => {
                self.count = Some(number);
                Ok(())
            }
            (Some(_), None) => {
                self.offset = Some(number);
                Ok(())
            }
            (Some(_), Some(offset)) => {
                self.extents.push(Extent {
                    offset,
                    len: number,
                });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
        list.iter()
            .map(|&(offset, len)| Extent { offset, len })
            .collect()
    }

    #[test]
    fn maps_are_checked() {
        type Case = (&'static [(u64, u64)], u64, u64, bool);
        let cases: &[Case] = &[
            (&[], 0, 0, true),
            (&[], 1 << 40, 0, true),
            (&[(0, 512), (1024, 512), (4096, 0)], 4096, 1024, true),
            (&[(0, 512), (512, 512)], 1024, 1024, true),
            (&[(0, 512), (511, 1)], 1024, 513, false),
            (&[(512, 1), (0, 1)], 1024, 2, false),
            (&[(0, 512)], 100, 512, false),
            (&[(0, 512)], 512, 100, false),
            (&[(u64::MAX, 2)], u64::MAX, 2, false),
        ];
        for &(map, real, stored, ok) in cases {
            assert_eq!(
                validate(&extents(map), real, stored).is_ok(),
                ok,
                "{map:?} {real} {stored}"
            );
        }
    }

    #[test]
    fn map_1_0_over_several_blocks() {
        let mut text = String::from("100\n");
        for i in 0..100u64 {
            text += &format!("{}\n{}\n", i * 1_000_000, 512);
        }
        let mut bytes = text.into_bytes();
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        let mut map = Map10::default();
        let blocks: Vec<_> = bytes.as_chunks::<BLOCK>().0.to_vec();
        for (i, block) in blocks.iter().enumerate() {
            let done = map.take(block).unwrap();
            assert_eq!(done.is_some(), i + 1 == blocks.len());
            if let Some(extents) = done {
                assert_eq!(extents.len(), 100);
                assert_eq!(
                    extents[99],
                    Extent {
                        offset: 99_000_000,
                        len: 512
                    }
                );
            }
        }
    }

    #[test]
    fn hostile_1_0_maps() {
        for text in [
            "1000000000\n",
            "-1\n",
            "\n",
            "1\nx\n",
            "99999999999999999999999\n",
            "1\n18446744073709551616\n1\n",
        ] {
            let mut block = [0; BLOCK];
            block[..text.len()].copy_from_slice(text.as_bytes());
            assert!(Map10::default().take(&block).is_err(), "{text:?}");
        }
    }
}
