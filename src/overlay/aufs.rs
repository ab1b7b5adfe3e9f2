//! Whiteouts in AUFS style in the upper: what image layers look like when they are unpacked as they are, and what
//! programs that know no other form expect to find.
//!
//! `.wh.NAME` hides NAME in the lowers; `.wh..wh..opq` in a directory hides all that the lowers have there. A mark stays
//! when its name is made anew: a name beside its mark is the upper's alone, and a directory beside its mark is opaque
//! unless it has a redirect. So a mark is never in the way, and nothing has to be done in two steps.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Result;
use super::engine::Overlay;
use super::upper::{Marks, Upper};
use crate::layer::{host, whiteout};

/// What `.wh.` names in the upper are. (In lowers they are always whiteouts.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aufs {
    /// Files like others, as for the kernel's overlayfs.
    #[default]
    Ordinary,
    /// Whiteouts; such names can be neither seen nor made.
    Read,
    /// Besides, new whiteouts are written in this form.
    Write,
}

impl Upper {
    /// Is this name one that the mount's users can neither see nor make?
    pub(super) fn reserves(&self, name: &OsStr) -> bool {
        self.aufs != Aufs::Ordinary && whiteout::is_aufs_name(name)
    }

    /// Is `name`, which `dir` lacks, hidden by a mark?
    pub(super) fn is_marked(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
        Ok(self.aufs != Aufs::Ordinary && whiteout::aufs_marks(dir, name)?)
    }

    /// Hides `name` by a mark beside it, if that is how it is done here and the mark's name is not too long. `true`: the
    /// mark is new.
    pub(super) fn mark_hidden(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<Option<bool>> {
        let mark = match whiteout::aufs_mark(name) {
            Some(mark) if self.aufs == Aufs::Write => mark,
            _ => return Ok(None),
        };
        make_file(dir, &mark).map(Some)
    }

    /// Takes a new mark away again.
    pub(super) fn unmark_hidden(&self, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
        match whiteout::aufs_mark(name) {
            Some(mark) => rustix::fs::unlinkat(dir, mark, AtFlags::empty()),
            None => Ok(()),
        }
    }

    /// Takes `name` away, which a mark beside it hides from now on.
    pub(super) fn drop_marked(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        was_dir: bool,
    ) -> Result<()> {
        if !was_dir {
            return rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        let temp = self.temp_name();
        rustix::fs::renameat(dir, name, self.work(), temp.as_os_str())?;
        // What cannot be removed goes with the next mount.
        let _ = self.remove_work(&temp);
        Ok(())
    }

    /// Makes an open directory opaque: nothing of the lowers shows through it.
    pub(super) fn make_opaque(&self, dir: BorrowedFd<'_>) -> Result<()> {
        self.mark(dir, "opaque", b"y")?;
        if self.aufs == Aufs::Write {
            make_file(dir, OsStr::new(whiteout::AUFS_OPAQUE))?;
        }
        Ok(())
    }

    /// Is the directory `name` of `dir` opaque? In whatever form, if others may have written it.
    pub(super) fn is_opaque_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        marks: &Marks,
    ) -> Result<bool> {
        if marks.has("opaque") && self.mark_at(dir, name, "opaque")?.as_deref() == Some(b"y") {
            return Ok(true);
        }
        if self.aufs == Aufs::Ordinary {
            return Ok(false);
        }
        let fd = host::open_at(
            dir,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW,
        )?;
        Ok(whiteout::is_opaque(fd.as_fd())?
            || (whiteout::aufs_marks(dir, name)? && self.mark_at(dir, name, "redirect")?.is_none()))
    }

    /// The same of the upper's root.
    pub(super) fn is_root_opaque(&self) -> bool {
        let root = self.root().as_fd();
        matches!(self.mark_of(root, "opaque"), Ok(Some(v)) if v == b"y")
            || (self.aufs != Aufs::Ordinary && whiteout::is_opaque(root).unwrap_or(false))
    }
}

impl Overlay {
    /// The names an upper directory says something of, as the mount's users call them.
    pub(super) fn names_in_upper(&self, dir: BorrowedFd<'_>) -> Result<Vec<OsString>> {
        let marks = self.some_upper()?.aufs != Aufs::Ordinary;
        let entries = host::read_dir(dir)?.into_iter();
        let name = |entry: host::RawEntry| match whiteout::aufs_name(&entry.name) {
            whiteout::Aufs::Whiteout(name) if marks => Some(name.to_os_string()),
            whiteout::Aufs::Internal if marks => None,
            _ => Some(entry.name),
        };
        Ok(entries.filter_map(name).collect())
    }

    /// EPERM for a name that would be a mark, here or as a lower of another mount.
    pub(super) fn check_reserved(&self, name: &OsStr) -> Result<()> {
        match &self.upper {
            Some(upper) if upper.reserves(name) => Err(Errno::PERM),
            _ => Ok(()),
        }
    }
}

/// `false`: it is there already.
fn make_file(dir: BorrowedFd<'_>, name: &OsStr) -> Result<bool> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(e) => Err(e),
    }
}
