//! Where images come from: `docker-archive:PATH`, `oci-archive:PATH`, `oci:PATH`, `skopeo-dir:PATH`, `rootfs:PATH`,
//! `dir:PATH`, a bare path, or `-`.
//!
//! A transport only narrows what the content may be; the content itself is always looked at, names and suffixes never.
//! `docker-archive:`, `oci-archive:` and `oci:` take a `:NAME` after the path (skopeo's way) to choose one image.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Error, Result};

/// What the source must turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Whatever the content says.
    Auto,
    DockerArchive,
    OciArchive,
    OciLayout,
    /// The tar of a root file system, or a directory that is one, even if it looks like an archive of images.
    Rootfs,
    /// A directory of the host as a root file system; if `skopeo copy` wrote an image there, that image.
    Directory,
    /// A directory that `skopeo copy` wrote to its `dir:`.
    SkopeoDir,
}

impl Transport {
    /// Whether only a directory can be what it says.
    pub(super) fn is_directory(self) -> bool {
        matches!(self, Self::OciLayout | Self::Directory | Self::SkopeoDir)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Path(PathBuf),
    /// Standard input, read once from front to back.
    Stdin,
}

/// A place to import from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub transport: Transport,
    pub location: Location,
    /// Takes only the image of this name (or its ref name) from an archive of several.
    pub select: Option<String>,
}

impl Source {
    /// Parses what the user typed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for transports we know of but do not read, [`Error::Usage`] for an empty path.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let bytes = text.as_bytes();
        for (prefix, transport, selectable) in [
            (&b"docker-archive:"[..], Transport::DockerArchive, true),
            (b"oci-archive:", Transport::OciArchive, true),
            (b"oci:", Transport::OciLayout, true),
            (b"rootfs:", Transport::Rootfs, false),
            (b"dir:", Transport::Directory, false),
            (b"skopeo-dir:", Transport::SkopeoDir, false),
        ] {
            if let Some(rest) = bytes.strip_prefix(prefix) {
                let (path, select) = if selectable {
                    split_selector(rest)
                } else {
                    (rest, None)
                };
                return Self::new(transport, path, select);
            }
        }
        for prefix in ["docker://", "docker-daemon:", "containers-storage:"] {
            if bytes.starts_with(prefix.as_bytes()) {
                let reason = "this transport is not read; save the image to an archive first (skopeo copy, docker save)";
                return Err(Error::Unsupported {
                    what: text.to_string_lossy().into_owned(),
                    reason: reason.to_owned(),
                });
            }
        }
        Self::new(Transport::Auto, bytes, None)
    }

    fn new(transport: Transport, path: &[u8], select: Option<String>) -> Result<Self> {
        let location = match path {
            b"" => {
                return Err(Error::Usage(
                    "the path of the image archive is empty".to_owned(),
                ));
            }
            b"-" if !transport.is_directory() => Location::Stdin,
            path => Location::Path(OsString::from_vec(path.to_vec()).into()),
        };
        Ok(Self {
            transport,
            location,
            select,
        })
    }

    /// For messages.
    pub(super) fn display(&self) -> String {
        match &self.location {
            Location::Path(path) => path.display().to_string(),
            Location::Stdin => "standard input".to_owned(),
        }
    }
}

/// Splits `PATH:NAME` at the first colon, unless the whole is a path that exists.
fn split_selector(rest: &[u8]) -> (&[u8], Option<String>) {
    let whole = Path::new(OsStr::from_bytes(rest));
    if whole.symlink_metadata().is_ok() {
        return (rest, None);
    }
    match rest.iter().position(|&b| b == b':') {
        Some(colon) if colon + 1 < rest.len() => (
            &rest[..colon],
            Some(String::from_utf8_lossy(&rest[colon + 1..]).into_owned()),
        ),
        _ => (rest, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports() {
        let parse = |text: &str| Source::parse(OsStr::new(text));
        let path = |p: &str| Location::Path(p.into());
        for (text, transport, location, select) in [
            ("a.tar", Transport::Auto, path("a.tar"), None),
            ("-", Transport::Auto, Location::Stdin, None),
            (
                "docker-archive:-",
                Transport::DockerArchive,
                Location::Stdin,
                None,
            ),
            (
                "docker-archive:a.tar:app:1",
                Transport::DockerArchive,
                path("a.tar"),
                Some("app:1"),
            ),
            ("oci:dir:v1", Transport::OciLayout, path("dir"), Some("v1")),
            (
                "oci-archive:/x/y.tar",
                Transport::OciArchive,
                path("/x/y.tar"),
                None,
            ),
            ("rootfs:a:b", Transport::Rootfs, path("a:b"), None),
            ("dir:/x:y", Transport::Directory, path("/x:y"), None),
            ("skopeo-dir:x:y", Transport::SkopeoDir, path("x:y"), None),
            ("we:ird", Transport::Auto, path("we:ird"), None),
        ] {
            let source = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(
                source,
                Source {
                    transport,
                    location,
                    select: select.map(str::to_owned)
                },
                "{text}"
            );
        }
        for text in ["", "oci:", "dir:", "docker://alpine"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
