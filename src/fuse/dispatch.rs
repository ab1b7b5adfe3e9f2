//! One request from its bytes to the bytes of its answer, in the same buffer.

use super::answers::{Answer, Answers, Code, XattrAnswer};
use super::convert::rdev_in;
use super::seek;
use super::wire::{Head, Op};
use super::wire_out::{Full, Lifetimes, Out};
use crate::meta::Attr;
use crate::overlay::{Entry, FsStat, NodeId};

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer's length.
    Done(Answer<usize>),
    /// The reply that was asked for will come.
    Later,
}

/// An answer that borrows nothing of its question.
enum Reply {
    Nothing,
    Entry(Entry),
    Absent,
    Attr(Attr),
    Bytes(Vec<u8>),
    Open(u32),
    Created(Entry, u32),
    Count(u32),
    StatFs(FsStat),
    Ioctl(Vec<u8>),
    /// Written where the question was, of which nothing is needed any more.
    Read {
        offset: u64,
        size: usize,
    },
    Items {
        offset: u64,
        size: usize,
        plus: bool,
    },
    Later,
}

impl From<Full> for Code {
    fn from(_: Full) -> Self {
        Self::EIO
    }
}

/// Answers the request that `head`, `words` and the first `len` bytes of `payload` are, into `payload`. `later` makes
/// what takes the answer of a request that must not be waited for.
pub fn answer(
    answers: &Answers,
    head: &Head,
    words: &[u8],
    payload: &mut [u8],
    len: usize,
    later: impl FnOnce() -> seek::Reply,
) -> Outcome {
    let rest = &payload[..len.min(payload.len())];
    let Some(op) = Op::parse(head.opcode, words, rest) else {
        tracing::warn!(opcode = head.opcode, len, "a request that is none");
        return Outcome::Done(Err(Code::EIO));
    };
    match ask(answers, head, op, later) {
        Ok(Reply::Later) => Outcome::Later,
        Ok(reply) => Outcome::Done(write(answers, head.node, reply, payload)),
        Err(code) => Outcome::Done(Err(code)),
    }
}

