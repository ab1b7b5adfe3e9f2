//! Who a container's command runs as: `USER[:GROUP]` by the image's own files.
//!
//! Nothing here asks the host's name service. The files are read through [`Rootfs::read`]: regular files of at most 1 MiB.

use super::error::{Error, Result};
use super::inside::Inside;
use super::rootfs::Rootfs;

/// Larger user and group files are refused.
const MAX_FILE: u64 = 1 << 20;
/// Largest user and group number: beyond it runtimes have wrapped to 0 (CVE-2024-40635).
const MAX_ID: u32 = i32::MAX as u32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// The image's user and group files, as far as they can be read.
struct Files {
    passwd: Result<Vec<u8>>,
    group: Result<Vec<u8>>,
}

/// Finds `word` (`USER`, `USER:GROUP`, each a name or a number; empty is root) in the image. Without GROUP the user's own
/// groups count, as Docker has it. Files of whatever other kind that lie there concern only names; but see
/// [`check_files`].
pub fn look_up(rootfs: &Rootfs, word: &str) -> Result<User> {
    let file = |path| Ok(rootfs.read(path, MAX_FILE)?.unwrap_or_default());
    let files = Files {
        passwd: file("/etc/passwd"),
        group: file("/etc/group"),
    };
    find(&files, word)
}

/// Runtimes open these files by themselves, in the container, and would wait for a FIFO for ever: an image whose files
/// cannot be read here cannot be run.
pub fn check_files(inside: &Inside<'_>) -> Result<()> {
    for path in ["/etc/passwd", "/etc/group"] {
        inside.check_in_root("user file", path)?;
        inside.rootfs.read(path, MAX_FILE)?;
    }
    Ok(())
}

fn find(files: &Files, word: &str) -> Result<User> {
    let (user, group) = match word.split_once(':') {
        Some((user, group)) => (user, (!group.is_empty()).then_some(group)),
        None => (word, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = number(user, word)?;
    let entry = match (&files.passwd, number) {
        (Ok(text), _) => passwd(text).find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == user.as_bytes(),
        }),
        (Err(_), Some(_)) => None,
        (Err(error), None) => return Err(unreadable(user, error)),
    };
    let Some(uid) = number.or(entry.as_ref().map(|entry| entry.uid)) else {
        return Err(Error::Image(format!(
            "no user {user} in /etc/passwd of the image"
        )));
    };
    let mut found = User {
        uid,
        gid: entry.as_ref().map_or(0, |entry| entry.gid),
        groups: Vec::new(),
        home: entry
            .as_ref()
            .and_then(|entry| std::str::from_utf8(entry.home).ok())
            .filter(|home| home.starts_with('/'))
            .unwrap_or("/")
            .to_owned(),
    };
    match (group, entry) {
        (Some(group), _) => found.gid = gid(files, group, word)?,
        (None, Some(entry)) => {
            let text = files.group.as_deref().unwrap_or_default();
            found.groups = groups(text)
                .filter(|group| group.members.split(|b| *b == b',').any(|m| m == entry.name))
                .map(|group| group.gid)
                .collect();
            found.groups.sort_unstable();
            found.groups.dedup();
        }
        (None, None) => {}
    }
    Ok(found)
}

fn gid(files: &Files, group: &str, word: &str) -> Result<u32> {
    if let Some(gid) = number(group, word)? {
        return Ok(gid);
    }
    let text = match &files.group {
        Ok(text) => text,
        Err(error) => return Err(unreadable(group, error)),
    };
    groups(text)
        .find(|entry| entry.name == group.as_bytes())
        .map(|entry| entry.gid)
        .ok_or_else(|| Error::Image(format!("no group {group} in /etc/group of the image")))
}

fn unreadable(name: &str, error: &Error) -> Error {
    Error::Image(format!("looking up {name}: {error}"))
}

