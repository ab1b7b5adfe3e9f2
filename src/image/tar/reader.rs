//! A tar stream as a sequence of entries, every byte accounted for.
//!
//! Calls go in a circle: [`TarReader::next`] reads headers and extensions (their bytes go to its tap), then
//! [`TarReader::body`] as often as wanted, then `next` again, which taps what was left of the body and the padding.
//! After `next` gave `None`, [`TarReader::trailer`] taps the rest of the stream. Tapped bytes and body bytes, in the
//! order they were given, are the stream.

use std::io::{self, BufRead};

use crate::meta::Timestamp;

use super::header::{Format, Header};
use super::pax::{self, PaxHeader, SparseKeys};
use super::sparse::{self, Extent, Map10, OldGnu};
use super::{BLOCK, Fault, TarError};

/// Bounds on what one entry may make us hold in memory.
#[derive(Clone, Copy, Debug)]
pub struct TarLimits {
    /// Longest name or link target, bytes.
    pub path: usize,
    /// Longest body of a PAX header, bytes.
    pub extension: u64,
    /// Largest file with its holes, bytes.
    pub file_size: u64,
}

/// Type of an entry; extension headers never come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// Says nothing about the tree: a global PAX header or a GNU volume label.
    Note,
}

/// An entry with all its extensions applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As written: may be absolute, hold `..`, end in a slash.
    pub path: Vec<u8>,
    /// Target of a symlink or hard link.
    pub link: Vec<u8>,
    pub kind: Kind,
    pub perm: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Size of the file with its holes.
    pub size: u64,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub acl_access: Option<Vec<u8>>,
    pub acl_default: Option<Vec<u8>>,
    /// Of a sparse file: where its data lies.
    pub extents: Option<Vec<Extent>>,
    /// Bytes of body in the archive.
    pub stored: u64,
}

/// Extension headers waiting for their entry.
#[derive(Default)]
struct Extensions {
    pax: Option<PaxHeader>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

/// Reads tar from `input`.
pub struct TarReader<R> {
    input: R,
    limits: TarLimits,
    /// Bytes read so far.
    offset: u64,
    /// Of the current entry: body bytes and padding not yet read.
    body_left: u64,
    padding: u64,
    /// Where the header being read starts, and the name it gave, for messages.
    header_at: u64,
    name: Option<Vec<u8>>,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    pub fn new(input: R, limits: TarLimits) -> Self {
        Self {
            input,
            limits,
            offset: 0,
            body_left: 0,
            padding: 0,
            header_at: 0,
            name: None,
            ended: false,
        }
    }

    /// Bytes read so far; right after `next`: where the body begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next entry, or `None` at the end of the archive (two zero blocks, one and the end of the stream, or just the
    /// end of the stream, the last file's padding missing or not).
    ///
    /// # Errors
    /// The first malformation ends it; the reader must not be used after that.
    pub fn next<E: From<TarError>>(
        &mut self,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Option<Entry>, E> {
        self.finish_body(tap)?;
        let mut extensions = Extensions::default();
        while !self.ended {
            self.header_at = self.offset;
            self.name = None;
            let Some(block) = self.block()? else {
                self.ended = true;
                break;
            };
            tap(&block)?;
            if block == [0; BLOCK] {
                self.end_marker(tap)?;
                break;
            }
            let header = Header::parse(&block).map_err(|fault| self.fault(fault))?;
            self.name = Some(header.name.clone());
            match header.typeflag {
                flag @ (b'x' | b'L' | b'K') => {
                    self.extension(flag, &header, &mut extensions, tap)?
                }
                b'g' => {
                    let body = self.small_body(&header, tap)?;
                    pax::parse_global(&body).map_err(|fault| self.fault(fault))?;
                }
                _ => return self.entry(&block, header, extensions, tap).map(Some),
            }
        }
        if !extensions.is_empty() {
            return Err(self.fault(Fault::OrphanExtension).into());
        }
        Ok(None)
    }

    /// Hands exactly `len` bytes of the current body to `sink`, in pieces.
    ///
    /// # Panics
    /// If `len` is more than the body has left: a bug in the caller.
    pub fn body<E: From<TarError>>(
        &mut self,
        len: u64,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        assert!(len <= self.body_left, "reading beyond an entry's body");
        self.body_left -= len;
        self.pass(len, sink)
    }

    /// Goes over the rest of the current entry with `skip`, which moves the input on by so many bytes without reading. The
    /// stream has `len` bytes in all.
    pub fn skip_body(
        &mut self,
        len: u64,
        skip: impl FnOnce(&mut R, u64) -> io::Result<()>,
    ) -> Result<(), TarError> {
        let (body, padding) = (self.body_left, self.padding);
        (self.body_left, self.padding) = (0, 0);
        let end = self.offset.checked_add(body).filter(|end| *end <= len);
        let end = end.ok_or_else(|| self.fault(Fault::Truncated))?;
        // As after a body that was read: the last padding may be missing.
        let there = padding.min(len - end);
        self.ended |= there < padding;
        self.offset = end + there;
        Ok(skip(&mut self.input, body + there)?)
    }

    /// A reader over the rest of the current body.
    pub fn body_reader(&mut self) -> BodyReader<'_, R> {
        BodyReader { tar: self }
    }

