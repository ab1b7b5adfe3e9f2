//! The lower layers as one value, and the numbering of inodes over all of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, RwLock};

use super::engine::check_name;
use super::few::Few;
use super::node::{LayerIndex, LowerRef};
use super::{NodeId, Result};
use crate::layer::{Identity, Layer, LayerEntry, ObjectKey};
use crate::store::Digest;

/// Bits of an inode number that come from the file system below; the rest says which file system or layer.
const INO_BITS: u32 = 48;
/// Stored layers are numbered from here, by their place from the bottom, so that a layer put on top moves none.
const STORED_BASE: u64 = 0x1000;
/// Stands in for host inode numbers that the transport keeps for itself (0 and the root's 1).
const RESERVED: u64 = 0x0fff;
/// A number that no object ever has: the transport's own, for the root.
pub const NOBODYS: u64 = RESERVED << INO_BITS | 2;

/// Directories that each of many layers may keep open all the same.
const LEAST_OPEN: usize = 4;

/// Which numbering an object's inode number belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Space(u64);

pub(super) struct Lower {
    pub layer: Arc<dyn Layer>,
    pub identity: Identity,
}

pub(super) struct Lowers {
    layers: Vec<Lower>,
    /// Devices in the order they got their numbers: the upper's, then the lowers' from the bottom up, then any other
    /// that turns up (a mount inside a layer that we could not clone).
    devices: RwLock<Vec<u64>>,
    /// Redirects found in the lowers are followed.
    pub follow: bool,
    /// With 32-bit numbers: which full number each of the upper half stands for.
    small: Option<Mutex<HashMap<u32, u64>>>,
}

impl Lowers {
    /// `kept_open`: directories that all layers together may keep open.
    pub fn new(
        layers: Vec<Arc<dyn Layer>>,
        upper_dev: Option<u64>,
        follow: bool,
        ino32: bool,
        kept_open: usize,
    ) -> Self {
        let layers: Vec<Lower> = layers
            .into_iter()
            .map(|layer| Lower {
                identity: layer.identity(),
                layer,
            })
            .collect();
        let host = |lower: &&Lower| matches!(lower.identity, Identity::Host { .. });
        let hosts = layers.iter().filter(host).count();
        for lower in layers.iter().filter(host) {
            lower.layer.keep_open((kept_open / hosts).max(LEAST_OPEN));
        }
        let mut devices: Vec<u64> = upper_dev.into_iter().collect();
        for lower in layers.iter().rev() {
            if let Identity::Host { dev, .. } = lower.identity
                && !devices.contains(&dev)
            {
                devices.push(dev);
            }
        }
        Self {
            layers,
            devices: RwLock::new(devices),
            follow,
            small: ino32.then(Mutex::default),
        }
    }

    pub fn layer(&self, index: LayerIndex) -> &dyn Layer {
        &*self.layers[usize::from(index)].layer
    }

    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    pub fn all(&self) -> impl Iterator<Item = (LayerIndex, &Lower)> {
        (0..).zip(&self.layers)
    }

    /// Roots of all layers, for the root node.
    pub fn roots(&self) -> Result<Vec<LowerRef>> {
        let mut out = Vec::with_capacity(self.layers.len());
        for (index, lower) in self.all() {
            let node = lower.layer.root()?;
            let opaque = lower.layer.is_opaque(&node)?;
            out.push(LowerRef { layer: index, node });
            if opaque {
                break;
            }
        }
        Ok(out)
    }

    /// Inode number of a lower object.
    pub fn ino(&self, lower: &LowerRef) -> NodeId {
        self.ino_of(lower.layer, lower.node.key)
    }

    /// Inode number of an object with this key in that layer.
    pub fn ino_of(&self, layer: LayerIndex, key: ObjectKey) -> NodeId {
        match self.layers[usize::from(layer)].identity {
            Identity::Stored { .. } => self.number(self.stored_space(layer), key.ino),
            Identity::Host { .. } => self.host_ino(key),
        }
    }

    fn stored_space(&self, layer: LayerIndex) -> Space {
        Space(STORED_BASE + (self.layers.len() - 1 - usize::from(layer)) as u64)
    }

