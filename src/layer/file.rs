//! An open regular file of a layer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Result;
use crate::store::{self, ContentReader};

/// An open regular file of a layer, for reading.
#[derive(Clone)]
pub enum LayerFile {
    /// A host file: reads, reflinks and passthrough go to this descriptor.
    Fd(Arc<OwnedFd>),
    Stored(Arc<ContentReader>),
}

fn errno(e: store::Error) -> Errno {
    tracing::error!("stored file: {e}");
    Errno::IO
}

/// Fills `buf` from `offset`; short only at the end of the file.
pub fn read_full(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(fd, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

impl LayerFile {
    /// The host descriptor, where there is one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Fd(fd) => Some(fd.as_fd()),
            Self::Stored(_) => None,
        }
    }

    /// Fills `buf` from `offset`; short only at the end of the file. Holes read as zeros.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if offset > i64::MAX as u64 {
            return Err(Errno::INVAL);
        }
        match self {
            Self::Fd(fd) => read_full(fd.as_fd(), offset, buf),
            Self::Stored(content) => content.read_at(offset, buf).map_err(errno),
        }
    }

    /// First data byte at or after `offset`; `None` when only holes follow.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        match self {
            Self::Fd(fd) => match rustix::fs::seek(fd, SeekFrom::Data(offset)) {
                Ok(at) => Ok(Some(at)),
                Err(Errno::NXIO) => Ok(None),
                Err(e) => Err(e),
            },
            Self::Stored(content) => content.next_data(offset).map_err(errno),
        }
    }

    /// First hole at or after `offset`; the end of the file counts as one.
    pub fn next_hole(&self, offset: u64) -> Result<u64> {
        match self {
            Self::Fd(fd) => rustix::fs::seek(fd, SeekFrom::Hole(offset)),
            Self::Stored(content) => content.next_hole(offset).map_err(errno),
        }
    }
}
