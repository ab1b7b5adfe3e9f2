//! Names of containers: which a person may give, and which one gets that was given none.

use super::error::{Error, Result};

const QUALITIES: [&str; 32] = [
    "amber", "brisk", "calm", "clear", "dapper", "early", "fair", "gentle", "green", "hidden",
    "high", "jolly", "keen", "late", "light", "lucky", "mild", "neat", "new", "plain", "quick",
    "quiet", "ready", "round", "sharp", "silver", "sound", "steady", "sunny", "tidy", "warm",
    "wide",
];
const THINGS: [&str; 32] = [
    "alder", "badger", "beech", "birch", "brook", "cedar", "crane", "dune", "falcon", "fern",
    "finch", "fjord", "glade", "hare", "harbor", "hazel", "heron", "island", "juniper", "lark",
    "linden", "maple", "meadow", "otter", "pine", "plover", "reed", "river", "rowan", "swift",
    "thistle", "willow",
];

/// Docker's rule.
pub fn check(name: &str) -> Result<()> {
    let mut bytes = name.bytes();
    let good = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.len() <= 255
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if good {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{name:?} cannot be a container's name: letters, digits, and behind the first _ . - may be in it"
    )))
}

/// Two words made of the id, or the id too when these are taken.
pub fn invent(id: &str, taken: impl Fn(&str) -> bool) -> String {
    let number = usize::from_str_radix(&id[..4], 16).unwrap_or(0);
    let name = format!(
        "{}_{}",
        QUALITIES[number % QUALITIES.len()],
        THINGS[number / QUALITIES.len() % THINGS.len()]
    );
    if taken(&name) {
        format!("{name}_{id}")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["w", "ab", "web-1", "0.x_y", &"a".repeat(255)] {
            check(good).expect(good);
        }
        for bad in ["", "-a", "_a", "a/b", "a b", "ä1", "..", &"a".repeat(256)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn invented_names_are_names_and_not_taken() {
        for id in ["000000000000", "ffffffffffff", "1234567890ab"] {
            let name = invent(id, |_| false);
            check(&name).expect(&name);
            let other = invent(id, |taken| taken == name);
            check(&other).expect(&other);
            assert_ne!(name, other);
        }
    }
}