/// A decimal number in range, `None` for what can be a name; what looks like a number and is none is refused.
fn number(text: &str, word: &str) -> Result<Option<u32>> {
    let wrong = |why: &str| Err(Error::Usage(format!("user {word:?}: {why}")));
    let bytes = text.as_bytes();
    if bytes.iter().all(u8::is_ascii_digit) {
        return match text.parse() {
            Ok(id) if id <= MAX_ID => Ok(Some(id)),
            _ => wrong("a number beyond 2147483647"),
        };
    }
    if bytes[0].is_ascii_digit() || matches!(bytes[0], b'-' | b'+') {
        return wrong("neither a number nor a name");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("a blank in a name");
    }
    Ok(None)
}

struct Passwd<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

fn id(field: &[u8]) -> Option<u32> {
    let digits = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    let id = std::str::from_utf8(field).ok()?.parse().ok()?;
    (digits && id <= MAX_ID).then_some(id)
}

/// Lines of passwd(5). One with a number out of range is as if it were not there.
fn passwd(text: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        Some(Passwd {
            name,
            uid,
            gid,
            home: fields.nth(1).unwrap_or_default(),
        })
    })
}

/// Lines of group(5), likewise.
fn groups(text: &[u8]) -> impl Iterator<Item = Group<'_>> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let mut fields = line.split(|b| *b == b':');
        Some(Group {
            name: fields.next().filter(|name| !name.is_empty())?,
            gid: id(fields.nth(1)?)?,
            members: fields.next().unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:Web:/srv/web:/bin/false\n\
            broken\nhuge:x:4294967296:0::/:/\nwrap:x:4294967295:0::/:/\nneg:x:-1:0::/:/\nrel:x:50:50::home:/\n";
        let group = "root:x:0:\nwww:x:34:web\nadm:x:4:root,web\nlog:x:5:webster,web\nadm2:x:4:web\nbig:x:99999999999:web\n";
        Files {
            passwd: Ok(passwd.into()),
            group: Ok(group.into()),
        }
    }

    #[test]
    fn users_as_docker_finds_them() {
        for (word, uid, gid, groups, home) in [
            ("", 0, 0, &[4][..], "/root"),
            ("root", 0, 0, &[4], "/root"),
            ("web", 33, 34, &[4, 5, 34], "/srv/web"),
            ("33", 33, 34, &[4, 5, 34], "/srv/web"),
            ("web:adm", 33, 4, &[], "/srv/web"),
            ("web:7", 33, 7, &[], "/srv/web"),
            (":adm", 0, 4, &[], "/root"),
            ("1000", 1000, 0, &[], "/"),
            ("1000:1000", 1000, 1000, &[], "/"),
            ("2147483647:0", 2_147_483_647, 0, &[], "/"),
            ("rel", 50, 50, &[], "/"),
        ] {
            let expected = User {
                uid,
                gid,
                groups: groups.to_vec(),
                home: home.into(),
            };
            assert_eq!(find(&files(), word).expect(word), expected, "{word}");
        }
    }

    /// T27: no number wraps to root.
    #[test]
    fn t27_numbers_out_of_range_are_refused() {
        for word in [
            "2147483648",
            "4294967295:0",
            "4294967296",
            "-1",
            "0x0",
            "+0",
            "1e3",
            "0:-1",
            "0:0x0",
            "0:4294967296",
            "99999999999999999999",
            "huge",
            "wrap",
            "neg",
            "nobody",
            "web:none",
            "web:big",
            "we b",
        ] {
            assert!(find(&files(), word).is_err(), "{word}");
        }
    }

    #[test]
    fn a_bad_file_matters_only_to_names() {
        let bad = || Files {
            passwd: Err(Error::Image("a FIFO".into())),
            group: Err(Error::Image("a FIFO".into())),
        };
        assert_eq!(find(&bad(), "5:6").expect("numbers").gid, 6);
        for word in ["web", "5:adm"] {
            let error = find(&bad(), word).expect_err(word).to_string();
            assert!(error.contains("a FIFO"), "{error}");
        }
    }
}
