//! Hostile layers, T10 to T19: PAX against ustar, malformed extensions, sparse maps, bombs, ends of archives, and what
//! would steer an overlay. See `hostile_image.rs`.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};

use image_support::fixture::*;
use image_support::*;
use ovl::image::{Error, ImportOptions, Limits};
use ovl::meta::FileKind;
use ovl::store::Digest;

#[test]
fn t10_t11_pax_sizes_rule() {
    let f = Fixture::new();
    // The hidden header is the file's data.
    let hidden = RawTar::new().file("evil", b"evil").bytes;
    let size = hidden.len().to_string();
    for claimed in [0, 7, 512] {
        let tar = RawTar::new()
            .pax(&[("size", size.as_bytes())])
            .header(b"outer", b'0', claimed, b"")
            .body(&hidden)
            .file("after", b"")
            .end();
        let tree = f.tree(&tar);
        assert_eq!(paths(&tree), ["", "after", "outer"]);
        assert_eq!(tree[OsStr::new("outer")].size, hidden.len() as u64);
    }
    // Links and directories have no body, whatever their size says.
    let tree = f.tree(
        &RawTar::new()
            .header(b"d", b'5', 512, b"")
            .file("x", b"")
            .header(b"s", b'2', 99, b"t")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "d", "s", "x"]);
}

#[test]
fn t12_extension_headers() {
    let f = Fixture::new();
    let long = "n".repeat(150);
    let name = [long.as_bytes(), b"\0"].concat();
    let tree = f.tree(
        &RawTar::new()
            .pax(&[("mtime", b"5.25")])
            .extension(b'L', &name)
            .extension(b'K', b"target\0")
            .header(b"short", b'2', 0, b"ignored")
            .end(),
    );
    let seen = &tree[OsStr::new(&long)];
    assert_eq!(
        (seen.mtime, seen.content.as_str()),
        ((5, 250_000_000), "\"target\"")
    );
    f.refused(
        &RawTar::new()
            .pax(&[("path", b"a")])
            .pax(&[("path", b"b")])
            .file("x", b"")
            .end(),
        "two extension",
    );
    f.refused(
        &RawTar::new()
            .extension(b'L', b"a")
            .extension(b'L', b"b")
            .file("x", b"")
            .end(),
        "two extension",
    );
    f.refused(
        &RawTar::new().file("x", b"").pax(&[("path", b"a")]).end(),
        "without an entry",
    );
    f.refused(
        &RawTar::new().file("x", b"").extension(b'L', b"a").bytes,
        "without an entry",
    );
    for key in ["path", "size", "linkpath"] {
        let body = pax_record(key, b"7");
        f.refused(
            &RawTar::new().extension(b'g', &body).file("x", b"").end(),
            "global",
        );
    }
    let body = [
        pax_record("comment", b"c"),
        pax_record("mtime", b"99"),
        pax_record("uid", b"99"),
    ]
    .concat();
    let tree = f.tree(&RawTar::new().extension(b'g', &body).file("x", b"").end());
    assert_eq!(
        (tree[OsStr::new("x")].mtime.0, tree[OsStr::new("x")].uid),
        (15, 0)
    );
}

#[test]
fn t13_malformed_pax() {
    let f = Fixture::new();
    for body in [
        &b"x\n"[..],
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=bc",
        b"99 path=a\n",
        b"-6 a=b\n",
        b"18446744073709551622 a=b\n",
        b"5 ab\n",
        b"6 \xff=b\n",
        b"11 size=-1\n",
        b"29 size=18446744073709551616\n",
        b"12 path=a\0b\n",
        b"12 mtime=1x\n",
        b"18 uid=4294967296\n",
        b"6 a=b\n\0\0\0\0",
    ] {
        let layer = RawTar::new().extension(b'x', body).file("x", b"").end();
        for result in [
            f.import(&layer),
            f.pipe(&layer),
            f.import(&docker_archive(std::slice::from_ref(&layer))),
        ] {
            let error = result.expect_err(&body.escape_ascii().to_string());
            assert!(matches!(error, Error::Tar { .. }), "{error}");
            assert_eq!(error.exit_code(), 5);
            f.untouched();
        }
    }
}

