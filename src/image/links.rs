//! Hard links to files of lower layers.
//!
//! A layer may hold a hard link whose target is not in the layer (kaniko writes such layers, overlay-based tools never
//! do). What it means is a copy of the lower file under the new name. The links wait here until the lower layers are
//! known, which on a pipe may be only at its end.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::meta::FileKind;
use crate::store::{Digest, LayerReader, LayerWriter, ROOT_INODE, Store};

use super::ingest::Stop;
use super::layer_entry::EntryFault;

/// Most links that may wait at once; each costs two paths of memory.
const MAX_WAITING: usize = 10_000;

/// Links of one layer that wait for the layers below.
#[derive(Default)]
pub struct ForeignLinks {
    /// From path to target.
    waiting: BTreeMap<OsString, OsString>,
}

impl ForeignLinks {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn waits(&self, path: &OsStr) -> bool {
        self.waiting.contains_key(path)
    }

    pub fn wait_for(&mut self, path: OsString, target: OsString) -> Result<(), EntryFault> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(EntryFault::TooManyForeignLinks(MAX_WAITING));
        }
        self.waiting.insert(path, target);
        Ok(())
    }

    /// A later entry made `path`: links it replaced need not be made any more.
    pub fn made(&mut self, path: &OsStr, kind: FileKind) {
        if self.waiting.is_empty() {
            return;
        }
        let bytes = path.as_bytes();
        self.waiting.remove(path);
        // An entry below a link turns the link into a directory.
        for (i, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'/') {
            self.waiting.remove(OsStr::from_bytes(&bytes[..i]));
        }
        if !kind.is_dir() {
            let below = [bytes, b"/"].concat();
            self.waiting
                .retain(|link, _| !link.as_bytes().starts_with(&below));
        }
    }

    /// Makes every waiting link: within the layer where its target came later, else as a copy from `lowers` (bottom
    /// first). Fails, naming the link, if a target is nowhere or a directory.
    pub fn resolve(
        &mut self,
        writer: &mut LayerWriter,
        store: &Store,
        lowers: &[Digest],
    ) -> Result<(), (Vec<u8>, Stop)> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let fail = |path: &OsString| {
            let path = path.as_bytes().to_vec();
            move |stop: Stop| (path, stop)
        };
        let mut stack = Vec::with_capacity(lowers.len());
        for lower in lowers.iter().rev() {
            stack.push(
                store
                    .open_layer(lower)
                    .map_err(|error| (Vec::new(), error.into()))?,
            );
        }
        // A link may name another waiting link; each round makes those whose target is there.
        loop {
            let before = self.waiting.len();
            let ready: Vec<_> = self
                .waiting
                .iter()
                .filter(|(_, target)| !self.waits(target))
                .map(|(p, t)| (p.clone(), t.clone()))
                .collect();
            for (path, target) in ready {
                make(writer, &stack, &path, &target).map_err(fail(&path))?;
                self.waiting.remove(&path);
            }
            if self.waiting.len() == before {
                break;
            }
        }
        match self.waiting.first_key_value() {
            // Links that name each other in a circle.
            Some((path, target)) => {
                Err(fail(path)(EntryFault::LinkToNothing(target.clone()).into()))
            }
            None => Ok(()),
        }
    }
}

fn make(
    writer: &mut LayerWriter,
    stack: &[LayerReader],
    path: &OsStr,
    target: &OsStr,
) -> Result<(), Stop> {
    if writer.add_hard_link(path, target)? {
        return Ok(());
    }
    match find(stack, target)? {
        Some((_, _, FileKind::Directory)) => {
            Err(EntryFault::LinkToDirectory(target.to_owned()).into())
        }
        Some((layer, inode, _)) => Ok(writer.add_copy(path, layer, inode)?),
        None => Err(EntryFault::LinkToNothing(target.to_owned()).into()),
    }
}

/// Looks `path` up in the merged view of `stack` (topmost first). Symlinks are not followed.
fn find<'a>(
    stack: &'a [LayerReader],
    path: &OsStr,
) -> Result<Option<(&'a LayerReader, u64, FileKind)>, Stop> {
    let mut dirs: Vec<(&LayerReader, u64)> =
        stack.iter().map(|layer| (layer, ROOT_INODE)).collect();
    let mut components = path
        .as_bytes()
        .split(|&b| b == b'/')
        .map(OsStr::from_bytes)
        .peekable();
    while let Some(name) = components.next() {
        let last = components.peek().is_none();
        let mut next = Vec::new();
        for (layer, dir) in dirs {
            let Some(entry) = layer.lookup(dir, name)? else {
                continue;
            };
            let Some((inode, kind)) = entry.target else {
                break;
            };
            if last {
                return Ok(Some((layer, inode, kind)));
            }
            if !kind.is_dir() {
                break;
            }
            next.push((layer, inode));
            if layer.inode(inode)?.opaque {
                break;
            }
        }
        dirs = next;
    }
    Ok(None)
}
