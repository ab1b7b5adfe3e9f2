//! A stand-in for the tar importer: makes a stream with headers and padding, and tells the store about it.
#![allow(dead_code)] // Each test binary uses its own part of this.

use std::ffi::OsStr;

use ovl::meta::{FileKind, Timestamp};
use ovl::store::{ContentToken, Digest, LayerInfo, LayerWriter, NewNode, NodeMeta, Result, Store};

/// Reproducible bytes without repetition.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(len)
    .collect()
}

pub fn meta() -> NodeMeta {
    NodeMeta {
        perm: 0o644,
        uid: 0,
        gid: 0,
        mtime: Timestamp::new(1, 0),
        xattrs: Vec::new(),
    }
}

/// One layer being written, and the bytes of its stream.
pub struct Tar {
    pub writer: LayerWriter,
    pub bytes: Vec<u8>,
}

impl Tar {
    pub fn new(store: &Store) -> Self {
        Self {
            writer: store.layer_writer().unwrap(),
            bytes: Vec::new(),
        }
    }

    pub fn literal(&mut self, bytes: &[u8]) {
        self.writer.literal(bytes).unwrap();
        self.bytes.extend_from_slice(bytes);
    }

    fn header(&mut self, path: &str) -> Result<()> {
        let mut header = [0; 512];
        let take = path.len().min(100);
        header[..take].copy_from_slice(&path.as_bytes()[..take]);
        self.writer.literal(&header)?;
        self.bytes.extend_from_slice(&header);
        Ok(())
    }

    pub fn content(&mut self, parts: &[std::result::Result<&[u8], u64>]) -> Result<ContentToken> {
        self.writer.begin_content(0)?;
        for part in parts {
            match part {
                Ok(data) => {
                    for piece in data.chunks(100_000) {
                        self.writer.data(piece)?;
                        self.bytes.extend_from_slice(piece);
                    }
                }
                Err(hole) => self.writer.hole(*hole)?,
            }
        }
        let token = self.writer.end_content()?;
        let padding = vec![0; self.bytes.len().next_multiple_of(512) - self.bytes.len()];
        self.writer.literal(&padding)?;
        self.bytes.extend_from_slice(&padding);
        Ok(token)
    }

    pub fn try_file(&mut self, path: &str, data: &[u8]) -> Result<()> {
        self.header(path)?;
        let token = self.content(&[Ok(data)])?;
        self.writer
            .add(path.as_ref(), &meta(), NewNode::Regular(token))
    }

    pub fn file(&mut self, path: &str, data: &[u8]) {
        self.try_file(path, data).unwrap();
    }

    /// `Ok` is data, `Err` is a hole of so many bytes.
    pub fn sparse(&mut self, path: &str, parts: &[std::result::Result<&[u8], u64>]) {
        self.header(path).unwrap();
        let token = self.content(parts).unwrap();
        self.writer
            .add(path.as_ref(), &meta(), NewNode::Regular(token))
            .unwrap();
    }

    pub fn dir(&mut self, path: &str) {
        self.header(path).unwrap();
        let meta = NodeMeta {
            perm: 0o755,
            ..meta()
        };
        self.writer
            .add(path.as_ref(), &meta, NewNode::Directory)
            .unwrap();
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.header(path).unwrap();
        self.writer
            .add(path.as_ref(), &meta(), NewNode::Symlink(OsStr::new(target)))
            .unwrap();
    }

    pub fn special(&mut self, path: &str, kind: FileKind, rdev: u64) {
        self.header(path).unwrap();
        self.writer
            .add(path.as_ref(), &meta(), NewNode::Special { kind, rdev })
            .unwrap();
    }

    /// One step of a test table: `f PATH DATA`, `d PATH`, `l PATH TARGET`, `h PATH TARGET`, `w PATH`, `o PATH`, `F DATA`
    /// (a file as the root).
    pub fn step(&mut self, step: &str) -> Result<()> {
        let (what, rest) = step.split_once(' ').unwrap();
        let (path, arg) = rest.split_once(' ').unwrap_or((rest, ""));
        match what {
            "f" => self.try_file(path, arg.as_bytes()),
            "F" => self.try_file("", path.as_bytes()),
            "d" => self.writer.add(
                path.as_ref(),
                &NodeMeta {
                    perm: 0o755,
                    ..meta()
                },
                NewNode::Directory,
            ),
            "l" => self
                .writer
                .add(path.as_ref(), &meta(), NewNode::Symlink(OsStr::new(arg))),
            "h" => self
                .writer
                .add_hard_link(path.as_ref(), arg.as_ref())
                .map(drop),
            "w" => self.writer.add_whiteout(path.as_ref()),
            "o" => self.writer.add_opaque(path.as_ref()),
            _ => panic!("unknown step {step:?}"),
        }
    }

    pub fn try_finish(self) -> Result<LayerInfo> {
        self.writer.finish(&Digest::of(&self.bytes))
    }

    /// The layer and its tar.
    pub fn finish(self) -> (LayerInfo, Vec<u8>) {
        let diff_id = Digest::of(&self.bytes);
        (self.writer.finish(&diff_id).unwrap(), self.bytes)
    }
}
