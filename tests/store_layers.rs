//! Layers through the store's front door: what goes in comes out, in every order entries may come in.

mod store_support;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use ovl::meta::{FileKind, Timestamp};
use ovl::store::{Digest, Dirent, Error, LayerReader, NewNode, NodeMeta, ROOT_INODE, Store};
use store_support::{Tar, meta, noise};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    (dir, store)
}

/// `dir/name kind` lines of a whole layer, with what matters of each node.
fn listing(store: &Store, layer: &LayerReader) -> Vec<String> {
    // Another reader, which has read nothing yet: one keeps what it has read.
    let finder = store.open_layer(&layer.info().diff_id).unwrap();
    let mut lines = Vec::new();
    let mut stack = vec![(String::new(), ROOT_INODE)];
    while let Some((path, dir)) = stack.pop() {
        for Dirent { name, target } in layer.read_dir(dir).unwrap() {
            let path = format!("{path}/{}", name.to_str().unwrap());
            let dirent = Dirent { name, target };
            let (found, inode) = finder.find(dir, &dirent.name).unwrap().unwrap();
            assert_eq!(found, dirent, "{path}");
            assert_eq!(
                inode,
                target.map(|(ino, _)| layer.inode(ino).unwrap()),
                "{path}"
            );
            assert_eq!(
                finder.lookup(dir, &dirent.name).unwrap(),
                Some(dirent),
                "{path}"
            );
            let Some((ino, kind)) = target else {
                lines.push(format!("{path} whiteout"));
                continue;
            };
            let inode = layer.inode(ino).unwrap();
            assert_eq!(inode.kind, kind, "{path}");
            let mut line = format!("{path} {kind:?} {:o} n{}", inode.perm, inode.nlink);
            if inode.opaque {
                line += " opaque";
            }
            if inode.implicit {
                line += " implicit";
            }
            match kind {
                FileKind::Directory => stack.push((path, ino)),
                FileKind::Symlink => {
                    line += &format!(
                        " -> {}",
                        layer.symlink_target(ino).unwrap().to_str().unwrap()
                    );
                }
                FileKind::Regular => {
                    line += &format!(" {:?}", String::from_utf8_lossy(&read(layer, ino)))
                }
                _ => line += &format!(" dev {:x}", inode.rdev),
            }
            lines.push(line);
        }
    }
    lines.sort();
    lines
}

fn read(layer: &LayerReader, ino: u64) -> Vec<u8> {
    let inode = layer.inode(ino).unwrap();
    let content = layer.open_content(inode.content).unwrap();
    assert_eq!(content.size(), inode.size);
    let mut bytes = vec![1; inode.size as usize];
    assert_eq!(content.read_at(0, &mut bytes).unwrap(), bytes.len());
    assert_eq!(content.read_at(inode.size, &mut [0; 10]).unwrap(), 0);
    bytes
}

#[test]
fn every_kind_of_node_comes_back() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    tar.dir("");
    tar.dir("d");
    tar.file("d/f", b"hello");
    tar.file("d/empty", b"");
    tar.symlink("d/l", "../x");
    tar.special("c", FileKind::CharDevice, 0x103);
    tar.special("b", FileKind::BlockDevice, 0x801);
    tar.special("p", FileKind::Fifo, 99);
    tar.special("s", FileKind::Socket, 0);
    assert!(
        tar.writer
            .add_hard_link("h".as_ref(), "d/f".as_ref())
            .unwrap()
    );
    tar.writer.add_whiteout("gone".as_ref()).unwrap();
    tar.writer.add_opaque("d".as_ref()).unwrap();
    let odd = NodeMeta {
        perm: 0o107_644,
        uid: u32::MAX - 1,
        gid: 7,
        mtime: Timestamp::new(-5, 999_999_999),
        xattrs: vec![
            ("user.b".into(), vec![0, 255]),
            ("security.capability".into(), vec![1; 20]),
        ],
    };
    tar.writer
        .add("odd".as_ref(), &odd, NewNode::Directory)
        .unwrap();
    let (info, bytes) = tar.finish();
    assert_eq!(
        (info.tar_size, info.files_size, info.entries),
        (bytes.len() as u64, 5, 11)
    );

    let layer = store.open_layer(&info.diff_id).unwrap();
    assert_eq!(layer.info(), &info);
    assert_eq!(
        listing(&store, &layer),
        [
            "/b BlockDevice 644 n1 dev 801",
            "/c CharDevice 644 n1 dev 103",
            "/d Directory 755 n2 opaque",
            "/d/empty Regular 644 n1 \"\"",
            "/d/f Regular 644 n2 \"hello\"",
            "/d/l Symlink 644 n1 -> ../x",
            "/gone whiteout",
            "/h Regular 644 n2 \"hello\"",
            "/odd Directory 7644 n2",
            "/p Fifo 644 n1 dev 0",
            "/s Socket 644 n1 dev 0",
        ]
    );
    let ino = layer
        .lookup(ROOT_INODE, OsStr::new("odd"))
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let inode = layer.inode(ino).unwrap();
    assert_eq!(
        (inode.uid, inode.gid, inode.mtime),
        (odd.uid, odd.gid, odd.mtime)
    );
    assert!(inode.has_xattrs);
    let mut sorted = odd.xattrs.clone();
    sorted.sort();
    assert_eq!(layer.xattrs(ino).unwrap(), sorted);
    assert_eq!(layer.inode(ROOT_INODE).unwrap().nlink, 4);
    assert!(!layer.inode(ROOT_INODE).unwrap().implicit);
}

