//! T14, T15: what is small and says it is large. Each import is a process of its own, whose peak memory is measured: under
//! 256 MiB, and it stops at the limit.

mod common;
mod image_support;

use std::io::Write;

use common::Sandbox;
use image_support::{RawTar, docker_archive_with, header, peak_memory};

/// Most memory an import may take, MiB.
const BOUND: u64 = 256;

/// Imports `bytes` with these options: refused with `word`, or taken if that is empty, in bounded memory.
#[track_caller]
fn bounded(what: &str, bytes: &[u8], options: &[&str], word: &str) {
    let sandbox = Sandbox::new();
    let file = sandbox.write("bomb", bytes);
    let mut args = vec!["import"];
    args.extend(options);
    args.push(file.to_str().unwrap());
    let peak = peak_memory(&sandbox.root(), &sandbox.path("."), &args);
    assert!(peak.megabytes < BOUND, "{what}: {} MiB", peak.megabytes);
    if word.is_empty() {
        assert_eq!(peak.code, 0, "{what}: {}", peak.stderr);
        return;
    }
    assert_ne!(peak.code, 0, "{what}");
    assert!(
        peak.stderr.contains(word),
        "{what}: {:?} lacks {word:?}",
        peak.stderr
    );
    assert_eq!(sandbox.run(["images", "-q"]), "", "{what}");
    // What came in before the limit is not kept.
    sandbox.run(["gc"]);
    let left = std::fs::metadata(sandbox.root().join("store.db"))
        .unwrap()
        .len();
    assert!(left < 4 << 20, "{what}: {left} bytes are left in the store");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A zstd frame of so many times 128 KiB of one byte, four bytes of input for each (RFC 8878, 3.1.1.2), with a window of
/// 2^`window` bytes.
fn zstd_frame(window: u8, blocks: usize, byte: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3];
    for n in 0..blocks {
        let last = u32::from(n + 1 == blocks);
        let block = (128 << 10) << 3 | 1 << 1 | last;
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.push(byte);
    }
    frame
}

#[test]
fn t15_compressed_zeros_stop_at_the_limit() {
    let limit = ["--max-layer-size", "300000000"];
    let head = header(b"zeros", b'0', 7 << 30, b"");
    // 64 GiB in members of 64 MiB.
    let member = gzip(&vec![0; 64 << 20]);
    let bomb = [gzip(&head), member.repeat(1024)].concat();
    bounded("gzip of 64 GiB", &bomb, &limit, "--max-layer-size");
    // 64 GiB in a frame of 2 MiB, behind the frame with the header.
    let start = zstd::encode_all(&head[..], 3).unwrap();
    let bomb = [start, zstd_frame(20, 1 << 19, 0)].concat();
    bounded("zstd of 64 GiB", &bomb, &limit, "--max-layer-size");
    // The same as an image, whose layer says how large it is.
    bounded("tar that says 7 GiB", &head, &[], "cut off");
}

/// What keeps a blob holds parts of it, for several threads at once: as large as parts get, and of as many blocks and matches.
#[test]
fn t15_blobs_that_are_kept() {
    const FILE: usize = 24 << 20;
    let mut noise = 1_u32;
    let mut random = |mask: u8| {
        noise ^= noise << 13;
        noise ^= noise >> 17;
        noise ^= noise << 5;
        noise as u8 & mask
    };
    let incompressible: Vec<u8> = (0..FILE).map(|_| random(0xff)).collect();
    let short_matches: Vec<u8> = (0..FILE).map(|_| random(1)).collect();
    let zeros = vec![0; FILE];
    // What the file is, how it is compressed, and after how many bytes the stream is flushed.
    for (what, file, level, flushed) in [
        ("zeros", &zeros, 9, FILE),
        ("short matches", &short_matches, 1, FILE),
        ("incompressible", &incompressible, 6, FILE),
        ("stored", &incompressible, 0, 100_000),
        ("flushed parts", &short_matches, 6, 1 << 20),
        ("small blocks", &short_matches, 1, 300),
    ] {
        let tar = RawTar::new().file("f", file).end();
        let level = flate2::Compression::new(level);
        let mut out = flate2::write::GzEncoder::new(Vec::new(), level);
        for part in tar.chunks(flushed) {
            out.write_all(part).unwrap();
            out.flush().unwrap();
        }
        let blob = out.finish().unwrap();
        bounded(what, &blob, &["--keep-compressed", "always"], "");
    }
}

