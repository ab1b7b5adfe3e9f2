use proptest::prelude::*;

use super::*;

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
}

/// A `u64` as two words.
fn wide(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    let (low, high) = bytes.split_at(4);
    let word = |half: &[u8]| u32::from_ne_bytes(half.try_into().expect("four bytes"));
    [word(low), word(high)]
}

#[test]
fn heads() {
    let [unique_a, unique_b] = wide(1 << 40 | 6);
    let [node_a, node_b] = wide(9);
    let bytes = words(&[
        56, 3, unique_a, unique_b, node_a, node_b, 1000, 1001, 1002, 0,
    ]);
    let head = Head::parse(&bytes).expect("a head");
    assert_eq!(head.opcode, opcode::GETATTR);
    assert_eq!(head.unique, 1 << 40 | 6);
    assert_eq!(head.node, NodeId(9));
    let caller = head.caller;
    assert_eq!((caller.uid, caller.gid, caller.pid), (1000, 1001, 1002));
    assert_eq!(bytes.len(), 40, "struct fuse_in_header");
    assert!(Head::parse(&bytes[..39]).is_none());
}

#[test]
fn names_are_ended() {
    let parse = |rest| Op::parse(opcode::LOOKUP, &[], rest);
    assert!(matches!(parse(b"a\0"), Some(Op::Lookup { name }) if name == "a"));
    assert!(matches!(parse(b"\0"), Some(Op::Lookup { name }) if name.is_empty()));
    for bad in [&b""[..], b"a", b"a\0b", b"a\0b\0"] {
        assert!(parse(bad).is_none(), "{bad:?}");
    }
    let two = |rest| Op::parse(opcode::SYMLINK, &[], rest);
    assert!(
        matches!(two(b"n\0t/u\0"), Some(Op::Symlink { name, target }) if name == "n" && target == "t/u")
    );
    for bad in [&b"n\0"[..], b"n\0t", b"n\0t\0x"] {
        assert!(two(bad).is_none(), "{bad:?}");
    }
}

#[test]
fn lengths_that_do_not_match_are_refused() {
    let [offset_a, offset_b] = wide(77);
    let head = words(&[0, 0, offset_a, offset_b, 3, 4, 0, 0, 0, 0]);
    let write = |rest| Op::parse(opcode::WRITE, &head, rest);
    assert!(matches!(
        write(b"abc"),
        Some(Op::Write {
            offset: 77,
            flags: 4,
            data: b"abc"
        })
    ));
    assert!(write(b"ab").is_none());
    assert!(write(b"abcd").is_none());
    let set = |rest| Op::parse(opcode::SETXATTR, &words(&[2, 1]), rest);
    assert!(
        matches!(set(b"user.x\0\0v"), Some(Op::SetXattr { name, value: b"\0v", flags: 1 }) if name == "user.x")
    );
    assert!(set(b"user.x\0v").is_none());
    let cut = |len: usize| Op::parse(opcode::WRITE, &head[..len], b"abc");
    assert!((0..24).all(|len| cut(len).is_none()));
    assert!(cut(24).is_some());
}

#[test]
fn attributes_to_set() {
    let set = |valid: u32, nanos: u32| {
        let mut fields = vec![valid, 0];
        fields.extend(wide(0));
        fields.extend(wide(100));
        fields.extend(wide(0));
        fields.extend(wide((-2_i64).cast_unsigned()));
        fields.extend(wide(5));
        fields.extend(wide(6));
        fields.extend([nanos, 8, 9, 0o104_755, 0, 1, 2, 0]);
        let bytes = words(&fields);
        assert_eq!(bytes.len(), 88, "struct fuse_setattr_in");
        match Op::parse(opcode::SETATTR, &bytes, &[]) {
            Some(Op::SetAttr(set)) => Some(set),
            _ => None,
        }
    };
    let none = set(0, 0).expect("nothing");
    assert!(none.perm.is_none() && none.size.is_none() && none.atime.is_none());
    let all = set(0x43f, 250).expect("everything");
    assert_eq!(all.perm, Some(0o4755));
    assert_eq!((all.uid, all.gid, all.size), (Some(1), Some(2), Some(100)));
    assert_eq!(all.atime, Some(SetTime::At(Timestamp::new(-2, 250))));
    assert_eq!(all.mtime, Some(SetTime::At(Timestamp::new(5, 8))));
    assert_eq!(all.ctime, Some(Timestamp::new(6, 9)));
    let now = set(fattr::ATIME | fattr::ATIME_NOW, 0).expect("now");
    assert_eq!(now.atime, Some(SetTime::Now));
    assert!(set(fattr::ATIME, NANOS_PER_SEC).is_none());
    assert!(set(fattr::MTIME, NANOS_PER_SEC).is_some());
}

#[test]
fn renames_links_and_ranges() {
    let [dir_a, dir_b] = wide(12);
    let two = Op::parse(opcode::RENAME2, &words(&[dir_a, dir_b, 2, 0]), b"a\0b\0");
    assert!(
        matches!(two, Some(Op::Rename { name, new_parent: NodeId(12), new_name, flags: 2 }) if name == "a" && new_name == "b")
    );
    // What lies behind the eight bytes of the older one means nothing.
    let one = Op::parse(opcode::RENAME, &words(&[dir_a, dir_b, 2, 0]), b"a\0b\0");
    assert!(matches!(one, Some(Op::Rename { flags: 0, .. })));
    let link = Op::parse(opcode::LINK, &words(&[dir_a, dir_b]), b"n\0");
    assert!(matches!(link, Some(Op::Link { node: NodeId(12), name }) if name == "n"));
    let seek = words(&[0, 0, u32::MAX, u32::MAX, 3, 0]);
    assert!(matches!(
        Op::parse(opcode::LSEEK, &seek, &[]),
        Some(Op::LSeek {
            offset: -1,
            whence: 3
        })
    ));
    assert!(matches!(Op::parse(52, &[], &[]), Some(Op::Unknown)));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_read(
        opcode in 0_u32..60,
        words in prop::collection::vec(any::<u8>(), 0..128),
        rest in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..64),
    ) {
        let _ = Op::parse(opcode, &words, &rest);
        let _ = Head::parse(&words);
    }
}

#[test]
fn device_numbers() {
    // (major, minor, as the kernel writes it on the wire)
    let table = [
        (0, 0, 0),
        (1, 3, 0x103),
        (5, 1, 0x501),
        (8, 255, 0x8ff),
        (8, 256, 0x0010_0800),
        (259, 65_537, 0x1001_0301),
        (0xfff, 0xf_ffff, 0xffff_ffff),
    ];
    for (major, minor, wire) in table {
        let dev = libc::makedev(major, minor);
        assert_eq!(rdev_out(dev), wire, "{major}:{minor}");
        assert_eq!(rdev_in(wire), dev, "{wire:#x}");
    }
}
