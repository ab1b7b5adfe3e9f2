//! POSIX ACLs: the text form that tar archives hold, turned into the binary form that the kernel's xattrs hold.
//!
//! Sources: acl(5), "ACL TEXT FORMS"; linux/posix_acl_xattr.h for the layout of the value.

/// Value of `system.posix_acl_access` or `system.posix_acl_default` for an ACL in text form.
///
/// `None` if the text is malformed, or names a user or group by name without a number: names mean nothing outside the
/// image, so such an ACL cannot be told. `Some(None)` for an access ACL that says no more than the mode.
pub fn to_xattr(text: &[u8]) -> Option<Option<Vec<u8>>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::new();
    for line in text.split(['\n', ',']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            entries.push(Entry::parse(line)?);
        }
    }
    entries.sort();
    let tags: Vec<u16> = entries.iter().map(|e| e.tag).collect();
    let once = |tag| tags.iter().filter(|&&t| t == tag).count() == 1;
    let named = tags.iter().any(|&t| t == USER || t == GROUP);
    let repeated = entries
        .windows(2)
        .any(|pair| (pair[0].tag, pair[0].id) == (pair[1].tag, pair[1].id));
    let valid =
        [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(once) && !repeated && (!named || once(MASK));
    if !valid {
        return None;
    }
    if entries.len() == 3 {
        return Some(None);
    }
    Some(Some(encode(&entries)))
}

/// Like [`to_xattr`] for a default ACL, where three entries do say something.
pub fn default_to_xattr(text: &[u8]) -> Option<Vec<u8>> {
    match to_xattr(text)? {
        Some(value) => Some(value),
        None => {
            let text = std::str::from_utf8(text).ok()?;
            let lines = text
                .split(['\n', ','])
                .map(|l| l.split('#').next().unwrap_or_default().trim());
            let mut entries = lines
                .filter(|l| !l.is_empty())
                .map(Entry::parse)
                .collect::<Option<Vec<_>>>()?;
            entries.sort();
            Some(encode(&entries))
        }
    }
}

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;
const VERSION: u32 = 2;

/// Sorts in the order the kernel wants: by tag, then by id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    perm: u16,
}

impl Entry {
    /// `TAG:QUALIFIER:PERMS`, star and libarchive append `:ID`.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let (&kind, rest) = fields.split_first()?;
        let (qualifier, perms, number) = match *rest {
            // Solaris and old star leave the empty qualifier of mask and other out.
            [perms] if matches!(kind, "mask" | "m" | "other" | "o") => ("", perms, None),
            [qualifier, perms] => (qualifier, perms, None),
            [qualifier, perms, number] => (qualifier, perms, Some(number)),
            _ => return None,
        };
        let named = !qualifier.is_empty();
        let tag = match (kind, named) {
            ("user" | "u", false) => USER_OBJ,
            ("user" | "u", true) => USER,
            ("group" | "g", false) => GROUP_OBJ,
            ("group" | "g", true) => GROUP,
            ("mask" | "m", false) => MASK,
            ("other" | "o", false) => OTHER,
            _ => return None,
        };
        let id = if named {
            number.unwrap_or(qualifier).parse().ok()?
        } else {
            NO_ID
        };
        Some(Self {
            tag,
            id,
            perm: permissions(perms)?,
        })
    }
}

fn permissions(text: &str) -> Option<u16> {
    text.chars().try_fold(0, |bits, c| match c {
        'r' => Some(bits | 4),
        'w' => Some(bits | 2),
        'x' => Some(bits | 1),
        '-' => Some(bits),
        _ => None,
    })
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut value = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        value.extend_from_slice(&entry.tag.to_le_bytes());
        value.extend_from_slice(&entry.perm.to_le_bytes());
        value.extend_from_slice(&entry.id.to_le_bytes());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let full = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 7, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 255,
            255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
        ];
        for text in [
            "user::rw-\nuser:1000:rwx\ngroup::r--\nmask::rwx\nother::r--\n",
            "user::rw-,user:joe:rwx:1000,group::r--,mask::rwx,other::r--",
            "other::r--\nmask:rwx\ng::r--\nu:1000:rwx  #effective:rwx\nu::rw-\n",
        ] {
            assert_eq!(
                to_xattr(text.as_bytes()),
                Some(Some(full.to_vec())),
                "{text}"
            );
        }
        assert_eq!(to_xattr(b"user::rw-\ngroup::r--\nother::r--\n"), Some(None));
        assert_eq!(
            default_to_xattr(b"user::rw-\ngroup::r--\nother::r--\n")
                .unwrap()
                .len(),
            28
        );
        for bad in [
            "",
            "user::rw-",
            "user::rw-\nuser:joe:rwx\ngroup::r--\nmask::rwx\nother::r--\n",
            "user::rw-\nuser:1000:rwx\ngroup::r--\nother::r--\n",
            "user::rw-\nuser::rw-\ngroup::r--\nother::r--\n",
            "user::rwz\ngroup::r--\nother::r--\n",
            "user:4294967296:r--\nuser::rw-\ngroup::r--\nmask::rwx\nother::r--\n",
        ] {
            assert_eq!(to_xattr(bad.as_bytes()), None, "{bad}");
        }
    }
}