    /// Inode number of a host object, of the upper or of a lower directory.
    pub fn host_ino(&self, key: ObjectKey) -> NodeId {
        let known = |devices: &[u64]| devices.iter().position(|d| *d == key.dev);
        let devices = self
            .devices
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let index = known(&devices);
        drop(devices);
        let index = index.unwrap_or_else(|| {
            let mut devices = self
                .devices
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            known(&devices).unwrap_or_else(|| {
                devices.push(key.dev);
                devices.len() - 1
            })
        });
        self.number(Space(index as u64), key.ino)
    }

    fn number(&self, space: Space, ino: u64) -> NodeId {
        let id = number(space, ino);
        let Some(small) = &self.small else {
            return id;
        };
        if id.0 < 1 << 31 {
            return id;
        }
        // The upper half of 32 bits is given out by hash, the next free one where two meet.
        let mut taken = super::node::lock(small);
        let mut slot = mix(id.0) as u32 | 1 << 31;
        while *taken.entry(slot).or_insert(id.0) != id.0 {
            slot = slot.wrapping_add(1) | 1 << 31;
        }
        NodeId(slot.into())
    }

    /// Number of an origin in the stored layer of that diff ID, if it is in the stack.
    pub fn stored_origin(&self, diff_id: &Digest, ino: u64) -> Option<NodeId> {
        let found = self
            .all()
            .find(|(_, l)| matches!(&l.identity, Identity::Stored { diff_id: d } if d == diff_id));
        found.map(|(index, _)| self.number(self.stored_space(index), ino))
    }

    /// The device of the one lower file system with this UUID. As in the kernel, a zero UUID will do, but a UUID that
    /// two of them share says nothing.
    pub fn device_of(&self, uuid: &[u8; 16]) -> Option<u64> {
        let mut found = None;
        for lower in &self.layers {
            if let Identity::Host { dev, uuid: u } = lower.identity
                && u == *uuid
                && found.replace(dev).is_some_and(|d| d != dev)
            {
                return None;
            }
        }
        found
    }

    /// Number of an origin on the host file system of that UUID, if a lower is on it.
    pub fn host_origin(&self, uuid: &[u8; 16], ino: u64) -> Option<NodeId> {
        Some(self.host_ino(ObjectKey {
            dev: self.device_of(uuid)?,
            ino,
        }))
    }

    /// Looks `name` up in each of `dirs`, topmost first: a file ends the search, directories are gathered until one is
    /// opaque or a whiteout or file hides the rest.
    pub fn lookup(&self, dirs: &[LowerRef], name: &OsStr) -> Result<LowerHit> {
        let mut hit = LowerHit::default();
        let mut name = Cow::Borrowed(name);
        let mut left = dirs.len();
        for dir in dirs {
            left -= 1;
            let layer = self.layer(dir.layer);
            match layer.lookup(&dir.node, &name)? {
                None => {}
                Some(LayerEntry::Whiteout) => break,
                Some(LayerEntry::Node { node, attr, opaque }) => {
                    let is_dir = node.kind.is_dir();
                    if !is_dir && !hit.found.is_empty() {
                        break;
                    }
                    // Without anything below there is nothing to hide, or to be elsewhere.
                    let is_last = usize::from(dir.layer) + 1 == self.layers.len();
                    let follow = self.follow && !is_last;
                    let opaque = is_dir
                        && (left > 0 || follow)
                        && match opaque {
                            Some(opaque) => opaque,
                            None => layer.is_opaque(&node)?,
                        };
                    let redirect = if is_dir && !opaque && follow {
                        layer.redirect(&node)?
                    } else {
                        None
                    };
                    if hit.found.is_empty() {
                        hit.attr = attr;
                    }
                    hit.found.push(LowerRef {
                        layer: dir.layer,
                        node,
                    });
                    if !is_dir || opaque {
                        break;
                    }
                    match redirect {
                        None => {}
                        Some(path) if path.as_bytes().first() == Some(&b'/') => {
                            let below = self.find_below(
                                OsStr::from_bytes(&path.as_bytes()[1..]),
                                dir.layer + 1,
                            )?;
                            let dirs = below.iter().filter(|l| l.node.kind.is_dir());
                            hit.found.extend(dirs.cloned());
                            break;
                        }
                        Some(other) if check_name(&other).is_err() => break,
                        Some(other) => name = Cow::Owned(other),
                    }
                }
            }
        }
        Ok(hit)
    }

