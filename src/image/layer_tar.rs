//! Writing a layer as a tar: the same entries in the same order give the same bytes.
//!
//! Everything fits PAX: a plain ustar header, and before it an extended header with what ustar cannot say (long or odd
//! names, large numbers, fractions of a second, xattrs). User and group names are never written: they belong to whoever
//! unpacks. Sockets are left out, as every tar program does.
//!
//! Whiteouts are written in OCI's form: `.wh.NAME`, and `.wh..wh..opq` inside an opaque directory.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;

use crate::meta::{Attr, FileKind, Timestamp};

const BLOCK: usize = 512;
/// Largest number of an octal field of eleven digits.
const OCTAL_11: u64 = 0o77_777_777_777;
const OCTAL_7: u64 = 0o7_777_777;

/// One entry of a layer. Paths have no leading slash; "" is the root directory.
pub struct LayerEntry<'a> {
    pub path: &'a OsStr,
    pub kind: EntryKind<'a>,
}

pub enum EntryKind<'a> {
    Node {
        attr: &'a Attr,
        xattrs: &'a [(OsString, Vec<u8>)],
        content: NodeContent<'a>,
    },
    /// Another name of an entry written before. Attributes and xattrs are written again: some programs (podman's storage)
    /// apply those of the last name to the inode.
    HardLink {
        target: &'a OsStr,
        attr: &'a Attr,
        xattrs: &'a [(OsString, Vec<u8>)],
    },
    /// The name is absent from here down.
    Whiteout,
    /// The directory at `path` hides what lower layers have below it.
    Opaque,
}

pub enum NodeContent<'a> {
    /// Directories, devices, FIFOs, and empty files.
    None,
    /// Target of a symlink.
    Target(&'a OsStr),
    /// Data of a regular file: exactly `attr.size` bytes, holes as zeros.
    Data(&'a mut dyn Read),
    /// Data of a regular file with holes: offset and length of each stretch of data, in order and apart, within
    /// `attr.size`; the reader gives them one after the other.
    Sparse(&'a mut dyn Read, &'a [(u64, u64)]),
}

/// Takes the entries of a tree or of a layer's changes, one by one.
pub trait EntrySink {
    /// Writes one entry.
    ///
    /// # Errors
    /// Those of the output and of the data's reader.
    fn append(&mut self, entry: LayerEntry<'_>) -> io::Result<()>;
}

impl EntrySink for LayerTarWriter<'_> {
    fn append(&mut self, entry: LayerEntry<'_>) -> io::Result<()> {
        Self::append(self, entry)
    }
}

/// Writes entries to `out`.
pub struct LayerTarWriter<'o> {
    out: &'o mut dyn Write,
    entries: u64,
    buffer: Vec<u8>,
}

impl<'o> LayerTarWriter<'o> {
    pub fn new(out: &'o mut dyn Write) -> Self {
        Self {
            out,
            entries: 0,
            buffer: Vec::new(),
        }
    }

    /// Entries written so far (sockets not counted).
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// Those of the output and of the data's reader; `UnexpectedEof` if the data is shorter than the attributes say (a
    /// file that shrinks while it is read). Longer data is cut, as it was when its size was taken.
    pub fn append(&mut self, entry: LayerEntry<'_>) -> io::Result<()> {
        match entry.kind {
            EntryKind::Node { attr, .. } if attr.kind == FileKind::Socket => return Ok(()),
            EntryKind::Node {
                attr,
                xattrs,
                content,
            } => self.node(entry.path, attr, xattrs, content)?,
            EntryKind::HardLink {
                target,
                attr,
                xattrs,
            } => {
                let mut header = Fields::new(entry.path.as_bytes().to_vec(), b'1');
                header.describe(attr, xattrs);
                header.link = target.as_bytes().to_vec();
                self.header(&header)?;
            }
            EntryKind::Whiteout => {
                let (dir, name) = split(entry.path.as_bytes());
                self.marker(&join(dir, &[b".wh.", name].concat()))?;
            }
            EntryKind::Opaque => self.marker(&join(entry.path.as_bytes(), b".wh..wh..opq"))?,
        }
        self.entries += 1;
        Ok(())
    }

    /// Writes the end of the archive.
    pub fn finish(self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }

    /// Writes a member of an archive of images: a file of `size` bytes that `write` produces.
    pub(super) fn member<E: From<io::Error>>(
        &mut self,
        path: &str,
        size: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut header = Fields::new(path.as_bytes().to_vec(), b'0');
        header.size = size;
        self.header(&header)?;
        let mut exact = Exactly {
            out: &mut *self.out,
            left: size,
        };
        write(&mut exact)?;
        if exact.left > 0 {
            return Err(misuse("a member became shorter than announced").into());
        }
        Ok(self.pad(size)?)
    }