#[test]
fn t14_sparse_maps() {
    let f = Fixture::new();
    let pax10 = |map: &[u8], real: &str, stored: u64| {
        RawTar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.realsize", real.as_bytes()),
            ])
            .header(b"x", b'0', stored, b"")
            .body(map)
            .raw(&vec![7; stored.saturating_sub(512) as usize])
            .end()
    };
    let tree = f.tree(&pax10(b"2\n0\n512\n1048576\n512\n", "2000000", 1536));
    assert_eq!(tree[OsStr::new("s")].size, 2_000_000);
    for (map, real, stored) in [
        (&b"1000000000\n"[..], "10", 512),
        (b"2\n0\n512\n100\n512\n", "2000", 1536),
        (b"2\n1024\n512\n0\n512\n", "2000", 1536),
        (b"1\n18446744073709551615\n2\n", "2000", 1024),
        (b"1\n0\n512\n", "100", 1024),
        (b"1\n0\n512\n", "99999999999999999999", 1024),
        (b"1\n0\n1\n", "512", 1024),
        (b"1\n0\n", "512", 512),
    ] {
        f.refused(&pax10(map, real, stored), "");
    }
    let pax01 = |records: &[(&str, &[u8])]| {
        RawTar::new()
            .pax(records)
            .header(b"s", b'0', 512, b"")
            .body(&[1; 512])
            .end()
    };
    f.refused(
        &pax01(&[
            ("GNU.sparse.map", b"0,512,0,512"),
            ("GNU.sparse.size", b"4096"),
        ]),
        "overlap",
    );
    f.refused(&pax01(&[("GNU.sparse.map", b"0,512")]), "size is missing");
    f.refused(
        &pax01(&[("GNU.sparse.map", b"0,512,"), ("GNU.sparse.size", b"4096")]),
        "map",
    );
    f.refused(
        &pax01(&[("GNU.sparse.major", b"2"), ("GNU.sparse.size", b"4096")]),
        "version",
    );
    // 8 EiB of hole around one byte.
    let huge = (i64::MAX as u64).to_string();
    f.refused(
        &pax01(&[
            ("GNU.sparse.map", b"0,512"),
            ("GNU.sparse.size", huge.as_bytes()),
        ]),
        "limit",
    );
    // An old GNU map that never ends takes no memory: its blocks must come from the archive.
    let mut block = header(b"s", b'S', 0, b"");
    block[257..265].copy_from_slice(b"ustar  \0");
    block[482] = 1;
    checksum(&mut block);
    let mut more = [0; 512];
    more[504] = 1;
    let endless = RawTar::new().raw(&block).raw(&more.repeat(2000));
    f.refused(&endless.bytes, "cut off");
}

#[test]
fn t15_bombs_meet_limits() {
    let f = Fixture::new();
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        ImportOptions {
            limits,
            ..ImportOptions::default()
        }
    };
    let zeros = {
        let tar = RawTar::new()
            .header(b"zeros", b'0', 64 << 20, b"")
            .raw(&vec![0; 64 << 20])
            .end();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        gzip.finish().unwrap()
    };
    let cases: [(&str, Vec<u8>, ImportOptions); 5] = [
        (
            "bytes uncompressed",
            zeros,
            limits(|l| l.layer_bytes = 1 << 20),
        ),
        (
            "entries",
            (0..100)
                .fold(RawTar::new(), |t, i| t.file(&i.to_string(), b""))
                .end(),
            limits(|l| l.entries = 99),
        ),
        (
            "components",
            RawTar::new()
                .pax(&[("path", "a/".repeat(1025).as_bytes())])
                .file("x", b"")
                .end(),
            limits(|_| ()),
        ),
        (
            "255 bytes",
            RawTar::new()
                .pax(&[("path", "a".repeat(256).as_bytes())])
                .file("x", b"")
                .end(),
            limits(|_| ()),
        ),
        (
            "4096",
            RawTar::new()
                .pax(&[("path", "ab/".repeat(2000).as_bytes())])
                .file("x", b"")
                .end(),
            limits(|_| ()),
        ),
    ];
    for (reason, bytes, options) in cases {
        let error = f.import_with(&bytes, &options).expect_err(reason);
        assert!(
            error.to_string().contains(reason),
            "{reason:?} not in {error}"
        );
        f.untouched();
    }
    // Xattrs beyond the limits: one value, all values, and the header that holds them.
    let value = vec![b'x'; 65537];
    f.refused(
        &RawTar::new()
            .pax(&[("SCHILY.xattr.user.a", &value)])
            .file("x", b"")
            .end(),
        "64 KiB",
    );
    let value = &value[..60_000];
    let names: Vec<String> = (0..20).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let many: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), value)).collect();
    f.refused(
        &RawTar::new().pax(&many).file("x", b"").end(),
        "xattrs of more than",
    );
    let head = RawTar::new().header(b"x", b'x', 1 << 30, b"").bytes;
    f.refused(&head, "extension header");
    // gzip within gzip is no tar.
    let once = f.dir.path().join("nested");
    fs::write(&once, RawTar::new().file("x", b"").end()).unwrap();
    let twice = {
        let mut first = Vec::new();
        flate2::read::GzEncoder::new(fs::File::open(&once).unwrap(), flate2::Compression::fast())
            .read_to_end(&mut first)
            .unwrap();
        let mut second = Vec::new();
        flate2::read::GzEncoder::new(&first[..], flate2::Compression::fast())
            .read_to_end(&mut second)
            .unwrap();
        second
    };
    let error = f.import(&twice).unwrap_err();
    assert!(error.to_string().contains("not a tar"), "{error}");
    f.untouched();
}

