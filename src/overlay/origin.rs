//! Where an upper object was copied from: the `origin` marks and the names of index entries.
//!
//! Host lowers: the kernel overlayfs's own form, `struct ovl_fb` (fs/overlayfs/overlayfs.h): version 0, magic 0xfb,
//! length, flags, handle type, file system UUID, handle. An index entry is named by its hex digits. The inode number
//! is read out of the handle itself, so no privilege is needed to find it again.
//!
//! Stored lowers, and file systems without handles, have a form of our own in `overlay.ovl.origin`, which the kernel
//! hides like all `overlay.*` and does not read:
//! `01 's' diff-id[32] ino[8 LE]` or `01 'h' dev[8 LE] ino[8 LE]`.

use std::ffi::OsString;
use std::fmt::Write;

use super::NodeId;
use super::node::LowerRef;
use super::stack::Lowers;
use crate::layer::{Identity, ObjectKey};
use crate::store::Digest;
use crate::sys::FileHandle;

const FB_VERSION: u8 = 0;
const FB_MAGIC: u8 = 0xfb;
const FB_HEAD: usize = 21;
/// `OVL_FH_FLAG_BIG_ENDIAN`
const FB_BIG_ENDIAN: u8 = 1;
const OWN_VERSION: u8 = 1;

/// What to write on a copied-up object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Value of `overlay.origin`.
    Kernel(Vec<u8>),
    /// Value of `overlay.ovl.origin`.
    Own(Vec<u8>),
}

/// Names of the xattrs below `trusted.overlay.` or `user.overlay.`.
pub(super) const KERNEL_MARK: &str = "origin";
pub(super) const OWN_MARK: &str = "ovl.origin";

/// Before the digits of an index entry in our own form.
pub(super) const OWN_INDEX: &str = "ovl-";

impl Origin {
    /// Of a lower object.
    pub fn of(lowers: &Lowers, lower: &LowerRef) -> Self {
        let layer = lowers.layer(lower.layer);
        match layer.identity() {
            Identity::Stored { diff_id } => {
                let mut value = vec![OWN_VERSION, b's'];
                value.extend_from_slice(diff_id.as_bytes());
                value.extend_from_slice(&lower.node.key.ino.to_le_bytes());
                Self::Own(value)
            }
            Identity::Host { uuid, .. } => match layer.file_handle(&lower.node) {
                Some(handle)
                    if lowers.device_of(&uuid).is_some()
                        && handle_ino(handle.kind, &handle.bytes) == Some(lower.node.key.ino) =>
                {
                    Self::Kernel(encode_kernel(&uuid, &handle))
                }
                _ => {
                    let mut value = vec![OWN_VERSION, b'h'];
                    value.extend_from_slice(&lower.node.key.dev.to_le_bytes());
                    value.extend_from_slice(&lower.node.key.ino.to_le_bytes());
                    Self::Own(value)
                }
            },
        }
    }

    pub fn mark(&self) -> (&'static str, &[u8]) {
        match self {
            Self::Kernel(value) => (KERNEL_MARK, value),
            Self::Own(value) => (OWN_MARK, value),
        }
    }

    /// Name of its entry in the index: hex digits, ours with a prefix no kernel name has.
    pub fn index_name(&self) -> OsString {
        let (prefix, value) = match self {
            Self::Kernel(value) => ("", value),
            Self::Own(value) => (OWN_INDEX, value),
        };
        let mut name = String::with_capacity(prefix.len() + 2 * value.len());
        name.push_str(prefix);
        for byte in value {
            let _ = write!(name, "{byte:02x}");
        }
        name.into()
    }
}

fn encode_kernel(uuid: &[u8; 16], handle: &FileHandle) -> Vec<u8> {
    let mut value = Vec::with_capacity(FB_HEAD + handle.bytes.len());
    let flags = if cfg!(target_endian = "big") {
        FB_BIG_ENDIAN
    } else {
        0
    };
    value.extend_from_slice(&[
        FB_VERSION,
        FB_MAGIC,
        (FB_HEAD + handle.bytes.len()) as u8,
        flags,
        handle.kind as u8,
    ]);
    value.extend_from_slice(uuid);
    value.extend_from_slice(&handle.bytes);
    value
}