    /// An empty file whose name is what matters.
    fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        self.header(&Fields::new(path.to_vec(), b'0'))
    }

    fn node(
        &mut self,
        path: &OsStr,
        attr: &Attr,
        xattrs: &[(OsString, Vec<u8>)],
        content: NodeContent<'_>,
    ) -> io::Result<()> {
        let mut name = path.as_bytes().to_vec();
        let typeflag = match attr.kind {
            FileKind::Regular => b'0',
            FileKind::Symlink => b'2',
            FileKind::CharDevice => b'3',
            FileKind::BlockDevice => b'4',
            FileKind::Directory => {
                // The root, too, needs a name.
                name.extend_from_slice(if name.is_empty() { b"./" } else { b"/" });
                b'5'
            }
            FileKind::Fifo | FileKind::Socket => b'6',
        };
        let mut header = Fields::new(name, typeflag);
        header.describe(attr, xattrs);
        if attr.kind.is_device() {
            header.device = (libc::major(attr.rdev), libc::minor(attr.rdev));
        }
        match (attr.kind, content) {
            (FileKind::Symlink, NodeContent::Target(target)) => {
                header.link = target.as_bytes().to_vec()
            }
            (FileKind::Symlink, _) => return Err(misuse("a symlink without its target")),
            (FileKind::Regular, NodeContent::Data(data)) => {
                header.size = attr.size;
                self.header(&header)?;
                return self.data(data, attr.size);
            }
            (FileKind::Regular, NodeContent::Sparse(data, extents)) => {
                return self.sparse(header, attr.size, data, extents);
            }
            (FileKind::Regular, _) if attr.size > 0 => {
                return Err(misuse("a file without its data"));
            }
            _ => {}
        }
        self.header(&header)
    }

    /// A file with holes, as GNU tar's PAX format 1.0 has it: the map of its data stands before the data.
    fn sparse(
        &mut self,
        mut header: Fields<'_>,
        size: u64,
        data: &mut dyn Read,
        extents: &[(u64, u64)],
    ) -> io::Result<()> {
        let end = extents.last().map_or(0, |(offset, len)| offset + len);
        // A hole at the end shows as a stretch of nothing.
        let last = (end < size).then_some((size, 0));
        let mut map = format!("{}\n", extents.len() + usize::from(last.is_some())).into_bytes();
        for (offset, len) in extents.iter().chain(last.iter()) {
            map.extend_from_slice(format!("{offset}\n{len}\n").as_bytes());
        }
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let stored: u64 = extents.iter().map(|(_, len)| len).sum();
        header.size = map.len() as u64 + stored;
        let name = std::mem::replace(&mut header.name, b"GNUSparseFile.0/file".to_vec());
        header.sparse = Some((name, size));
        self.header(&header)?;
        self.out.write_all(&map)?;
        self.data(data, stored)
    }

    fn data(&mut self, data: &mut dyn Read, size: u64) -> io::Result<()> {
        self.buffer.resize(128 << 10, 0);
        let mut left = size;
        while left > 0 {
            let want = self
                .buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match data.read(&mut self.buffer[..want]) {
                Ok(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "a file became shorter",
                    ));
                }
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            self.out.write_all(&self.buffer[..got])?;
            left -= got as u64;
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.wrapping_neg() as usize % BLOCK;
        self.out.write_all(&[0; BLOCK][..padding])
    }

    fn header(&mut self, fields: &Fields<'_>) -> io::Result<()> {
        let records = fields.pax_records();
        if !records.is_empty() {
            let mut extension = Fields::new(b"PaxHeaders/0".to_vec(), b'x');
            extension.size = records.len() as u64;
            self.out.write_all(&extension.block())?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.out.write_all(&fields.block())
    }
}

/// Takes no more bytes than were announced.
struct Exactly<'o> {
    out: &'o mut dyn Write,
    left: u64,
}

impl Write for Exactly<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if buf.len() as u64 > self.left {
            return Err(misuse("a member became longer than announced"));
        }
        let n = self.out.write(buf)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn misuse(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_owned())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

