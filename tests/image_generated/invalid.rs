//! Archives that are none, or that two readers could read in two ways: each with the word that its refusal must hold.

use super::image_support::{RawTar, checksum, pax_record};

type Case = (&'static str, Vec<u8>, &'static str);

/// A good entry before and after, so that nothing but the fault can be what is refused.
fn around(fault: RawTar) -> Vec<u8> {
    RawTar::new()
        .dir("etc")
        .file("etc/passwd", b"x")
        .raw(&fault.bytes)
        .file("last", b"x")
        .end()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    around(RawTar::new().pax(records).file("f", b"12345"))
}

fn body(kind: u8, bytes: &[u8]) -> Vec<u8> {
    around(RawTar::new().extension(kind, bytes).file("f", b"x"))
}

/// A file whose header has `bytes` at `at`.
fn field(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut block = super::image_support::header(b"f", b'0', 0, b"");
    block[at..at + bytes.len()].copy_from_slice(bytes);
    checksum(&mut block);
    around(RawTar::new().raw(&block))
}

fn sparse_1_0(map: &str, real: &str, data: usize) -> Vec<u8> {
    let mut bytes = map.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.resize(bytes.len() + data, b'x');
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", real.as_bytes()),
    ];
    around(
        RawTar::new()
            .pax(&records)
            .header(b"s", b'0', bytes.len() as u64, b"")
            .body(&bytes),
    )
}

fn sparse_0_1(map: &[u8], size: &[u8]) -> Vec<u8> {
    pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)])
}

pub fn cases() -> Vec<Case> {
    let whole = around(RawTar::new());
    let mut cases = headers();
    cases.extend(extensions());
    cases.extend(sparse());
    cases.extend(entries());
    cases.push(("cut in a header", whole[..512 + 100].to_vec(), "cut off"));
    let large = RawTar::new().dir("etc").file("f", &[1; 2000]).bytes;
    cases.push(("cut in a body", large[..1024 + 1999].to_vec(), "cut off"));
    let lone = RawTar::new()
        .dir("etc")
        .file("a", b"x")
        .raw(&[0; 512])
        .file("b", b"x")
        .end();
    cases.push(("a zero block between entries", lone, "zero block"));
    cases
}