    /// Taps everything after the end of the archive, to the end of the stream.
    pub fn trailer<E: From<TarError>>(
        &mut self,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let bytes = fill(&mut self.input).map_err(TarError::Read)?;
            if bytes.is_empty() {
                return Ok(());
            }
            tap(bytes)?;
            let len = bytes.len();
            self.input.consume(len);
            self.offset += len as u64;
        }
    }

    fn finish_body<E: From<TarError>>(
        &mut self,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (len, padding) = (self.body_left, self.padding);
        (self.body_left, self.padding) = (0, 0);
        self.pass(len, tap)?;
        // `umoci insert` ends a layer right behind the last file's data, without padding, and Go's reader lets it.
        self.ended |= !self.pass_some(padding, tap)?;
        Ok(())
    }

    fn pass<E: From<TarError>>(
        &mut self,
        len: u64,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.pass_some(len, sink)? {
            Ok(())
        } else {
            Err(self.fault(Fault::Truncated).into())
        }
    }

    /// Hands on `len` bytes, or `false` and what there is of them.
    fn pass_some<E: From<TarError>>(
        &mut self,
        mut len: u64,
        sink: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        while len > 0 {
            let bytes = fill(&mut self.input).map_err(TarError::Read)?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let take = bytes.len().min(usize::try_from(len).unwrap_or(usize::MAX));
            sink(&bytes[..take])?;
            self.input.consume(take);
            self.offset += take as u64;
            len -= take as u64;
        }
        Ok(true)
    }