    /// Of what is merged to one directory (or the one file), that whose attributes show: the topmost that its layer names.
    pub fn spokesman<'a>(&self, merged: &'a [LowerRef]) -> Result<&'a LowerRef> {
        let first = merged.first().ok_or(rustix::io::Errno::STALE)?;
        if merged.len() > 1 && first.node.kind.is_dir() {
            for lower in merged {
                if !self.layer(lower.layer).is_implied(&lower.node)? {
                    return Ok(lower);
                }
            }
        }
        Ok(first)
    }

    /// Is there anything of this name in the layers below?
    pub fn shows(&self, dirs: &[LowerRef], name: &OsStr) -> Result<bool> {
        for dir in dirs {
            match self.layer(dir.layer).lookup(&dir.node, name)? {
                None => {}
                Some(LayerEntry::Whiteout) => return Ok(false),
                Some(LayerEntry::Node { .. }) => return Ok(true),
            }
        }
        Ok(false)
    }

    /// The directories at `path` (relative, `/`-separated) in the layers: where a redirect points.
    pub fn walk(&self, path: &OsStr) -> Result<Few<LowerRef>> {
        let found = self.find(path)?;
        Ok(if found.first().is_some_and(|d| d.node.kind.is_dir()) {
            found
        } else {
            Few::None
        })
    }

    /// What the layers have at `path`: one file, or directories to merge.
    pub fn find(&self, path: &OsStr) -> Result<Few<LowerRef>> {
        self.find_below(path, 0)
    }

    fn find_below(&self, path: &OsStr, first: LayerIndex) -> Result<Few<LowerRef>> {
        let mut dirs = Few::from(self.roots()?);
        dirs.retain(|d| d.layer >= first);
        for name in path
            .as_bytes()
            .split(|b| *b == b'/')
            .filter(|n| !n.is_empty())
        {
            // A redirect may not leave its layer; and what no file can be called is not there.
            if check_name(OsStr::from_bytes(name)).is_err() {
                return Ok(Few::None);
            }
            if dirs.first().is_none_or(|d| !d.node.kind.is_dir()) {
                return Ok(Few::None);
            }
            dirs = self.lookup(&dirs, OsStr::from_bytes(name))?.found;
        }
        Ok(dirs)
    }
}

/// What the lowers hold of a name: nothing, one file, or directories to merge.
#[derive(Default)]
pub(super) struct LowerHit {
    pub found: Few<LowerRef>,
    /// Of the first, where finding it brought them along.
    pub attr: Option<crate::meta::Attr>,
}

/// One number out of file system and inode. Host numbers beyond 48 bits (nested overlays, some network file systems)
/// are folded into the upper half by a fixed bijection, so they stay the same from mount to mount.
fn number(space: Space, ino: u64) -> NodeId {
    let id = if ino >> INO_BITS == 0 {
        space.0 << INO_BITS | ino
    } else {
        1 << 63 | mix(ino ^ space.0.rotate_left(INO_BITS)) >> 1
    };
    NodeId(if id <= 1 {
        RESERVED << INO_BITS | id
    } else {
        id
    })
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_distinct_and_never_the_roots() {
        let mut seen = std::collections::HashSet::new();
        for space in [0, 1, 2, STORED_BASE, STORED_BASE + 499] {
            for ino in [
                0,
                1,
                2,
                3,
                1 << 32,
                (1 << 48) - 1,
                1 << 48,
                u64::MAX,
                (STORED_BASE << 48) | 5,
            ] {
                let n = number(Space(space), ino);
                assert!(n.0 > 1, "{space} {ino}");
                assert!(seen.insert(n), "{space} {ino} gives {n:?} again");
            }
        }
    }
}
