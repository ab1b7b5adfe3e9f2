//! One request from its bytes to the bytes of its answer, in the same buffer.

use super::answers::{Answer, Answers, Code, XattrAnswer};
use super::passthrough::Opened;
use super::seek;
use super::wire::{Head, Op, rdev_in};
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
    Entry(Entry, Lifetimes),
    Absent,
    MergedRoot(Attr, Lifetimes),
    Attr(Attr, Lifetimes),
    Bytes(Vec<u8>),
    Open(Opened),
    OpenDir(u32),
    Created(Entry, Opened),
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
    let head = &head.behind(answers.door());
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
    let entry = |entry: Entry| {
        let keep = answers.lifetimes(entry.node);
        Reply::Entry(entry, keep)
    };
    let xattr = |answer| match answer {
        XattrAnswer::Size(size) => Reply::Count(size),
        XattrAnswer::Data(data) => Reply::Bytes(data),
    };
    match op {
        Op::Lookup { name } if answers.door().leads_in(head.number, name) => answers
            .getattr(NodeId::ROOT)
            .map(|attr| Reply::MergedRoot(attr, answers.lifetimes_of_merged_root())),
        Op::Lookup { name } => answers
            .lookup(node, name)
            .map(|found| found.map_or(Reply::Absent, entry)),
        Op::Forget { count } => {
            answers.forget(node, count);
            Ok(Reply::Nothing)
        }
        Op::Forgets(forgets) => {
            for (number, count) in forgets {
                answers.forget(answers.door().node(number), count);
            }
            Ok(Reply::Nothing)
        }
        Op::GetAttr => answers
            .getattr(node)
            .map(|attr| Reply::Attr(attr, answers.lifetimes(node))),
        Op::SetAttr(set) => answers.setattr(caller, node, &set).map(|attr| {
            let keep = answers.lifetimes_after(&attr);
            Reply::Attr(attr, keep)
        }),
        Op::ReadLink => answers
            .readlink(node)
            .map(|target| Reply::Bytes(target.into_encoded_bytes())),
        Op::Symlink { name, target } => answers.symlink(caller, (node, name), target).map(entry),
        Op::MkNod {
            mode,
            umask,
            rdev,
            name,
        } => answers
            .mknod(caller, (node, name), mode, umask, rdev_in(rdev))
            .map(entry),
        Op::MkDir { mode, umask, name } => {
            answers.mkdir(caller, (node, name), mode, umask).map(entry)
        }
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
        Op::Link { node: old, name } => answers.link(old, node, name).map(|entry| {
            let keep = answers.lifetimes_after(&entry.attr);
            Reply::Entry(entry, keep)
        }),
        Op::Open { flags } => answers.open(caller, node, flags).map(Reply::Open),
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
        Op::Release { handle } => {
            answers.release(node, handle);
            Ok(Reply::Nothing)
        }
        Op::Nothing => Ok(Reply::Nothing),
        Op::FSync { datasync } => answers.fsync(node, datasync).map(nothing),
        Op::FSyncDir { datasync } => answers.fsyncdir(node, datasync).map(nothing),
        Op::SetXattr { name, value, flags } => {
            answers.setxattr(node, name, value, flags).map(nothing)
        }
        Op::GetXattr { name, room } => answers.getxattr(node, name, room).map(xattr),
        Op::ListXattr { room } => answers.listxattr(node, room).map(xattr),
        Op::RemoveXattr { name } => answers.removexattr(node, name).map(nothing),
        Op::OpenDir => answers.opendir().map(Reply::OpenDir),
        Op::ReadDir { offset, size, plus } => Ok(Reply::Items {
            offset,
            size: size as usize,
            plus,
        }),
        Op::Create {
            flags,
            mode,
            umask,
            name,
        } => answers
            .create(caller, (node, name), (mode, umask), flags)
            .map(|(entry, opened)| Reply::Created(entry, opened)),
        Op::TmpFile { flags, mode, umask } => answers
            .tmpfile(caller, node, (mode, umask), flags)
            .map(|(entry, opened)| Reply::Created(entry, opened)),
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
            answers.read_dir(node, offset, plus, &mut |item| {
                let shown = item.entry.map_or(item.ino, |entry| entry.node);
                let keep = plus.then(|| answers.lifetimes(shown));
                out.item(&item, keep).is_ok()
            })?;
            return Ok(out.len());
        }
        _ => {}
    }
    let mut out = Out::new(payload);
    match reply {
        Reply::Entry(entry, keep) => out.entry(&entry, keep)?,
        Reply::Absent => out.absent(answers.absent_for())?,
        Reply::MergedRoot(attr, keep) => out.merged_root(&attr, keep)?,
        Reply::Attr(attr, keep) => out.attr(node, &attr, keep.attr)?,
        Reply::Bytes(bytes) => out.bytes(&bytes)?,
        Reply::Open(opened) => open(&opened, &mut out)?,
        Reply::OpenDir(flags) => out.open(0, flags, 0)?,
        Reply::Created(entry, opened) => {
            out.entry(&entry, answers.lifetimes(entry.node))?;
            open(&opened, &mut out)?;
        }
        Reply::Count(count) => out.count(count)?,
        Reply::StatFs(stat) => out.statfs(&stat)?,
        Reply::Ioctl(data) => out.ioctl(&data)?,
        Reply::Nothing | Reply::Read { .. } | Reply::Items { .. } | Reply::Later => {}
    }
    Ok(out.len())
}

fn open(opened: &Opened, out: &mut Out<'_>) -> Result<(), Full> {
    let (flags, backing) = opened.on_the_wire();
    out.open(opened.handle, flags, backing)
}

