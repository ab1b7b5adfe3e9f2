//! PAX extended headers: `LENGTH KEY=VALUE\n` records.
//!
//! Parsing is strict: a record that is not exactly of that form ends the import, for a reader that skips what it does
//! not understand can be made to see other entries than its neighbour sees.

use crate::meta::Timestamp;

use super::Fault;
use super::sparse::{Extent, MAX_EXTENTS};

/// What a per-file PAX header says. Absent fields leave the tar header's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaxHeader {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<Timestamp>,
    /// Extended attributes of both spellings, decoded, in order; later ones of a name replace earlier ones.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `SCHILY.acl.access`, text form.
    pub acl_access: Option<Vec<u8>>,
    /// `SCHILY.acl.default`, text form.
    pub acl_default: Option<Vec<u8>>,
    pub sparse: SparseKeys,
}

/// The `GNU.sparse.*` keys of a PAX header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SparseKeys {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` (1.0) or `GNU.sparse.size` (0.0, 0.1): the file's size with its holes.
    pub real_size: Option<u64>,
    /// The map of formats 0.0 and 0.1.
    pub map: Option<Vec<Extent>>,
    /// Format 0.0: an offset that still waits for its length.
    pending_offset: Option<u64>,
}

impl PaxHeader {
    /// Parses the body of an `x` header.
    pub fn parse(body: &[u8]) -> Result<Self, Fault> {
        let mut header = Self::default();
        for record in Records(body) {
            let (key, value) = record?;
            header.take(key, value)?;
        }
        if header.sparse.pending_offset.is_some() {
            return Err(Fault::Sparse("an offset without a length"));
        }
        Ok(header)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let bad = || Fault::PaxValue(key.escape_ascii().to_string());
        let int = |value| decimal(value).ok_or_else(bad);
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.set_xattr(name.to_vec(), value.to_vec());
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let name = percent_decode(name).ok_or_else(bad)?;
            self.set_xattr(name, base64_decode(value).ok_or_else(bad)?);
            return Ok(());
        }
        // An empty value takes the attribute back (POSIX), leaving the header's own.
        let set = !value.is_empty();
        match key {
            b"path" => self.path = set.then(|| text(value)).transpose()?,
            b"linkpath" => self.link = set.then(|| text(value)).transpose()?,
            b"size" => self.size = set.then(|| int(value)).transpose()?,
            b"uid" => self.uid = set.then(|| id(value, "uid")).transpose()?,
            b"gid" => self.gid = set.then(|| id(value, "gid")).transpose()?,
            b"mtime" => self.mtime = set.then(|| time(value).ok_or_else(bad)).transpose()?,
            b"SCHILY.acl.access" => self.acl_access = set.then(|| value.to_vec()),
            b"SCHILY.acl.default" => self.acl_default = set.then(|| value.to_vec()),
            b"GNU.sparse.major" => self.sparse.major = Some(int(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(int(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(text(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(int(value)?);
            }
            b"GNU.sparse.offset" => {
                self.sparse.begin(int(value)?)?;
            }
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse.pending_offset.take();
                let offset = offset.ok_or(Fault::Sparse("a length without an offset"))?;
                self.sparse.push(offset, int(value)?)?;
            }
            b"GNU.sparse.map" => self.sparse.take_map(value)?,
            _ => {}
        }
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        match self.xattrs.iter_mut().find(|(have, _)| *have == name) {
            Some((_, old)) => *old = value,
            None => self.xattrs.push((name, value)),
        }
    }
}

impl SparseKeys {
    /// Format 0.0: an offset, whose length comes in a record of its own.
    fn begin(&mut self, offset: u64) -> Result<(), Fault> {
        match self.pending_offset.replace(offset) {
            Some(_) => Err(Fault::Sparse("two offsets without a length between them")),
            None => Ok(()),
        }
    }

    fn push(&mut self, offset: u64, len: u64) -> Result<(), Fault> {
        let map = self.map.get_or_insert_default();
        if map.len() >= MAX_EXTENTS {
            return Err(Fault::Sparse("too many extents"));
        }
        map.push(Extent { offset, len });
        Ok(())
    }

    /// Format 0.1: `offset,length,offset,length…`.
    fn take_map(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.map = Some(Vec::new());
        if value.is_empty() {
            return Ok(());
        }
        let bad = Fault::Sparse("GNU.sparse.map is not a list of numbers");
        let mut numbers = value.split(|&b| b == b',').map(decimal);
        while let Some(offset) = numbers.next() {
            match (offset, numbers.next().flatten()) {
                (Some(offset), Some(len)) => self.push(offset, len)?,
                _ => return Err(bad),
            }
        }
        Ok(())
    }
}

/// Checks a global (`g`) header. Its values are not applied to entries, as no container tool applies them; one that
/// would change where entries are or where the next header stands is refused.
pub fn parse_global(body: &[u8]) -> Result<(), Fault> {
    for record in Records(body) {
        let (key, _) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err(Fault::GlobalOverride(key.escape_ascii().to_string()));
        }
    }
    Ok(())
}

/// Iterates over the records of a body.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let result = split_record(self.0);
        self.0 = result.as_ref().map_or(&[], |(_, _, rest)| rest);
        Some(result.map(|(key, value, _)| (key, value)))
    }
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn split_record(body: &[u8]) -> Result<Record<'_>, Fault> {
    let space = body.iter().take(21).position(|&b| b == b' ');
    let space = space.ok_or(Fault::Pax("no length"))?;
    let len = decimal(&body[..space]).ok_or(Fault::Pax("the length is not a number"))?;
    let len = usize::try_from(len).ok().filter(|&len| len <= body.len());
    let len = len.ok_or(Fault::Pax("the length runs past the header"))?;
    let record = body
        .get(space + 1..len)
        .ok_or(Fault::Pax("the length is too small"))?;
    let record = record
        .strip_suffix(b"\n")
        .ok_or(Fault::Pax("no newline at its end"))?;
    let equals = record.iter().position(|&b| b == b'=');
    let equals = equals.ok_or(Fault::Pax("no equals sign"))?;
    let key = &record[..equals];
    if key.is_empty() || key.contains(&0) || std::str::from_utf8(key).is_err() {
        return Err(Fault::Pax("the key is empty or not UTF-8"));
    }
    Ok((key, &record[equals + 1..], &body[len..]))
}