/// The inode number within a handle, for the handle types whose layout is known (linux/exportfs.h):
/// INO32_GEN and INO32_GEN_PARENT (ext4; of 12 bytes it is tmpfs's, generation first), INO64_GEN and INO64_GEN_PARENT
/// (xfs), and btrfs's, which begin with the object id.
fn handle_ino(kind: i32, bytes: &[u8]) -> Option<u64> {
    let number = |b: &[u8]| b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
    match (kind, bytes.len()) {
        (0x01, 12) => Some(number(&bytes[4..])),
        (0x01 | 0x02, 8..) => Some(number(&bytes[..4])),
        (0x81 | 0x82 | 0x4d | 0x4e | 0x4f, 12..) => Some(number(&bytes[..8])),
        _ => None,
    }
}

/// Inode number an upper object keeps from its origin; `None` for unknown or foreign origins.
pub(super) fn decode(lowers: &Lowers, mark: &str, value: &[u8]) -> Option<NodeId> {
    if mark == OWN_MARK {
        let u64_at = |at: usize| Some(u64::from_le_bytes(value.get(at..at + 8)?.try_into().ok()?));
        return match (value.first()?, value.get(1)?, value.len()) {
            (&OWN_VERSION, b's', 42) => {
                let diff_id = Digest::from_bytes(value[2..34].try_into().ok()?);
                lowers.stored_origin(&diff_id, u64_at(34)?)
            }
            (&OWN_VERSION, b'h', 18) => {
                let key = ObjectKey {
                    dev: u64_at(2)?,
                    ino: u64_at(10)?,
                };
                let known = lowers.all().any(
                    |(_, l)| matches!(l.identity, Identity::Host { dev, .. } if dev == key.dev),
                );
                known.then(|| lowers.host_ino(key))
            }
            _ => None,
        };
    }
    let head = value.get(..FB_HEAD)?;
    let little = head[3] & FB_BIG_ENDIAN == 0;
    if head[0] != FB_VERSION
        || head[1] != FB_MAGIC
        || usize::from(head[2]) != value.len()
        || little != cfg!(target_endian = "little")
    {
        return None;
    }
    let uuid: [u8; 16] = head[5..].try_into().ok()?;
    lowers.host_origin(&uuid, handle_ino(i32::from(head[4]), &value[FB_HEAD..])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_form_as_the_kernel_writes_it() {
        // Layout: version, magic, len, flags, type, uuid, fid (ino 0x1234, generation 0x55667788).
        let uuid: [u8; 16] = std::array::from_fn(|i| i as u8);
        let handle = FileHandle {
            kind: 1,
            bytes: vec![0x34, 0x12, 0, 0, 0x88, 0x77, 0x66, 0x55],
        };
        let value = encode_kernel(&uuid, &handle);
        assert_eq!(value[..5], [0, 0xfb, 29, 0, 1]);
        assert_eq!(
            Origin::Kernel(value).index_name(),
            "00fb1d0001000102030405060708090a0b0c0d0e0f3412000088776655"
        );
        assert_eq!(handle_ino(1, &handle.bytes), Some(0x1234));
        assert_eq!(
            handle_ino(0x81, &[1, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9]),
            Some(0x1_0000_0001)
        );
        assert_eq!(handle_ino(1, &[1, 2]), None);
        assert_eq!(handle_ino(0x99, &[0; 16]), None);
    }

    #[test]
    fn garbage_has_no_origin() {
        let lowers = Lowers::new(Vec::new(), None, false, false, 0);
        for value in [
            &b""[..],
            b"\0",
            b"\0\xfb\x16\0\x01",
            &[0; 40],
            &[1, b's', 3],
            &[1, b'h'],
            &[0xff; 64],
        ] {
            for mark in [KERNEL_MARK, OWN_MARK] {
                assert_eq!(decode(&lowers, mark, value), None, "{mark} {value:?}");
            }
        }
    }
}