/// The rules of order: each row is a list of steps and the listing they must give.
#[test]
fn later_entries_replace_earlier_ones() {
    type Case = (
        &'static str,
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        (
            "same file twice",
            &["f a 1", "f a 2"],
            &["/a Regular 644 n1 \"2\""],
        ),
        (
            "directory twice keeps children",
            &["d a", "f a/x 1", "d a"],
            &["/a Directory 755 n2", "/a/x Regular 644 n1 \"1\""],
        ),
        (
            "file over directory",
            &["d a", "f a/x 1", "d a/b", "f a/b/y 1", "f a 2"],
            &["/a Regular 644 n1 \"2\""],
        ),
        (
            "directory over file is opaque",
            &["f a 1", "d a"],
            &["/a Directory 755 n2 opaque"],
        ),
        (
            "directory over symlink is opaque",
            &["l a x", "d a"],
            &["/a Directory 755 n2 opaque"],
        ),
        (
            "file below a symlink",
            &["l a x", "f a/f 1"],
            &[
                "/a Directory 755 n2 opaque implicit",
                "/a/f Regular 644 n1 \"1\"",
            ],
        ),
        (
            "missing parents",
            &["f a/b/f 1"],
            &[
                "/a Directory 755 n3 implicit",
                "/a/b Directory 755 n2 implicit",
                "/a/b/f Regular 644 n1 \"1\"",
            ],
        ),
        (
            "a parent named later is no longer implicit",
            &["f a/f 1", "d a"],
            &["/a Directory 755 n2", "/a/f Regular 644 n1 \"1\""],
        ),
        ("whiteout alone", &["w a"], &["/a whiteout"]),
        (
            "whiteout, then file",
            &["w a", "f a 1"],
            &["/a Regular 644 n1 \"1\""],
        ),
        (
            "file, then whiteout",
            &["f a 1", "w a"],
            &["/a Regular 644 n1 \"1\""],
        ),
        (
            "whiteout, then directory",
            &["w a", "d a"],
            &["/a Directory 755 n2 opaque"],
        ),
        (
            "directory, then whiteout",
            &["d a", "w a"],
            &["/a Directory 755 n2 opaque"],
        ),
        (
            "whiteout, then child",
            &["w a", "f a/f 1"],
            &[
                "/a Directory 755 n2 opaque implicit",
                "/a/f Regular 644 n1 \"1\"",
            ],
        ),
        (
            "whiteout, file, directory",
            &["w a", "f a 1", "d a"],
            &["/a Directory 755 n2 opaque"],
        ),
        (
            "opaque before siblings",
            &["o a", "f a/f 1"],
            &[
                "/a Directory 755 n2 opaque implicit",
                "/a/f Regular 644 n1 \"1\"",
            ],
        ),
        (
            "opaque after siblings",
            &["f a/f 1", "o a"],
            &[
                "/a Directory 755 n2 opaque implicit",
                "/a/f Regular 644 n1 \"1\"",
            ],
        ),
        (
            "whiteout within opaque",
            &["o a", "w a/x"],
            &["/a Directory 755 n2 opaque implicit", "/a/x whiteout"],
        ),
        (
            "link to earlier",
            &["f a 1", "h b a"],
            &["/a Regular 644 n2 \"1\"", "/b Regular 644 n2 \"1\""],
        ),
        (
            "link to later",
            &["h b a", "f a 1"],
            &["/a Regular 644 n2 \"1\"", "/b Regular 644 n2 \"1\""],
        ),
        (
            "links in a row, backwards",
            &["h c b", "h b a", "f a 1"],
            &[
                "/a Regular 644 n3 \"1\"",
                "/b Regular 644 n3 \"1\"",
                "/c Regular 644 n3 \"1\"",
            ],
        ),
        (
            "a file takes a waiting link's place",
            &["h b a", "f b 2"],
            &["/b Regular 644 n1 \"2\""],
        ),
        (
            "a directory takes a waiting link's place",
            &["h b a", "d b"],
            &["/b Directory 755 n2 opaque"],
        ),
        (
            "a waiting link goes with its directory",
            &["h d/b a", "f d 2"],
            &["/d Regular 644 n1 \"2\""],
        ),
        (
            "link twice",
            &["f a 1", "h b a", "h b a"],
            &["/a Regular 644 n2 \"1\"", "/b Regular 644 n2 \"1\""],
        ),
        (
            "link replaces",
            &["f a 1", "f b 2", "h b a"],
            &["/a Regular 644 n2 \"1\"", "/b Regular 644 n2 \"1\""],
        ),
        (
            "link replaces the directory its target is in",
            &["f d/a 1", "h d d/a"],
            &["/d Regular 644 n1 \"1\""],
        ),
        (
            "link to a symlink",
            &["l a x", "h b a"],
            &["/a Symlink 644 n2 -> x", "/b Symlink 644 n2 -> x"],
        ),
        (
            "replaced names lower the link count",
            &["f a 1", "h b a", "f b 2"],
            &["/a Regular 644 n1 \"1\"", "/b Regular 644 n1 \"2\""],
        ),
        (
            "target replaced",
            &["f a 1", "h b a", "f a 2"],
            &["/a Regular 644 n1 \"2\"", "/b Regular 644 n1 \"1\""],
        ),
    ];
    let (_dir, store) = store();
    for (what, steps, want) in cases {
        let mut tar = Tar::new(&store);
        tar.writer.literal(what.as_bytes()).unwrap();
        tar.bytes.extend_from_slice(what.as_bytes());
        for step in *steps {
            tar.step(step).unwrap();
        }
        let (info, _) = tar.finish();
        assert_eq!(
            listing(&store, &store.open_layer(&info.diff_id).unwrap()),
            *want,
            "{what}: {steps:?}"
        );
    }
}

