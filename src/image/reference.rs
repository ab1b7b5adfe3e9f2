//! Image references: `[DOMAIN/]PATH[:TAG][@DIGEST]`, by the grammar of the OCI distribution project and Docker's rules
//! for short names: no domain means `docker.io`, one bare component there means `library/NAME`, no tag means `latest`.

use std::fmt;
use std::str::FromStr;

use crate::store::Digest;

const DEFAULT_DOMAIN: &str = "docker.io";
/// Docker's index had this name once; it means the same.
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest repository name, domain included, bytes.
const NAME_MAX: usize = 255;
/// Longest tag, bytes.
const TAG_MAX: usize = 128;

/// A complete reference. Displays canonically, as in `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {text:?}: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// Registry host, with port if any.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// `None` only beside a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Repository as Docker shows it: without `docker.io/` and `library/`, unless what remains means something else.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        let short = match self.path.strip_prefix(OFFICIAL) {
            Some(name) if !name.contains('/') => name,
            _ => &self.path,
        };
        if split_domain(short) != (DEFAULT_DOMAIN, short) {
            return self.repository();
        }
        short.to_owned()
    }

    /// The short form for people, such as `alpine:latest`.
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_repository())
    }

    fn with_suffix(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text = text + ":" + tag;
        }
        if let Some(digest) = &self.digest {
            text = text + "@" + &digest.to_string();
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() == 64 && Digest::from_hex(text).is_ok() {
        return Err("64 hexadecimal digits are an image ID, not a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "after @ must come sha256: and 64 lowercase hex digits")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (name, tag) = match rest.rsplit_once(':') {
        // A colon before the last slash belongs to a port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(check_tag(tag)?)),
        _ => (rest, None),
    };
    let (domain, path) = split_domain(name);
    let domain = if domain == LEGACY_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    check_domain(domain)?;
    check_path(path)?;
    let official = domain == DEFAULT_DOMAIN && !path.contains('/');
    let path = if official {
        format!("{OFFICIAL}{path}")
    } else {
        path.to_owned()
    };
    if domain.len() + 1 + path.len() > NAME_MAX {
        return Err("the repository name has more than 255 bytes");
    }
    let tag = tag.or(if digest.is_none() {
        Some(DEFAULT_TAG)
    } else {
        None
    });
    Ok(Reference {
        domain: domain.to_owned(),
        path,
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// The first component is a domain if it could not be a path component, or is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':', '['])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    const BAD: &str = "the registry host is malformed";
    let (host, port) = match domain.rfind([':', ']']) {
        Some(i) if domain.as_bytes()[i] == b':' => (&domain[..i], Some(&domain[i + 1..])),
        _ => (domain, None),
    };
    if port.is_some_and(|p| p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit())) {
        return Err("the registry port is not a number");
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        let valid = !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        return if valid { Ok(()) } else { Err(BAD) };
    }
    let label = |l: &str| {
        let inner = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        !l.is_empty() && inner && !l.starts_with('-') && !l.ends_with('-')
    };
    if host.split('.').all(label) {
        Ok(())
    } else {
        Err(BAD)
    }
}

/// Components of lowercase letters and digits, separated inside by `.`, `_`, `__` or any number of `-`.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository name must be lowercase");
    }
    for component in path.split('/') {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let words = component.split(|c: char| !(c.is_ascii() && alphanumeric(c as u8)));
        // Between two words lie separators only; an empty word means two of them adjoin.
        let separators: Vec<&str> = component
            .split(|c: char| c.is_ascii() && alphanumeric(c as u8))
            .filter(|s| !s.is_empty())
            .collect();
        let good = |s: &&str| matches!(*s, "." | "_" | "__") || s.bytes().all(|b| b == b'-');
        let ends = [component.bytes().next(), component.bytes().last()];
        let whole = ends.iter().all(|b| b.is_some_and(alphanumeric));
        if words.count() == 0 || !whole || !separators.iter().all(good) {
            return Err(
                "the repository name may hold lowercase letters and digits, with single . _ - between them",
            );
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<&str, &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
    if !valid {
        return Err(
            "the tag may hold letters, digits, _ . - and must begin with a letter, digit or _",
        );
    }
    if tag.len() > TAG_MAX {
        return Err("the tag has more than 128 bytes");
    }
    Ok(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn canonical_and_familiar() {
        let at = format!("@sha256:{HEX}");
        let cases = [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            (
                "alpine:3.19",
                "docker.io/library/alpine:3.19",
                "alpine:3.19",
            ),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            (
                "docker.io/alpine",
                "docker.io/library/alpine:latest",
                "alpine:latest",
            ),
            (
                "index.docker.io/alpine",
                "docker.io/library/alpine:latest",
                "alpine:latest",
            ),
            (
                "docker.io/library/a/b:1",
                "docker.io/library/a/b:1",
                "library/a/b:1",
            ),
            // What would be taken for a domain keeps its own before it.
            (
                "docker.io/example.org/a",
                "docker.io/example.org/a:latest",
                "docker.io/example.org/a:latest",
            ),
            (
                "index.docker.io/localhost/a",
                "docker.io/localhost/a:latest",
                "docker.io/localhost/a:latest",
            ),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            (
                "localhost:5000/a",
                "localhost:5000/a:latest",
                "localhost:5000/a:latest",
            ),
            ("[::1]:5000/a:t", "[::1]:5000/a:t", "[::1]:5000/a:t"),
            (
                "quay.io/a/b/c:v1.0-rc_1",
                "quay.io/a/b/c:v1.0-rc_1",
                "quay.io/a/b/c:v1.0-rc_1",
            ),
            ("Foo/bar", "Foo/bar:latest", "Foo/bar:latest"),
            (
                "a__b/c---d.e",
                "docker.io/a__b/c---d.e:latest",
                "a__b/c---d.e:latest",
            ),
        ];
        for (text, canonical, familiar) in cases {
            let reference: Reference = text.parse().unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(canonical.parse(), Ok(reference), "{text}");
        }
        let by_digest: Reference = format!("alpine{at}").parse().unwrap();
        assert_eq!(by_digest.tag(), None);
        assert_eq!(
            by_digest.to_string(),
            format!("docker.io/library/alpine{at}")
        );
        let both: Reference = format!("alpine:1{at}").parse().unwrap();
        assert_eq!(both.familiar(), format!("alpine:1{at}"));
    }

    #[test]
    fn refused() {
        let long_name = "a/".repeat(130) + "a";
        let long_tag = format!("a:{}", "t".repeat(129));
        for text in [
            "",
            ":",
            "a:",
            ":t",
            "/",
            "a/",
            "/a",
            "a//b",
            "Alpine",
            "a:b:c",
            "a b",
            "a\n",
            "a@",
            "a@sha256:12",
            "a@sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "-a",
            "a-",
            "a..b",
            "a.-b",
            "a___b",
            "_a",
            "a:-t",
            "a:.t",
            "a:t/../b",
            "../a",
            "a/../b",
            "host:port/a",
            "ho_st.x/a",
            "[::g]/a",
            "é",
            HEX,
            &long_name,
            &long_tag,
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        // Not 64 digits: an ordinary name.
        assert!(HEX[1..].parse::<Reference>().is_ok());
    }
}