/// The answer to an LSEEK that was waited for elsewhere, in `payload`.
pub fn sought(found: Answer<i64>, payload: &mut [u8]) -> Answer<usize> {
    let mut out = Out::new(payload);
    out.offset(found?)?;
    Ok(out.len())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::fuse::door::{self, Door};
    use crate::fuse::{Config, Counters};
    use crate::layer::DirLayer;
    use crate::overlay::{Caller, Options, Overlay, Stack};

    /// The answers of a read-only mount of one file, `file`, with `text` in it.
    fn answers(dir: &std::path::Path) -> (Answers, seek::Seeker) {
        std::fs::write(dir.join("file"), "text").expect("write");
        let stack = Stack {
            lowers: vec![Arc::new(DirLayer::open(dir).expect("a layer"))],
            upper: None,
        };
        let engine = Arc::new(Overlay::new(stack, &Options::default()).expect("an engine"));
        let (sender, seeker) = seek::channel();
        let config = Config::default();
        (
            Answers::new(engine, &config, Arc::new(Counters::default()), sender),
            seeker,
        )
    }

    fn head(opcode: u32, node: u64) -> Head {
        Head {
            opcode,
            unique: 2,
            number: node,
            node: Door::None.node(node),
            caller: Caller {
                uid: 0,
                gid: 0,
                pid: 1,
            },
        }
    }

    fn ask(answers: &Answers, head: &Head, words: &[u8], rest: &[u8], room: &mut [u8]) -> Outcome {
        room[..rest.len()].copy_from_slice(rest);
        answer(answers, head, words, room, rest.len(), || Box::new(|_| ()))
    }

    #[test]
    fn a_file_is_found_and_read() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (answers, _seeker) = answers(dir.path());
        let mut room = [0; 8192];
        let found = ask(&answers, &head(1, 1), &[], b"file\0", &mut room);
        assert_eq!(found, Outcome::Done(Ok(128)));
        let node = u64::from_ne_bytes(*room.first_chunk().expect("a node"));
        let words: Vec<u8> = [0_u64, 1, 100]
            .iter()
            .flat_map(|n| n.to_ne_bytes())
            .collect();
        let read = ask(&answers, &head(15, node), &words, &[], &mut room);
        assert_eq!(read, Outcome::Done(Ok(3)));
        assert_eq!(&room[..3], b"ext");
        let absent = ask(&answers, &head(1, 1), &[], b"none\0", &mut room);
        assert_eq!(absent, Outcome::Done(Ok(128)));
        assert_eq!(room[..8], [0; 8]);
        let made = ask(&answers, &head(9, 1), &[0; 8], b"new\0", &mut room);
        assert!(matches!(made, Outcome::Done(Err(code)) if code.get() == libc::EROFS));
        let sought = ask(&answers, &head(46, node), &[0; 24], &[], &mut room);
        assert_eq!(sought, Outcome::Later);
    }

    #[test]
    fn the_merged_root_lies_behind_the_outer_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (answers, _seeker) = answers(dir.path());
        let mut room = [0; 8192];
        let number = |room: &[u8]| u64::from_ne_bytes(*room.first_chunk().expect("a number"));
        // Where they are one, the way in is a name like any other.
        assert_eq!(
            ask(&answers, &head(1, 1), &[], b"merged\0", &mut room),
            Outcome::Done(Ok(128))
        );
        assert_eq!(number(&room), 0);
        for door in [Door::Open, Door::Behind] {
            answers.set_door(door);
            let found = ask(&answers, &head(1, 1), &[], b"merged\0", &mut room);
            assert_eq!(found, Outcome::Done(Ok(128)));
            assert_eq!(number(&room), door::INNER);
            assert_eq!(number(&room[16..]), 0, "the name is not kept");
            assert_eq!(number(&room[40..]), 1, "the inode number that is shown");
            let within = ask(&answers, &head(1, door::INNER), &[], b"file\0", &mut room);
            assert_eq!(within, Outcome::Done(Ok(128)));
            assert_ne!(number(&room), 0);
            let again = ask(&answers, &head(1, door::INNER), &[], b"merged\0", &mut room);
            assert_eq!(again, Outcome::Done(Ok(128)));
            assert_eq!(number(&room), 0, "only the outer root has it");
        }
        let outside = ask(&answers, &head(1, 1), &[], b"file\0", &mut room);
        assert!(matches!(outside, Outcome::Done(Err(code)) if code.get() == libc::ESTALE));
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (answers, _seeker) = answers(dir.path());
        let mut room = [0; 8192];
        let unknown = ask(&answers, &head(4711, 1), &[], &[], &mut room);
        assert_eq!(unknown, Outcome::Done(Err(Code::ENOSYS)));
        let nameless = ask(&answers, &head(1, 1), &[], b"no end", &mut room);
        assert_eq!(nameless, Outcome::Done(Err(Code::EIO)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_within_the_room(
            requests in prop::collection::vec(
                (
                    1_u32..56,
                    0_u64..4,
                    prop::collection::vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 128),
                    prop::collection::vec(prop_oneof![Just(0_u8), Just(b'f'), any::<u8>()], 0..64),
                ),
                0..20,
            ),
        ) {
            let dir = tempfile::tempdir().expect("temporary directory");
            let (answers, _seeker) = answers(dir.path());
            let mut room = vec![0; 8192];
            for (opcode, node, words, rest) in requests {
                if let Outcome::Done(Ok(len)) =
                    ask(&answers, &head(opcode, node), &words, &rest, &mut room)
                {
                    prop_assert!(len <= room.len());
                }
            }
        }
    }
}