#[test]
fn senseless_entries_are_refused() {
    let cases: &[(&str, &[&str])] = &[
        ("dot dot", &["f ../a 1"]),
        ("dot", &["f ./a 1"]),
        ("absolute", &["f /a 1"]),
        ("empty component", &["f a//b 1"]),
        ("trailing slash", &["d a/"]),
        ("root as file", &["F 1"]),
        ("root removed", &["w "]),
        ("link to itself", &["f a 1", "h a a"]),
        ("link to a directory", &["d a", "h b a"]),
        ("link to the root", &["h b "]),
        ("link outside", &["h b ../a"]),
        ("link to nothing", &["h b a"]),
        ("links in a circle", &["h a b", "h b a"]),
        ("waiting link to a directory", &["h b a", "d a"]),
        ("empty symlink", &["l a "]),
    ];
    let (_dir, store) = store();
    for (what, steps) in cases {
        let mut tar = Tar::new(&store);
        let steps: Result<Vec<()>, Error> = steps.iter().map(|step| tar.step(step)).collect();
        let error = match steps {
            Err(error) => error,
            Ok(_) => tar.try_finish().unwrap_err(),
        };
        assert!(
            matches!(error, Error::InvalidEntry { .. }),
            "{what}: {error}"
        );
    }
    for name in [&b"a\0b"[..], &[b'x'; 256], b".", b"..", b"a/../b"] {
        let error = Tar::new(&store)
            .writer
            .add_whiteout(OsStr::from_bytes(name))
            .unwrap_err();
        assert!(matches!(error, Error::InvalidEntry { .. }), "{error}");
    }
    Tar::new(&store)
        .writer
        .add_whiteout(OsStr::from_bytes(&[b'x'; 255]))
        .unwrap();
    assert!(store.layers().unwrap().is_empty());
}