/// A plain decimal number; no sign, no space.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn id(value: &[u8], what: &'static str) -> Result<u32, Fault> {
    let id = decimal(value).ok_or_else(|| Fault::PaxValue(what.to_owned()))?;
    u32::try_from(id).map_err(|_| Fault::Range(what))
}

fn text(value: &[u8]) -> Result<Vec<u8>, Fault> {
    if value.contains(&0) {
        return Err(Fault::Pax("a name with a NUL byte"));
    }
    Ok(value.to_vec())
}

/// `[-]SECONDS[.FRACTION]`; digits beyond nanoseconds round towards the past, as a file system would.
fn time(value: &[u8]) -> Option<Timestamp> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|&b| b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &[][..]),
    };
    let secs = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let place = |i| fraction.get(i).map_or(0, |b: &u8| u32::from(b - b'0'));
    let nanos = (0..9).fold(0, |n, i| n * 10 + place(i));
    if !negative {
        return Some(Timestamp::new(secs, nanos));
    }
    let rest = fraction.iter().skip(9).any(|&b| b != b'0');
    match nanos + u32::from(rest) {
        0 => Some(Timestamp::new(-secs, 0)),
        back => Some(Timestamp::new(
            (-secs).checked_sub(1)?,
            1_000_000_000 - back,
        )),
    }
}

fn percent_decode(name: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name.iter().copied();
    while let Some(b) = rest.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        out.push((high << 4 | low) as u8);
    }
    Some(out)
}