fn ask(
    answers: &Answers,
    head: &Head,
    op: Op<'_>,
    later: impl FnOnce() -> seek::Reply,
) -> Answer<Reply> {
    let (node, caller) = (head.node, head.caller);
    let nothing = |()| Reply::Nothing;
    let xattr = |answer| match answer {
        XattrAnswer::Size(size) => Reply::Count(size),
        XattrAnswer::Data(data) => Reply::Bytes(data),
    };
    match op {
        Op::Lookup { name } => answers
            .lookup(node, name)
            .map(|found| found.map_or(Reply::Absent, Reply::Entry)),
        Op::Forget { count } => {
            answers.forget(node, count);
            Ok(Reply::Nothing)
        }
        Op::GetAttr => answers.getattr(node).map(Reply::Attr),
        Op::SetAttr(set) => answers.setattr(caller, node, &set).map(Reply::Attr),
        Op::ReadLink => answers
            .readlink(node)
            .map(|target| Reply::Bytes(target.into_encoded_bytes())),
        Op::Symlink { name, target } => answers
            .symlink(caller, (node, name), target)
            .map(Reply::Entry),
        Op::MkNod {
            mode,
            umask,
            rdev,
            name,
        } => answers
            .mknod(caller, (node, name), mode, umask, rdev_in(rdev))
            .map(Reply::Entry),
        Op::MkDir { mode, umask, name } => answers
            .mkdir(caller, (node, name), mode, umask)
            .map(Reply::Entry),
        Op::Unlink { name } => answers.unlink(node, name).map(nothing),
        Op::RmDir { name } => answers.rmdir(node, name).map(nothing),
        Op::Rename {
            name,
            new_parent,
            new_name,
            flags,
        } => answers
            .rename((node, name), (new_parent, new_name), flags)
            .map(nothing),
        Op::Link { node: old, name } => answers.link(old, node, name).map(Reply::Entry),
        Op::Open { flags } => {
            let write = flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY;
            answers.open(node, write).map(Reply::Open)
        }
        Op::Read { offset, size } => Ok(Reply::Read {
            offset,
            size: size as usize,
        }),
        Op::Write {
            offset,
            flags,
            data,
        } => answers.write(node, offset, data, flags).map(Reply::Count),
        Op::StatFs => answers.statfs().map(Reply::StatFs),
        Op::Release => Ok(Reply::Nothing),
        Op::FSync { datasync } => answers.fsync(node, datasync).map(nothing),
        Op::FSyncDir { datasync } => answers.fsyncdir(node, datasync).map(nothing),
        Op::SetXattr { name, value, flags } => {
            answers.setxattr(node, name, value, flags).map(nothing)
        }
        Op::GetXattr { name, room } => answers.getxattr(node, name, room).map(xattr),
        Op::ListXattr { room } => answers.listxattr(node, room).map(xattr),
        Op::RemoveXattr { name } => answers.removexattr(node, name).map(nothing),
        Op::OpenDir => answers.opendir().map(Reply::Open),
        Op::ReadDir { offset, size, plus } => Ok(Reply::Items {
            offset,
            size: size as usize,
            plus,
        }),
        Op::Create { mode, umask, name } => answers
            .create(caller, (node, name), mode, umask)
            .map(|(entry, flags)| Reply::Created(entry, flags)),
        Op::Ioctl { cmd, data } => answers.ioctl(node, cmd, data).map(Reply::Ioctl),
        Op::FAllocate {
            mode,
            offset,
            length,
        } => answers
            .fallocate(caller, node, mode, offset, length)
            .map(nothing),
        Op::LSeek { offset, whence } => {
            answers.lseek(node, offset, whence, later());
            Ok(Reply::Later)
        }
        Op::CopyFileRange {
            from_offset,
            to,
            to_offset,
            len,
            flags,
        } => answers
            .copy_file_range(caller, (node, from_offset), (to, to_offset), len, flags)
            .map(Reply::Count),
        Op::Unknown => Err(Code::ENOSYS),
    }
}

/// The reply's length in `payload`.
fn write(answers: &Answers, node: NodeId, reply: Reply, payload: &mut [u8]) -> Answer<usize> {
    let config = answers.config();
    let keep = Lifetimes {
        entry: config.entry_ttl,
        attr: config.attr_ttl,
    };
    let room = payload.len();
    match reply {
        Reply::Read { offset, size: len } => {
            let len = len.min(room);
            return answers.read(node, offset, &mut payload[..len]);
        }
        Reply::Items {
            offset,
            size: len,
            plus,
        } => {
            let len = len.min(room);
            let mut out = Out::new(&mut payload[..len]);
            let plus = plus.then_some(keep);
            answers.read_dir(node, offset, plus.is_some(), &mut |item| {
                out.item(&item, plus).is_ok()
            })?;
            return Ok(out.len());
        }
        _ => {}
    }
    let mut out = Out::new(payload);
    match reply {
        Reply::Entry(entry) => out.entry(&entry, keep)?,
        Reply::Absent => out.absent(answers.absent_for())?,
        Reply::Attr(attr) => out.attr(node, &attr, keep.attr)?,
        Reply::Bytes(bytes) => out.bytes(&bytes)?,
        Reply::Open(flags) => out.open(flags)?,
        Reply::Created(entry, flags) => {
            out.entry(&entry, keep)?;
            out.open(flags)?;
        }
        Reply::Count(count) => out.count(count)?,
        Reply::StatFs(stat) => out.statfs(&stat)?,
        Reply::Ioctl(data) => out.ioctl(&data)?,
        Reply::Nothing | Reply::Read { .. } | Reply::Items { .. } | Reply::Later => {}
    }
    Ok(out.len())
}

/// The answer to an LSEEK that was waited for elsewhere, in `payload`.
pub fn sought(found: Answer<i64>, payload: &mut [u8]) -> Answer<usize> {
    let mut out = Out::new(payload);
    out.offset(found?)?;
    Ok(out.len())
}