#[test]
fn tars_come_back_bit_for_bit() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    for n in 0..300 {
        tar.file(&format!("small/{n}"), &noise(n * 37, n as u64));
    }
    tar.file("large", &noise(3_000_000, 1));
    tar.file("twice", &noise(3_000_000, 1));
    tar.file("large", b"replaced, but still in the tar");
    tar.literal(&[0; 3_000_000]);
    let (info, bytes) = tar.finish();
    let mut out = Vec::new();
    assert_eq!(
        store.write_layer_tar(&info.diff_id, &mut out).unwrap(),
        bytes.len() as u64
    );
    assert!(out == bytes, "the tar differs");

    let mut empty = Tar::new(&store);
    empty.literal(b"");
    let (info, bytes) = empty.finish();
    assert_eq!(
        (
            bytes.len(),
            store
                .write_layer_tar(&info.diff_id, &mut Vec::new())
                .unwrap()
        ),
        (0, 0)
    );
}

#[test]
fn sparse_contents_keep_their_holes() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    let data = noise(200_000, 5);
    tar.sparse(
        "s",
        &[
            Ok(&data),
            Err(1 << 40),
            Ok(b"x"),
            Err(10),
            Err(20),
            Ok(b"yz"),
            Err(5),
        ],
    );
    tar.sparse("hole", &[Err(u64::from(u32::MAX))]);
    tar.sparse("exabytes", &[Err(i64::MAX as u64 - 1), Ok(b"e")]);
    let (info, bytes) = tar.finish();
    let layer = store.open_layer(&info.diff_id).unwrap();
    let open = |name: &str| {
        let ino = layer
            .lookup(ROOT_INODE, name.as_ref())
            .unwrap()
            .unwrap()
            .target
            .unwrap()
            .0;
        let inode = layer.inode(ino).unwrap();
        (layer.open_content(inode.content).unwrap(), inode)
    };
    let (content, inode) = open("s");
    let (data_end, hole) = (data.len() as u64, 1u64 << 40);
    assert_eq!(
        (inode.size, inode.data_size),
        (data_end + hole + 1 + 30 + 2 + 5, data_end + 3)
    );
    let x = data_end + hole;
    for (offset, data, hole) in [
        (0, Some(0), data_end),
        (data_end - 1, Some(data_end - 1), data_end),
        (data_end, Some(x), data_end),
        (x, Some(x), x + 1),
        (x + 1, Some(x + 31), x + 1),
        (x + 33, None, x + 33),
        (inode.size, None, inode.size),
        (u64::MAX, None, inode.size),
    ] {
        assert_eq!(
            (
                content.next_data(offset).unwrap(),
                content.next_hole(offset).unwrap()
            ),
            (data, hole),
            "{offset}"
        );
    }
    let mut buf = [9; 40];
    assert_eq!(content.read_at(x - 2, &mut buf).unwrap(), 40);
    assert_eq!(buf[..4], [0, 0, b'x', 0]);
    assert_eq!(buf[33..40], [b'y', b'z', 0, 0, 0, 0, 0]);
    assert_eq!(content.read_at(u64::MAX, &mut buf).unwrap(), 0);
    let mut all = vec![0; data.len()];
    content.read_at(0, &mut all).unwrap();
    assert!(all == data);

    let (content, inode) = open("hole");
    assert_eq!(
        (inode.size, inode.data_size, content.next_data(0).unwrap()),
        (u64::from(u32::MAX), 0, None)
    );
    let (content, inode) = open("exabytes");
    assert_eq!(
        (inode.size, content.next_data(5).unwrap()),
        (i64::MAX as u64, Some(i64::MAX as u64 - 1))
    );

    let mut out = Vec::new();
    store.write_layer_tar(&info.diff_id, &mut out).unwrap();
    assert!(out == bytes);

    let mut tar = Tar::new(&store);
    tar.writer.begin_content(0).unwrap();
    tar.writer.hole(i64::MAX as u64).unwrap();
    assert!(tar.writer.hole(1).is_err(), "beyond any file");
}

#[test]
fn random_reads_agree_with_the_bytes() {
    let (_dir, store) = store();
    let data = noise(1_500_000, 9);
    let mut tar = Tar::new(&store);
    tar.file("f", &data);
    let (info, _) = tar.finish();
    let layer = store.open_layer(&info.diff_id).unwrap();
    let ino = layer
        .lookup(ROOT_INODE, "f".as_ref())
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    let content = layer
        .open_content(layer.inode(ino).unwrap().content)
        .unwrap();
    let offsets = noise(4_000, 10);
    std::thread::scope(|scope| {
        for offsets in offsets.chunks(1_000) {
            let (content, data) = (&content, &data);
            scope.spawn(move || {
                for pair in offsets.chunks_exact(5) {
                    let offset = usize::from(pair[0]) * 5_900 + usize::from(pair[1]);
                    let len =
                        usize::from(pair[2]) * usize::from(pair[3]) * 3 + usize::from(pair[4]);
                    let want = &data[offset.min(data.len())..(offset + len).min(data.len())];
                    let mut buf = vec![0; len];
                    assert_eq!(
                        content.read_at(offset as u64, &mut buf).unwrap(),
                        want.len()
                    );
                    assert!(buf[..want.len()] == *want, "{len} bytes at {offset}");
                }
            });
        }
    });
}