#[test]
fn t16_ends_of_archives() {
    let base = RawTar::new().file("x", b"x").bytes;
    for (what, tail, ok) in [
        ("no end at all", vec![], true),
        ("one zero block", vec![0; 512], true),
        ("two zero blocks", vec![0; 1024], true),
        ("a record of 10 KiB", vec![0; 8192], true),
        (
            "bytes after the end",
            [vec![0; 1024], b"trailing junk".to_vec()].concat(),
            true,
        ),
        (
            "a file after the end",
            [vec![0; 1024], base.clone()].concat(),
            true,
        ),
        (
            "a lone zero block",
            [vec![0; 512], base.clone()].concat(),
            false,
        ),
        ("half a block", vec![0; 100], false),
    ] {
        let f = Fixture::new();
        let layer = [base.clone(), tail].concat();
        let archive = docker_archive(std::slice::from_ref(&layer));
        for result in [
            f.import(&layer),
            f.pipe(&layer),
            f.import(&archive),
            f.pipe(&archive),
        ] {
            assert_eq!(result.is_ok(), ok, "{what}: {result:?}");
        }
        if ok {
            // Every byte counts, those after the end too.
            assert!(layer_tar(&f.store, &Digest::of(&layer)) == layer, "{what}");
            assert_eq!(
                paths(&stored_tree(&f.store, &Digest::of(&layer))),
                ["", "x"],
                "{what}"
            );
        } else {
            f.untouched();
        }
    }
    let f = Fixture::new();
    let big = RawTar::new().file("x", &[1; 2000]).bytes;
    for cut in [1, 511, 513, 1000, 512 + 1999] {
        f.refused(&big[..cut], "");
    }
    // Only the last file's padding is missing: so `umoci insert` ends its layers.
    for cut in [512 + 2000, big.len() - 1] {
        let f = Fixture::new();
        for result in [f.import(&big[..cut]), f.pipe(&big[..cut])] {
            assert!(result.is_ok(), "{cut}: {result:?}");
        }
        let layer = Digest::of(&big[..cut]);
        assert!(layer_tar(&f.store, &layer) == big[..cut]);
        assert_eq!(paths(&stored_tree(&f.store, &layer)), ["", "x"]);
    }
}

#[test]
fn t17_t19_what_steers_overlays_stays_in_the_recipe() {
    let f = Fixture::new();
    let mut device = header(b"dev", b'3', 0, b"");
    device[329..337].copy_from_slice(b"0000000\0");
    device[337..345].copy_from_slice(b"0000000\0");
    checksum(&mut device);
    let steering = [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.overlay.opaque",
        "user.overlay.whiteout",
        "user.fuseoverlayfs.opaque",
        "user.fuseoverlayfs.override_stat",
        "security.fuseoverlayfs.override_stat",
        "user.containers.override_stat",
    ];
    let keys: Vec<String> = steering
        .iter()
        .map(|name| format!("SCHILY.xattr.{name}"))
        .collect();
    let mut records: Vec<(&str, &[u8])> =
        keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
    records.push(("LIBARCHIVE.xattr.trusted%2eoverlay.opaque", b"eQ"));
    records.push(("SCHILY.xattr.user.kept", b"v"));
    let layer = RawTar::new().raw(&device).pax(&records).dir("d").end();
    let tree = f.tree(&layer);
    // A device 0:0 is a device.
    assert_eq!(
        (tree[OsStr::new("dev")].kind, tree[OsStr::new("dev")].rdev),
        (FileKind::CharDevice, 0)
    );
    assert_eq!(tree[OsStr::new("d")].content, "");
    let reader = f.store.open_layer(&Digest::of(&layer)).unwrap();
    let d = reader
        .lookup(1, OsStr::new("d"))
        .unwrap()
        .unwrap()
        .target
        .unwrap()
        .0;
    assert_eq!(
        reader.xattrs(d).unwrap(),
        [("user.kept".into(), b"v".to_vec())]
    );
}