#[test]
fn t15_zstd_windows() {
    let tar = zstd::encode_all(&RawTar::new().file("x", b"x").end()[..], 3).unwrap();
    let with = |window| [tar.clone(), zstd_frame(window, 2000, 0)].concat();
    for window in [28, 31, 41] {
        bounded("a window beyond 128 MiB", &with(window), &[], "memory");
    }
    // The largest that is taken: the decoder needs all of it.
    bounded("a window of 128 MiB", &with(27), &[], "");
}

#[test]
fn t15_a_great_many_entries() {
    let mut tar = Vec::new();
    for n in 0..60_000u32 {
        tar.extend_from_slice(&header(
            format!("d{}/{n}", n % 500).as_bytes(),
            b'0',
            0,
            b"",
        ));
    }
    tar.extend_from_slice(&[0; 1024]);
    let packed = gzip(&tar);
    bounded(
        "too many entries",
        &packed,
        &["--max-entries", "50000"],
        "--max-entries",
    );
    bounded("many entries", &packed, &[], "");
}

/// Every entry has as many attributes as one may have: none is kept in memory for the others.
#[test]
fn t15_attributes_of_many_entries() {
    let value = vec![b'x'; 60_000];
    let names: Vec<String> = (0..17).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &value[..]))
        .collect();
    let one = RawTar::new().pax(&records).bytes;
    let mut tar = Vec::new();
    for n in 0..100 {
        tar.extend_from_slice(&one);
        tar.extend_from_slice(&header(format!("f{n}").as_bytes(), b'0', 0, b""));
    }
    bounded("100 MiB of attributes", &gzip(&tar), &[], "");
    bounded(
        "an extension of a gigabyte",
        &header(b"x", b'x', 1 << 30, b""),
        &[],
        "extension header",
    );
}

#[test]
fn t14_sparse_files() {
    let sparse = |real: &str, map: &str, data: usize| {
        let mut body = map.as_bytes().to_vec();
        body.resize(body.len().next_multiple_of(512), 0);
        body.resize(body.len() + data, b'x');
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"f"),
            ("GNU.sparse.realsize", real.as_bytes()),
        ];
        RawTar::new()
            .pax(&records)
            .header(b"s", b'0', body.len() as u64, b"")
            .body(&body)
            .end()
    };
    bounded(
        "8 EiB and a byte",
        &sparse("9223372036854775807", "1\n0\n1\n", 1),
        &[],
        "more than the limit",
    );
    bounded(
        "16 TiB of hole",
        &sparse("17592186044416", "1\n17592186044415\n1\n", 1),
        &[],
        "",
    );
    bounded(
        "a billion runs",
        &sparse("1", "1000000000\n0\n0\n", 0),
        &[],
        "too many extents",
    );
    // As many runs as are taken, a byte each, every one between holes.
    let runs = 1 << 20;
    let mut map = format!("{runs}\n");
    for n in 0..runs {
        map.push_str(&format!("{}\n1\n", n * 2 + 1));
    }
    bounded("a million runs", &sparse("3000000", &map, runs), &[], "");
}

#[test]
fn t15_documents() {
    let layer = RawTar::new().file("x", b"x").end();
    let id = ovl::store::Digest::of(&layer);
    let config = |rest: &str| {
        format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{id}"]}},"odd":{rest}}}"#
        )
    };
    let layers = std::slice::from_ref(&layer);
    let numbers = format!("[0{}]", ",0".repeat(3_500_000));
    bounded(
        "a list of millions",
        &docker_archive_with(layers, &config(&numbers)),
        &[],
        "",
    );
    let objects = format!("[{{}}{}]", ",{}".repeat(2_000_000));
    bounded(
        "millions of objects",
        &docker_archive_with(layers, &config(&objects)),
        &[],
        "",
    );
    let deep = format!("{}{}", "[".repeat(3_000_000), "]".repeat(3_000_000));
    bounded(
        "millions of lists in lists",
        &docker_archive_with(layers, &config(&deep)),
        &[],
        "recursion",
    );
    let large = format!("\"{}\"", "x".repeat(9 << 20));
    bounded(
        "a configuration of 9 MiB",
        &docker_archive_with(layers, &config(&large)),
        &[],
        "bytes",
    );
}