#[test]
fn the_same_layer_is_stored_once() {
    let (_dir, store) = store();
    let make = || {
        let mut tar = Tar::new(&store);
        tar.file("f", &noise(500_000, 3));
        tar.finish().0
    };
    let (first, second) = (make(), make());
    assert_eq!(first, second);
    assert_eq!(store.layers().unwrap(), [first]);
}

#[test]
fn links_into_lower_layers_are_copies() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    tar.file("f", b"lower");
    tar.symlink("l", "f");
    tar.dir("d");
    let (lower, _) = tar.finish();
    let lower = store.open_layer(&lower.diff_id).unwrap();
    let ino = |name: &str| {
        lower
            .lookup(ROOT_INODE, name.as_ref())
            .unwrap()
            .unwrap()
            .target
            .unwrap()
            .0
    };
    let mut tar = Tar::new(&store);
    tar.literal(b"upper");
    assert!(
        !tar.writer
            .add_hard_link("h".as_ref(), "f".as_ref())
            .unwrap()
    );
    tar.writer.add_copy("h".as_ref(), &lower, ino("f")).unwrap();
    tar.writer
        .add_copy("hl".as_ref(), &lower, ino("l"))
        .unwrap();
    assert!(matches!(
        tar.writer.add_copy("hd".as_ref(), &lower, ino("d")),
        Err(Error::InvalidEntry { .. })
    ));
    let (info, _) = tar.finish();
    let layer = store.open_layer(&info.diff_id).unwrap();
    assert_eq!(
        listing(&store, &layer),
        ["/h Regular 644 n1 \"lower\"", "/hl Symlink 644 n1 -> f"]
    );
}

#[test]
fn fifty_thousand_entries_and_deep_paths() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    for n in 0..50_000 {
        let path = format!("d{}/e{}/f{n}", n % 7, n % 131);
        tar.writer
            .add(path.as_ref(), &meta(), NewNode::Symlink(OsStr::new("t")))
            .unwrap();
    }
    let deep = vec!["deep"; 1_000].join("/");
    tar.writer
        .add(deep.as_ref(), &meta(), NewNode::Directory)
        .unwrap();
    let (info, _) = tar.finish();
    assert_eq!(info.entries, 50_000 + 7 + 7 * 131 + 1_000);
    let layer = store.open_layer(&info.diff_id).unwrap();
    let mut seen = 0;
    let mut stack = vec![ROOT_INODE];
    while let Some(dir) = stack.pop() {
        let entries = layer.read_dir(dir).unwrap();
        assert!(entries.is_sorted_by(|a, b| a.name.as_bytes() < b.name.as_bytes()));
        seen += entries.len() as u64;
        stack.extend(
            entries
                .iter()
                .filter_map(|e| e.target)
                .filter(|(_, kind)| kind.is_dir())
                .map(|(ino, _)| ino),
        );
    }
    assert_eq!(seen, info.entries);
    assert_eq!(layer.lookup(ROOT_INODE, "nothing".as_ref()).unwrap(), None);
    assert_eq!(layer.find(ROOT_INODE, "nothing".as_ref()).unwrap(), None);
}

#[test]
fn calls_out_of_order_are_refused() {
    let (_dir, store) = store();
    let mut tar = Tar::new(&store);
    assert!(matches!(tar.writer.data(b"x"), Err(Error::Misuse(_))));
    assert!(matches!(tar.writer.hole(1), Err(Error::Misuse(_))));
    assert!(matches!(tar.writer.end_content(), Err(Error::Misuse(_))));
    tar.writer.begin_content(0).unwrap();
    assert!(matches!(tar.writer.literal(b"x"), Err(Error::Misuse(_))));
    assert!(matches!(tar.writer.begin_content(0), Err(Error::Misuse(_))));
    assert!(matches!(tar.try_finish(), Err(Error::Misuse(_))));
    assert!(matches!(
        store.open_layer(&Digest::of(b"")),
        Err(Error::NotFound(_))
    ));
    assert!(matches!(
        store.write_layer_tar(&Digest::of(b""), &mut Vec::new()),
        Err(Error::NotFound(_))
    ));
}
