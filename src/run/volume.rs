//! The words of `-v`: `SRC:DST[:OPTION,…]`.

use std::path::PathBuf;

use super::error::{Error, Result};

/// What becomes of changes to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Write,
    Read,
    /// They go to an overlay of the container's own.
    Overlay,
}

/// Something of the host shown in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// As given.
    pub source: PathBuf,
    /// Absolute, in the container; not resolved yet.
    pub destination: String,
    pub access: Access,
}

impl std::str::FromStr for Volume {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        let wrong = |why: &str| Err(Error::Usage(format!("-v {word}: {why}")));
        let mut parts = word.split(':');
        let (source, destination, options) =
            match (parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some(source), Some(destination), options, None) => (source, destination, options),
                _ => return wrong("want SRC:DST or SRC:DST:ro or SRC:DST:O"),
            };
        if source.is_empty() {
            return wrong("SRC is empty");
        }
        if !source.starts_with(['/', '.']) {
            return wrong(&format!(
                "volumes have no names here; for a directory say ./{source}"
            ));
        }
        if !destination.starts_with('/') {
            return wrong("DST must be absolute");
        }
        let mut access = Access::Write;
        for option in options.unwrap_or_default().split(',') {
            access = match option {
                // The labels of SELinux, which other machines' habits put here, mean nothing without it.
                "" | "z" | "Z" | "rbind" => access,
                "rw" => Access::Write,
                "ro" => Access::Read,
                "O" => Access::Overlay,
                other => return wrong(&format!("no option {other:?}; there are ro, rw and O")),
            };
        }
        Ok(Self {
            source: source.into(),
            destination: destination.to_owned(),
            access,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (word, source, destination, access) in [
            ("/a:/b", "/a", "/b", Access::Write),
            ("./a:/b:ro", "./a", "/b", Access::Read),
            ("..:/b:rw,Z", "..", "/b", Access::Write),
            ("/a:/b:O", "/a", "/b", Access::Overlay),
        ] {
            let expected = Volume {
                source: source.into(),
                destination: destination.into(),
                access,
            };
            assert_eq!(word.parse::<Volume>().expect(word), expected);
        }
        for word in [
            "",
            "/a",
            ":/b",
            "a:/b",
            "/a:b",
            "/a:",
            "/a:/b:wo",
            "/a:/b:ro:rw",
        ] {
            assert!(word.parse::<Volume>().is_err(), "{word}");
        }
    }
}
