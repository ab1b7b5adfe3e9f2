//! A node's extended attributes as one blob: per attribute, in name order, varint length and bytes of name and value.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::varint::{self, Cursor};
use super::{Error, Result};

/// `XATTR_NAME_MAX` of Linux.
const NAME_MAX: usize = 255;
/// All names and values of one node, bytes.
const TOTAL_MAX: usize = 4 << 20;

/// `None` for no attributes. Of two attributes with one name the later counts.
pub(super) fn encode(path: &OsStr, xattrs: &[(OsString, Vec<u8>)]) -> Result<Option<Vec<u8>>> {
    if xattrs.is_empty() {
        return Ok(None);
    }
    let sorted: std::collections::BTreeMap<&[u8], &[u8]> = xattrs
        .iter()
        .map(|(name, value)| (name.as_bytes(), value.as_slice()))
        .collect();
    let mut out = Vec::new();
    for (name, value) in sorted {
        if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
            return Err(Error::entry(
                path,
                "the name of an extended attribute is empty, too long or holds a NUL",
            ));
        }
        varint::put(&mut out, name.len() as u64);
        out.extend_from_slice(name);
        varint::put(&mut out, value.len() as u64);
        out.extend_from_slice(value);
        if out.len() > TOTAL_MAX {
            return Err(Error::entry(path, "more than 4 MiB of extended attributes"));
        }
    }
    Ok(Some(out))
}

/// Reads a blob that may be damaged or crafted.
pub(super) fn decode(blob: &[u8]) -> Result<Vec<(OsString, Vec<u8>)>> {
    let parse = || {
        let mut cursor = Cursor::new(blob);
        let mut list: Vec<(OsString, Vec<u8>)> = Vec::new();
        while !cursor.is_empty() {
            let len = usize::try_from(cursor.unsigned()?).ok()?;
            let name = cursor.bytes(len)?;
            let len = usize::try_from(cursor.unsigned()?).ok()?;
            let value = cursor.bytes(len)?;
            let ordered = list.last().is_none_or(|(last, _)| last.as_bytes() < name);
            if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) || !ordered {
                return None;
            }
            list.push((OsString::from_vec(name.to_vec()), value.to_vec()));
        }
        Some(list)
    };
    parse().ok_or_else(|| Error::Corrupt("a node's extended attributes make no sense".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(map in prop::collection::btree_map(
            prop::collection::vec(1..=255u8, 1..40), prop::collection::vec(any::<u8>(), 0..300), 0..6,
        )) {
            let list: Vec<_> = map.into_iter().map(|(name, value)| (OsString::from_vec(name), value)).collect();
            let blob = encode(OsStr::new("p"), &list).unwrap().unwrap_or_default();
            prop_assert_eq!(decode(&blob).unwrap(), list);
        }

        #[test]
        fn any_bytes_are_refused_or_read(bytes: Vec<u8>) {
            if let Ok(list) = decode(&bytes) {
                prop_assert_eq!(encode(OsStr::new("p"), &list).unwrap().unwrap_or_default(), bytes);
            }
        }
    }

    #[test]
    fn names_are_checked_and_the_later_value_counts() {
        let pair = |name: &str, value: &[u8]| (OsString::from(name), value.to_vec());
        for name in ["", "a\0b", &"x".repeat(256)] {
            assert!(
                encode(OsStr::new("p"), &[pair(name, b"")]).is_err(),
                "{name:?}"
            );
        }
        assert!(encode(OsStr::new("p"), &[pair("a", &vec![0; TOTAL_MAX])]).is_err());
        let blob = encode(
            OsStr::new("p"),
            &[pair("b", b"1"), pair("a", b"2"), pair("b", b"3")],
        )
        .unwrap()
        .unwrap();
        assert_eq!(decode(&blob).unwrap(), [pair("a", b"2"), pair("b", b"3")]);
    }
}