/// What a header says, before it is put into ustar and PAX.
struct Fields<'a> {
    name: Vec<u8>,
    link: Vec<u8>,
    typeflag: u8,
    perm: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: Timestamp,
    device: (u32, u32),
    /// Name and size of a file whose body begins with a map.
    sparse: Option<(Vec<u8>, u64)>,
    xattrs: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Fields<'a> {
    /// Takes over what is said of a node beside its kind and size.
    fn describe(&mut self, attr: &Attr, xattrs: &'a [(OsString, Vec<u8>)]) {
        (self.perm, self.uid, self.gid) = (attr.perm & 0o7777, attr.uid, attr.gid);
        self.mtime = attr.mtime;
        self.xattrs = xattrs
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_slice()))
            .collect();
        self.xattrs.sort();
    }

    fn new(name: Vec<u8>, typeflag: u8) -> Self {
        Self {
            name,
            link: Vec::new(),
            typeflag,
            perm: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Timestamp::new(0, 0),
            device: (0, 0),
            sparse: None,
            xattrs: Vec::new(),
        }
    }

    /// What ustar cannot say, in a fixed order.
    fn pax_records(&self) -> Vec<u8> {
        let mut records = Vec::new();
        if let Some((name, size)) = &self.sparse {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", name);
            let size = size.to_string();
            record(&mut records, b"GNU.sparse.realsize", size.as_bytes());
        }
        if self.ustar_name().is_none() {
            record(&mut records, b"path", &self.name);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", &self.link);
        }
        if self.size > OCTAL_11 {
            record(&mut records, b"size", self.size.to_string().as_bytes());
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if u64::from(id) > OCTAL_7 {
                record(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if self.ustar_mtime().is_none() {
            record(&mut records, b"mtime", decimal_time(self.mtime).as_bytes());
        }
        for (name, value) in &self.xattrs {
            if name.contains(&b'=') || std::str::from_utf8(name).is_err() {
                // Such a name would break the record; libarchive's spelling can carry it.
                let key = format!("LIBARCHIVE.xattr.{}", percent_encode(name));
                record(&mut records, key.as_bytes(), base64(value).as_bytes());
            } else {
                record(&mut records, &[b"SCHILY.xattr.", *name].concat(), value);
            }
        }
        records
    }

    /// Prefix and name, if they fit.
    fn ustar_name(&self) -> Option<(&[u8], &[u8])> {
        if self.name.len() <= 100 {
            return Some((b"", &self.name));
        }
        // The slash between prefix and name is not stored; both sides must be non-empty.
        let slash = |i: &usize| self.name[*i] == b'/' && self.name.len() - i - 1 <= 100;
        let last = self.name.len().checked_sub(2)?;
        let at = (1..=last.min(155)).rev().find(slash)?;
        Some((&self.name[..at], &self.name[at + 1..]))
    }

    fn ustar_mtime(&self) -> Option<u64> {
        u64::try_from(self.mtime.secs)
            .ok()
            .filter(|&secs| self.mtime.nanos == 0 && secs <= OCTAL_11)
    }

    fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        // What the PAX header says better stands here as far as it fits.
        let (prefix, name) = self
            .ustar_name()
            .unwrap_or((b"", &self.name[..self.name.len().min(100)]));
        block[..name.len()].copy_from_slice(name);
        block[345..345 + prefix.len()].copy_from_slice(prefix);
        let link = &self.link[..self.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        octal(&mut block[100..108], self.perm.into());
        octal(&mut block[108..116], u64::from(self.uid).min(OCTAL_7));
        octal(&mut block[116..124], u64::from(self.gid).min(OCTAL_7));
        octal(
            &mut block[124..136],
            if self.size > OCTAL_11 { 0 } else { self.size },
        );
        octal(
            &mut block[136..148],
            self.ustar_mtime()
                .unwrap_or(self.mtime.secs.max(0) as u64)
                .min(OCTAL_11),
        );
        block[156] = self.typeflag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        // Device numbers beyond seven digits do not exist on Linux: 12 and 20 bits.
        octal(&mut block[329..337], u64::from(self.device.0).min(OCTAL_7));
        octal(&mut block[337..345], u64::from(self.device.1).min(OCTAL_7));
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|&b| u64::from(b)).sum();
        octal(&mut block[148..155], sum);
        block
    }
}

/// Digits with leading zeros, and a NUL.
fn octal(field: &mut [u8], mut value: u64) {
    let digits = field.len() - 1;
    for place in field[..digits].iter_mut().rev() {
        *place = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    field[digits] = 0;
}

/// Appends `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    records.extend_from_slice(len.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

fn percent_encode(name: &[u8]) -> String {
    let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'%' | b'=');
    name.iter()
        .map(|b| {
            if plain(b) {
                char::from(*b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// Base64 without padding, as libarchive writes it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |i| u32::from(group.get(i).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..=group.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

/// Seconds with a fraction, signed as a whole: one and a half seconds before the epoch is `-1.5`.
fn decimal_time(time: Timestamp) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let (secs, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{secs}"),
        _ => format!(
            "{sign}{secs}.{}",
            format!("{fraction:09}").trim_end_matches('0')
        ),
    }
}
