//! Reading JSON that is JSON throughout, whatever part of it we have a use for.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// Reads a document. Parts that `T` passes over are checked, too: text that is no UTF-8, half a surrogate pair, a number
/// beyond all bounds would get into the store otherwise, and whoever reads the whole document would fail on it for ever.
pub fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
    serde_json::from_slice::<Valid>(bytes)?;
    serde_json::from_slice(bytes)
}

/// Any value, looked at and not kept: a document of 8 MiB may hold millions of them.
struct Valid;

impl<'de> Deserialize<'de> for Valid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Valid {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self, A::Error> {
        while list.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: an image whose configuration is no JSON where we do not look was taken, and `ovl images` failed
    /// ever after.
    #[test]
    fn what_is_passed_over_is_checked() {
        #[derive(Deserialize)]
        struct Known {
            known: u8,
        }
        let with = |odd: &[u8]| [br#"{"odd":"#, odd, br#","known":7}"#].concat();
        for good in [
            &b"null"[..],
            b"true",
            b"-1",
            b"1e300",
            b"[{}, \"\\ud83d\\ude00\"]",
            b"{\"a\":[0.5]}",
        ] {
            let document = with(good);
            assert_eq!(parse::<Known>(&document).unwrap().known, 7);
        }
        let deep = [b"[".repeat(200), b"]".repeat(200)].concat();
        for bad in [
            &b"\"\xff\""[..],
            b"\"\\ud800\"",
            b"1e999",
            b"{\"\xff\":1}",
            b"[1e999]",
            b"01",
            &deep,
        ] {
            let document = with(bad);
            assert!(parse::<Known>(&document).is_err(), "{}", bad.escape_ascii());
        }
    }
}