/// Base64 with or without padding (libarchive leaves it out).
fn base64_decode(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|&b| b != b'=').map_or(0, |i| i + 1);
    let digits = &text[..end];
    if digits.len() % 4 == 1 || text.len() - end > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.chunks(4) {
        let mut bits = 0u32;
        for &b in group {
            let six = match b {
                b'A'..=b'Z' => b - b'A',
                b'a'..=b'z' => b - b'a' + 26,
                b'0'..=b'9' => b - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn well_formed_records() {
        // A newline in a value ends nothing: only the length counts.
        let body = b"30 mtime=1350244992.023960108\n11 path=a/\n22 SCHILY.xattr.u=a\nb\n";
        let header = PaxHeader::parse(body).unwrap();
        assert_eq!(
            header.mtime,
            Some(Timestamp::new(1_350_244_992, 23_960_108))
        );
        assert_eq!(header.path.as_deref(), Some(b"a/".as_slice()));
        assert_eq!(header.xattrs, [(b"u".to_vec(), b"a\nb".to_vec())]);
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases: &[&[u8]] = &[
            b"x",
            b"11path=ab\n",
            b" path=ab\n",
            b"-1 path=ab\n",
            b"+11 path=ab\n",
            b"11 path=abc",
            b"12 path=abc\n1",
            b"99 path=abc\n",
            b"3 path=abc\n",
            b"0 \n",
            b"1 ",
            b"18446744073709551616 path=a\n",
            b"18446744073709551615 path=a\n",
            b"00000000000000000000000012 path=abc\n",
            b"8 path\n\n",
            b"5 =a\n",
            b"9 \xff\xfe=ab\n",
            b"10 si\0e=1\n",
            b"11 size=-1\n",
            b"11 size=0x1\n",
            b"28 size=99999999999999999999\n",
            b"10 uid=-1\n",
            b"18 uid=4294967296\n",
            b"12 path=a\0b\n",
            b"11 mtime=.\n",
            b"12 mtime=1e\n",
            b"27 GNU.sparse.numbytes=512\n",
            b"23 GNU.sparse.offset=0\n",
            b"21 GNU.sparse.map=1,\n",
            b"25 LIBARCHIVE.xattr.a=\xff\xff\n",
        ];
        for case in cases {
            assert!(PaxHeader::parse(case).is_err(), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn times() {
        let cases: &[(&str, Option<(i64, u32)>)] = &[
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-1.0000000001", Some((-2, 999_999_999))),
            ("-0.9999999999", Some((-1, 0))),
            ("9223372036854775807", Some((i64::MAX, 0))),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("1.5.5", None),
            ("1,5", None),
        ];
        for (text, want) in cases {
            let want = want.map(|(secs, nanos)| Timestamp::new(secs, nanos));
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn libarchive_xattrs() {
        for (name, value, want_name, want) in [
            ("user.a", "YWJj", "user.a", Some(&b"abc"[..])),
            ("user.%41%3d", "YQ", "user.A=", Some(b"a")),
            ("user.a", "YQ==", "user.a", Some(b"a")),
            ("user.a", "", "user.a", Some(b"")),
            ("user.a", "Y", "", None),
            ("user.%4", "YQ", "", None),
        ] {
            let record = format!(" LIBARCHIVE.xattr.{name}={value}\n");
            let record = format!("{}{record}", record.len() + 2);
            let got = PaxHeader::parse(record.as_bytes());
            match want {
                Some(want) => {
                    assert_eq!(got.unwrap().xattrs, [(want_name.into(), want.to_vec())]);
                }
                None => assert!(got.is_err(), "{record}"),
            }
        }
    }

    #[test]
    fn global_headers() {
        assert_eq!(parse_global(b"15 comment=abc\n"), Ok(()));
        assert!(parse_global(b"11 mtime=12\n").is_err());
        assert_eq!(parse_global(b"12 mtime=12\n"), Ok(()));
        for body in [&b"10 size=1\n"[..], b"10 path=a\n", b"14 linkpath=a\n"] {
            assert!(matches!(parse_global(body), Err(Fault::GlobalOverride(_))));
        }
    }
}