    /// The next block, or `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = fill(&mut self.input)?;
            if bytes.is_empty() {
                if filled == 0 {
                    return Ok(None);
                }
                return Err(self.fault(Fault::Truncated));
            }
            let take = bytes.len().min(BLOCK - filled);
            block[filled..filled + take].copy_from_slice(&bytes[..take]);
            self.input.consume(take);
            self.offset += take as u64;
            filled += take;
        }
        Ok(Some(block))
    }

    /// A block that must be there.
    fn inner_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        self.block()?.ok_or_else(|| self.fault(Fault::Truncated))
    }

    /// After a zero block: another one, or the end of the stream.
    fn end_marker<E: From<TarError>>(
        &mut self,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.ended = true;
        if let Some(block) = self.block()? {
            if block != [0; BLOCK] {
                return Err(self.fault(Fault::LoneZeroBlock).into());
            }
            tap(&block)?;
        }
        Ok(())
    }

    fn extension<E: From<TarError>>(
        &mut self,
        flag: u8,
        header: &Header,
        extensions: &mut Extensions,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut body = self.small_body(header, tap)?;
        let twice = match flag {
            b'x' => {
                let pax = PaxHeader::parse(&body).map_err(|fault| self.fault(fault))?;
                extensions.pax.replace(pax).is_some()
            }
            _ => {
                // The name ends at its NUL; GNU tar counts that byte in the size, others do not write it.
                let end = body.iter().position(|&b| b == 0).unwrap_or(body.len());
                body.truncate(end);
                let slot = if flag == b'L' {
                    &mut extensions.long_name
                } else {
                    &mut extensions.long_link
                };
                slot.replace(body).is_some()
            }
        };
        if twice {
            return Err(self.fault(Fault::DuplicateExtension(flag)).into());
        }
        Ok(())
    }

    /// The body of an extension header, in memory, and its padding tapped.
    fn small_body<E: From<TarError>>(
        &mut self,
        header: &Header,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let len = u64::try_from(header.size).map_err(|_| self.fault(Fault::Range("size")))?;
        let max = self.limits.extension;
        if len > max {
            return Err(self
                .fault(Fault::TooLarge {
                    what: "an extension header",
                    len,
                    max,
                })
                .into());
        }
        let mut body = Vec::new();
        self.pass(len, &mut |bytes: &[u8]| {
            body.extend_from_slice(bytes);
            tap(bytes)
        })?;
        self.pass(padding(len), tap)?;
        Ok(body)
    }

    fn entry<E: From<TarError>>(
        &mut self,
        block: &[u8; BLOCK],
        header: Header,
        extensions: Extensions,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Entry, E> {
        let pax = extensions.pax.unwrap_or_default();
        let stored = pax
            .size
            .map_or_else(|| u64::try_from(header.size).ok(), Some);
        let stored = stored.ok_or_else(|| self.fault(Fault::Range("size")))?;
        let mut entry = Entry {
            path: extensions.long_name.or(pax.path).unwrap_or(header.name),
            link: extensions.long_link.or(pax.link).unwrap_or(header.link),
            kind: Kind::Note,
            perm: header.perm,
            uid: self.id(pax.uid, header.uid, "uid")?,
            gid: self.id(pax.gid, header.gid, "gid")?,
            mtime: pax.mtime.unwrap_or(Timestamp::new(header.mtime, 0)),
            device: (0, 0),
            size: 0,
            xattrs: pax.xattrs,
            acl_access: pax.acl_access,
            acl_default: pax.acl_default,
            extents: None,
            stored,
        };
        self.name = Some(entry.path.clone());
        entry.kind = kind(header.typeflag, &entry.path).map_err(|fault| self.fault(fault))?;
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            let number =
                |n| u32::try_from(n).map_err(|_| self.fault(Fault::Range("device number")));
            entry.device = (number(header.dev_major)?, number(header.dev_minor)?);
        }
        // A body belongs to files only, whatever the size field of others says; and to incremental GNU directories.
        let has_body = matches!(entry.kind, Kind::Regular | Kind::Note) || header.typeflag == b'D';
        if !has_body {
            entry.stored = 0;
        }
        self.body_left = entry.stored;
        self.padding = padding(entry.stored);
        if header.typeflag == b'S' {
            self.old_gnu_sparse(block, header.format, &mut entry, tap)?;
        } else if pax.sparse != SparseKeys::default() {
            self.pax_sparse(pax.sparse, &mut entry, tap)?;
        } else if entry.kind == Kind::Regular {
            entry.size = entry.stored;
        }
        self.check_sizes(&entry)?;
        Ok(entry)
    }

    fn id(&self, pax: Option<u32>, header: i64, what: &'static str) -> Result<u32, TarError> {
        pax.map_or_else(|| u32::try_from(header), Ok)
            .map_err(|_| self.fault(Fault::Range(what)))
    }

    fn check_sizes(&self, entry: &Entry) -> Result<(), TarError> {
        let path = self.limits.path as u64;
        for (what, len, max) in [
            ("the name", entry.path.len() as u64, path),
            ("the link target", entry.link.len() as u64, path),
            ("the file", entry.size, self.limits.file_size),
            ("the body", entry.stored, i64::MAX as u64 - BLOCK as u64),
        ] {
            if len > max {
                return Err(self.fault(Fault::TooLarge { what, len, max }));
            }
        }
        Ok(())
    }

    fn old_gnu_sparse<E: From<TarError>>(
        &mut self,
        block: &[u8; BLOCK],
        format: Format,
        entry: &mut Entry,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if format != Format::Gnu {
            return Err(self.fault(Fault::UnknownType(b'S')).into());
        }
        let mut map = OldGnu::parse(block).map_err(|fault| self.fault(fault))?;
        while map.extended {
            let block = self.inner_block()?;
            tap(&block)?;
            map.extend(&block).map_err(|fault| self.fault(fault))?;
        }
        self.set_sparse(entry, map.extents, map.real_size)?;
        Ok(())
    }

    fn pax_sparse<E: From<TarError>>(
        &mut self,
        keys: SparseKeys,
        entry: &mut Entry,
        tap: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if entry.kind != Kind::Regular {
            return Err(self
                .fault(Fault::Sparse("only regular files can be sparse"))
                .into());
        }
        if let Some(name) = keys.name {
            entry.path = name;
            self.name = Some(entry.path.clone());
        }
        let real_size = keys
            .real_size
            .ok_or_else(|| self.fault(Fault::Sparse("the file's size is missing")))?;
        let extents = match (keys.major, keys.minor, keys.map) {
            (Some(1), Some(0), None) => {
                let mut map = Map10::default();
                loop {
                    if entry.stored < BLOCK as u64 {
                        return Err(self
                            .fault(Fault::Sparse("the map does not fit the body"))
                            .into());
                    }
                    let block = self.inner_block()?;
                    tap(&block)?;
                    entry.stored -= BLOCK as u64;
                    self.body_left = entry.stored;
                    if let Some(extents) = map.take(&block).map_err(|fault| self.fault(fault))? {
                        break extents;
                    }
                }
            }
            (None | Some(0), _, Some(map)) => map,
            _ => {
                return Err(self
                    .fault(Fault::Sparse("unknown version, or no map"))
                    .into());
            }
        };
        self.set_sparse(entry, extents, real_size)?;
        Ok(())
    }

    fn set_sparse(
        &mut self,
        entry: &mut Entry,
        extents: Vec<Extent>,
        real_size: u64,
    ) -> Result<(), TarError> {
        sparse::validate(&extents, real_size, entry.stored).map_err(|fault| self.fault(fault))?;
        entry.size = real_size;
        entry.extents = Some(extents);
        Ok(())
    }

    fn fault(&self, fault: Fault) -> TarError {
        TarError::Format {
            offset: self.header_at,
            entry: self.name.clone(),
            fault,
        }
    }
}

