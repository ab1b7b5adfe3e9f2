//! One 512-byte tar header, in any of its dialects.

use super::{BLOCK, Fault};

/// Dialect of a header, told by its magic bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// No magic: Unix V7.
    V7,
    /// POSIX ustar, also the carrier of PAX.
    Ustar,
    /// Jörg Schilling's star: ustar with a shorter prefix field.
    Star,
    /// GNU tar's own format.
    Gnu,
}

/// The fields of a header, decoded. Names are as they stand in the block, the prefix joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub format: Format,
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub typeflag: u8,
    /// The low 12 bits of the mode field.
    pub perm: u32,
    /// May be negative or beyond 32 bits in base-256; a PAX header may still overrule it.
    pub uid: i64,
    pub gid: i64,
    pub size: i64,
    pub mtime: i64,
    pub dev_major: i64,
    pub dev_minor: i64,
}

impl Header {
    /// Decodes a block that is not all zeros.
    ///
    /// # Errors
    /// [`Fault::Checksum`] if neither the unsigned nor the (historical) signed sum fits, [`Fault::Number`] for a field
    /// that is neither octal nor base-256.
    pub fn parse(block: &[u8; BLOCK]) -> Result<Self, Fault> {
        let stated = number(&block[148..156], "chksum").map_err(|_| Fault::Checksum)?;
        let (unsigned, signed) = checksums(block);
        if stated != unsigned && stated != signed {
            return Err(Fault::Checksum);
        }
        let format = Self::format(block);
        let mut name = until_nul(&block[0..100]).to_vec();
        let prefix = match format {
            Format::Ustar => until_nul(&block[345..500]),
            Format::Star => until_nul(&block[345..476]),
            Format::V7 | Format::Gnu => &[],
        };
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        // Some V7 writers leave rubbish where later formats keep device numbers.
        let typeflag = block[156];
        let device = format != Format::V7 && matches!(typeflag, b'3' | b'4');
        let dev = |range, field| {
            if device {
                number(&block[range], field)
            } else {
                Ok(0)
            }
        };
        Ok(Self {
            format,
            name,
            link: until_nul(&block[157..257]).to_vec(),
            typeflag,
            perm: (number(&block[100..108], "mode")? & 0o7777) as u32,
            uid: number(&block[108..116], "uid")?,
            gid: number(&block[116..124], "gid")?,
            size: number(&block[124..136], "size")?,
            mtime: number(&block[136..148], "mtime")?,
            dev_major: dev(329..337, "devmajor")?,
            dev_minor: dev(337..345, "devminor")?,
        })
    }

    fn format(block: &[u8; BLOCK]) -> Format {
        match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        }
    }

    /// Whether `block` could begin a tar archive: a header with a right checksum.
    pub fn looks_right(block: &[u8; BLOCK]) -> bool {
        Self::parse(block).is_ok()
    }
}

/// Sum of all bytes with the checksum field taken as spaces, of unsigned and of signed bytes.
fn checksums(block: &[u8; BLOCK]) -> (i64, i64) {
    let mut sums = (0, 0);
    for (i, &byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { byte };
        sums.0 += i64::from(byte);
        sums.1 += i64::from(byte as i8);
    }
    sums
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits padded with spaces or NULs, or GNU's base-256 (top bit of the first byte set, two's
/// complement).
pub(super) fn number(field: &[u8], name: &'static str) -> Result<i64, Fault> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        return base256(field).ok_or(Fault::Range(name));
    }
    let padding = |b: &u8| matches!(b, b' ' | 0);
    let start = field
        .iter()
        .position(|b| !padding(b))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(padding).unwrap_or(digits.len());
    if !digits[end..].iter().all(padding) {
        return Err(Fault::Number(name));
    }
    digits[..end].iter().try_fold(0i64, |n, &b| match b {
        // Twelve octal digits are 36 bits: no overflow possible.
        b'0'..=b'7' => Ok(n << 3 | i64::from(b - b'0')),
        _ => Err(Fault::Number(name)),
    })
}

fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let fill: u8 = if negative { 0xff } else { 0 };
    // The flag bit takes the sign's place in the first byte.
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let mut value = i64::from(fill as i8);
    for (i, &b) in field.iter().enumerate() {
        let b = if i == 0 { first } else { b };
        value = value.checked_mul(256)?.checked_add(i64::from(b))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases: &[(&[u8], Result<i64, Fault>)] = &[
            (b"0000644\0", Ok(0o644)),
            (b"   644 \0", Ok(0o644)),
            (b"644     ", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"        ", Ok(0)),
            (b"77777777", Ok(0o77777777)),
            (b"0000648\0", Err(Fault::Number("f"))),
            (b"-000001\0", Err(Fault::Number("f"))),
            (b"12 34\0\0\0", Err(Fault::Number("f"))),
            (b"\x80\0\0\0\0\0\0\x01", Ok(1)),
            (b"\x80\0\0\0\xff\xff\xff\xff", Ok(0xffff_ffff)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Ok(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Ok(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
            (
                b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
                Err(Fault::Range("f")),
            ),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Ok(i64::MIN)),
            (
                b"\xff\xff\xff\xff\x7f\0\0\0\0\0\0\0",
                Err(Fault::Range("f")),
            ),
            (
                b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                Err(Fault::Range("f")),
            ),
        ];
        for (field, want) in cases {
            assert_eq!(number(field, "f"), *want, "{}", field.escape_ascii());
        }
    }
}