fn headers() -> Vec<Case> {
    let mut wrong = RawTar::new().file("f", b"x");
    wrong.bytes[0] = b'g';
    vec![
        ("checksum", around(wrong), "checksum"),
        ("letters for a mode", field(100, b"rw-r--r-"), "mode"),
        ("a minus in octal", field(124, b"-0000000001"), "size"),
        ("a size with a gap", field(124, b"00 0000000"), "size"),
        ("a negative size", field(124, &[0xff; 12]), "size"),
        (
            "a size beyond 63 bits",
            field(124, b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
            "size",
        ),
        (
            "an owner beyond 32 bits",
            field(108, b"\x80\0\0\x01\0\0\0\0"),
            "uid",
        ),
        ("a negative owner", field(108, &[0xff; 8]), "uid"),
        (
            "a time beyond 64 bits",
            field(136, b"\x80\x01\0\0\0\0\0\0\0\0\0\0"),
            "mtime",
        ),
        ("an unknown type", field(156, b"Z"), "type"),
        ("a multi-volume entry", field(156, b"M"), "type"),
    ]
}

fn extensions() -> Vec<Case> {
    let twice = |kind: u8, one: &[u8]| {
        around(
            RawTar::new()
                .extension(kind, one)
                .extension(kind, one)
                .file("f", b"x"),
        )
    };
    let orphan = RawTar::new()
        .dir("etc")
        .extension(b'x', &pax_record("uid", b"1"))
        .end();
    let large = RawTar::new()
        .dir("etc")
        .header(b"x", b'x', 1 << 30, b"")
        .end();
    vec![
        ("no length", body(b'x', b"path=a\n"), "length"),
        ("a length too large", body(b'x', b"99 path=a\n"), "length"),
        ("a length too small", body(b'x', b"3 path=a\n"), "newline"),
        ("a negative length", body(b'x', b"-10 path=a\n"), "length"),
        (
            "an endless length",
            body(b'x', b"99999999999999999999999 path=a\n"),
            "length",
        ),
        ("no newline", body(b'x', b"9 path=ab"), "newline"),
        ("no equals sign", body(b'x', b"8 pathx\n"), "equals"),
        ("an empty key", body(b'x', b"5 =a\n"), "key"),
        (
            "a key that is no text",
            body(
                b'x',
                &pax_record("k", b"v")
                    .iter()
                    .map(|b| if *b == b'k' { 0xff } else { *b })
                    .collect::<Vec<_>>(),
            ),
            "key",
        ),
        ("a name with a NUL byte", pax(&[("path", b"a\0b")]), "NUL"),
        (
            "a size that is no number",
            pax(&[("size", b"0x10")]),
            "size",
        ),
        ("a negative size", pax(&[("size", b"-1")]), "size"),
        (
            "an owner beyond 32 bits",
            pax(&[("uid", b"4294967296")]),
            "uid",
        ),
        (
            "a time that is no number",
            pax(&[("mtime", b"yesterday")]),
            "mtime",
        ),
        (
            "a time of 2^64",
            pax(&[("mtime", b"18446744073709551616")]),
            "mtime",
        ),
        (
            "xattr in bad base64",
            pax(&[("LIBARCHIVE.xattr.user.a", b"!")]),
            "LIBARCHIVE",
        ),
        (
            "two PAX headers",
            twice(b'x', &pax_record("uid", b"1")),
            "two extension headers",
        ),
        (
            "two long names",
            twice(b'L', b"name"),
            "two extension headers",
        ),
        (
            "two long links",
            twice(b'K', b"name"),
            "two extension headers",
        ),
        ("an extension without an entry", orphan, "without an entry"),
        (
            "a global path",
            body(b'g', &pax_record("path", b"a")),
            "path",
        ),
        (
            "a global size",
            body(b'g', &pax_record("size", b"1")),
            "size",
        ),
        (
            "a global sparse map",
            body(b'g', &pax_record("GNU.sparse.map", b"0,1")),
            "GNU.sparse.map",
        ),
        ("an extension of a gigabyte", large, "extension"),
    ]
}

fn sparse() -> Vec<Case> {
    let mut old = super::image_support::header(b"f", b'S', 0, b"");
    checksum(&mut old);
    vec![
        (
            "type S outside GNU's format",
            around(RawTar::new().raw(&old)),
            "type",
        ),
        (
            "overlapping runs",
            sparse_1_0("2\n0\n10\n5\n10\n", "100", 20),
            "overlap",
        ),
        (
            "runs out of order",
            sparse_1_0("2\n50\n10\n0\n10\n", "100", 20),
            "out of order",
        ),
        (
            "a run beyond the end",
            sparse_1_0("1\n95\n10\n", "100", 10),
            "beyond",
        ),
        (
            "runs that add up to less",
            sparse_1_0("1\n0\n5\n", "100", 10),
            "add up",
        ),
        (
            "a run that overflows",
            sparse_1_0("1\n18446744073709551615\n10\n", "100", 10),
            "beyond",
        ),
        (
            "a billion runs",
            sparse_1_0("1000000000\n", "100", 0),
            "too many",
        ),
        (
            "a map without numbers",
            sparse_1_0("one\n", "100", 0),
            "number",
        ),
        (
            "a map without an end",
            sparse_1_0("3\n0\n1\n", "100", 0),
            "map",
        ),
        (
            "0.1: an odd list",
            sparse_0_1(b"0,5,7", b"100"),
            "list of numbers",
        ),
        (
            "0.1: letters",
            sparse_0_1(b"a,b", b"100"),
            "list of numbers",
        ),
        (
            "0.1: no size",
            pax(&[("GNU.sparse.map", b"0,5")]),
            "size is missing",
        ),
        (
            "0.0: an offset alone",
            pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.offset", b"0")]),
            "without a length",
        ),
        (
            "0.0: a length alone",
            pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.numbytes", b"5")]),
            "without an offset",
        ),
        (
            "an unknown version",
            pax(&[
                ("GNU.sparse.major", b"7"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"9"),
            ]),
            "version",
        ),
        (
            "a sparse size that overflows",
            sparse_0_1(b"0,5", b"99999999999999999999"),
            "GNU.sparse.size",
        ),
    ]
}

fn entries() -> Vec<Case> {
    let long = "n".repeat(256);
    let deep = "d/".repeat(1100);
    vec![
        ("a path up", around(RawTar::new().file("../f", b"x")), ".."),
        (
            "a path up in the middle",
            around(RawTar::new().file("etc/../../f", b"x")),
            "..",
        ),
        (
            "a name of 256 bytes",
            pax(&[("path", long.as_bytes())]),
            "255 bytes",
        ),
        (
            "1100 directories deep",
            pax(&[("path", deep.as_bytes())]),
            "components",
        ),
        (
            "an empty name",
            around(RawTar::new().header(b"", b'0', 0, b"")),
            "empty",
        ),
        (
            "a file for the root",
            around(RawTar::new().header(b"./", b'2', 0, b"x")),
            "root",
        ),
        (
            "a link to itself",
            around(RawTar::new().hard_link("f", "./f")),
            "itself",
        ),
        (
            "a link to a directory",
            around(RawTar::new().hard_link("f", "etc")),
            "directory",
        ),
        (
            "a link to nothing",
            around(RawTar::new().hard_link("f", "nothing")),
            "nothing",
        ),
        (
            "a link up",
            around(RawTar::new().hard_link("f", "../etc/passwd")),
            "..",
        ),
        (
            "links in a ring",
            around(RawTar::new().hard_link("a", "b").hard_link("b", "a")),
            "hard link",
        ),
        (
            "a symlink to nothing at all",
            around(RawTar::new().header(b"f", b'2', 0, b"")),
            "target",
        ),
        (
            "a whiteout of nothing",
            around(RawTar::new().file(".wh.", b"")),
            "whiteout",
        ),
        (
            "a whiteout of ..",
            around(RawTar::new().file(".wh...", b"")),
            "whiteout",
        ),
        (
            "an entry below a whiteout",
            around(RawTar::new().file(".wh.a/b", b"")),
            "whiteout",
        ),
    ]
}
