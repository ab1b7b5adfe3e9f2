//! The index while the kernel's overlayfs has the upper, on top of a FUSE mount that shows stored layers.
//!
//! Overlayfs names the inode of a hard-linked lower file by the handle that the FUSE mount gives out: the number of its
//! node, which is the place of its layer and the inode number there. That says nothing of which image it was. So our
//! own names, which hold the diff ID, are changed to that form only as long as the kernel needs it, and `WORK/layers`
//! tells of which image the numbers are. An upper that comes back, with or without an orderly end, has its index named
//! our way again before anything else is done with it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::engine::Overlay;
use super::origin::{self, KERNEL_MARK, Origin};
use super::upper::{Upper, remove_tree};
use super::{Entry, NodeId, Result};
use crate::layer::{Identity, host};
use crate::store::Digest;

/// In `WORK`: the diff IDs of the layers that the kernel's numbers are counted in, bottom first, one a line.
const LAYERS: &str = "layers";

/// The longest list that is read back.
const MOST: u64 = 1 << 20;

fn failed(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

/// Gives one entry another name, and its inode the mark that goes with it.
fn rename(upper: &Upper, from: &OsStr, to: &Origin) -> Result<()> {
    let fd = host::open_at(upper.index(), from, OFlags::PATH | OFlags::NOFOLLOW)?;
    let (mark, value) = to.mark();
    upper.mark(fd.as_fd(), mark, value)?;
    let how = RenameFlags::NOREPLACE;
    rustix::fs::renameat_with(upper.index(), from, upper.index(), to.index_name(), how)
}

/// Is this no entry, but something that the kernel was making, or keeps to make whiteouts of?
pub(super) fn is_temporary(name: &OsStr) -> bool {
    name.as_bytes().first() == Some(&b'#')
}

/// Names the index our way again, if the kernel had it, and clears away what it left there.
pub(super) fn take_back(upper: &Upper) -> Result<()> {
    for entry in host::read_dir(upper.index())? {
        if is_temporary(&entry.name) {
            remove_tree(upper.index(), &entry.name)?;
        }
    }
    let file = match rustix::fs::openat(
        upper.base(),
        LAYERS,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(failed)?;
    let layers: Vec<Digest> = text.lines().map_while(|line| line.parse().ok()).collect();
    for entry in host::read_dir(upper.index())? {
        let Some((place, ino)) = origin::parse_index_name(&entry.name).and_then(|o| o.fuse_place())
        else {
            continue;
        };
        // Of an image that is not in the list: nothing that could be known again.
        let Some(diff_id) = layers.get(place) else {
            continue;
        };
        rename(upper, &entry.name, &Origin::stored(diff_id, ino))?;
        let renamed = Origin::stored(diff_id, ino).index_name();
        let fd = host::open_at(upper.index(), &renamed, OFlags::PATH | OFlags::NOFOLLOW)?;
        match upper.unmark(fd.as_fd(), KERNEL_MARK) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    rustix::fs::unlinkat(upper.base(), LAYERS, AtFlags::empty())
}

impl Overlay {
    /// Names the index for overlayfs on a FUSE mount of our (stored) lowers. `false`, and nothing was done: there is an
    /// entry of another image, or of something else.
    pub fn hand_over_index(&self) -> Result<bool> {
        let upper = self.writable()?;
        let mut list = String::new();
        for (_, lower) in self.lowers.all() {
            let Identity::Stored { diff_id } = &lower.identity else {
                return Ok(!self.has_index());
            };
            list.insert_str(0, &format!("{diff_id}\n"));
        }
        let mut renamed: Vec<(OsString, Origin)> = Vec::new();
        for name in self.index_names().iter() {
            let own = origin::parse_index_name(name).filter(|o| matches!(o, Origin::Own(_)));
            let id = own.and_then(|own| {
                let (mark, value) = own.mark();
                origin::decode(&self.lowers, mark, value)
            });
            match id {
                Some(id) if self.lowers.stored_at(id).is_some() => {
                    renamed.push((name.clone(), Origin::fuse(id)));
                }
                _ => return Ok(false),
            }
        }
        self.write_layers(upper.base(), &list)?;
        for (name, origin) in renamed {
            rename(upper, &name, &origin)?;
        }
        Ok(true)
    }

    fn write_layers(&self, base: &OwnedFd, list: &str) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let mut file = File::from(rustix::fs::openat(
            base,
            LAYERS,
            flags | OFlags::CLOEXEC,
            mode,
        )?);
        file.write_all(list.as_bytes()).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// The object of that number, also if no name led to it yet: how overlayfs finds by handle what it copied up once.
    /// ESTALE for what only its names tell of: directories and host files.
    pub(super) fn lookup_number(&self, id: NodeId) -> Result<Option<Entry>> {
        let node = match self.table.find(id) {
            Some(node) => node,
            None => {
                let found = self.lowers.stored_at(id).filter(|_| self.upper.is_none());
                let (layer, ino) = found.ok_or(Errno::STALE)?;
                let node = self.lowers.layer(layer).numbered(ino)?;
                let node = node.filter(|n| !n.kind.is_dir()).ok_or(Errno::STALE)?;
                self.intern_alone(id, super::node::LowerRef { layer, node })
            }
        };
        let attr = self.attr_of(&node)?;
        self.table.remember(&node);
        Ok(Some(Entry {
            node: node.id,
            attr,
        }))
    }
}