/// The rest of an entry's body as a stream. A body that ends early is an error of kind `UnexpectedEof`.
pub struct BodyReader<'a, R> {
    tar: &'a mut TarReader<R>,
}

impl<R: BufRead> io::Read for BodyReader<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let take = bytes.len().min(buf.len());
        buf[..take].copy_from_slice(&bytes[..take]);
        self.consume(take);
        Ok(take)
    }
}

impl<R: BufRead> BufRead for BodyReader<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let tar = &mut *self.tar;
        if tar.body_left == 0 {
            return Ok(&[]);
        }
        if fill(&mut tar.input)?.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                tar.fault(Fault::Truncated),
            ));
        }
        let bytes = tar.input.fill_buf()?;
        let take = bytes
            .len()
            .min(usize::try_from(tar.body_left).unwrap_or(usize::MAX));
        Ok(&bytes[..take])
    }

    fn consume(&mut self, len: usize) {
        self.tar.input.consume(len);
        self.tar.offset += len as u64;
        self.tar.body_left -= len as u64;
    }
}

/// `fill_buf` that retries interrupted reads.
fn fill<R: BufRead>(input: &mut R) -> Result<&[u8], io::Error> {
    loop {
        match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The borrow checker cannot return the slice of the match itself from a loop.
            Ok(_) => break,
            Err(error) => return Err(error),
        }
    }
    input.fill_buf()
}

fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK as u64
}

fn kind(typeflag: u8, path: &[u8]) -> Result<Kind, Fault> {
    Ok(match typeflag {
        // V7 wrote directories as empty files whose name ends in a slash.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' | b'D' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'V' => Kind::Note,
        other => return Err(Fault::UnknownType(other)),
    })
}
