//! The tar reader on bytes nobody meant: it must end, never panic, and account for every byte it was given.

mod image_support;

use image_support::*;
use ovl::image::tar::{TarError, TarLimits, TarReader};
use proptest::prelude::*;

const LIMITS: TarLimits = TarLimits {
    path: 4096,
    extension: 1 << 20,
    file_size: 1 << 40,
};

/// Reads everything; the tapped and body bytes in order, and whether it went well.
fn drain(bytes: &[u8], piece: usize) -> (Vec<u8>, Result<usize, TarError>) {
    let mut seen = Vec::new();
    let mut reader = TarReader::new(std::io::BufReader::with_capacity(piece, bytes), LIMITS);
    let mut entries = 0;
    let result = (|| {
        loop {
            let next = reader.next::<TarError>(&mut |b| {
                seen.extend_from_slice(b);
                Ok(())
            })?;
            let Some(entry) = next else { break };
            entries += 1;
            // Half of each body is read, the rest left to the reader.
            reader.body::<TarError>(entry.stored / 2, &mut |b| {
                seen.extend_from_slice(b);
                Ok(())
            })?;
        }
        reader.trailer::<TarError>(&mut |b| {
            seen.extend_from_slice(b);
            Ok(())
        })?;
        Ok(entries)
    })();
    (seen, result)
}

fn sample() -> Vec<u8> {
    RawTar::new()
        .extension(b'g', &pax_record("comment", b"hello"))
        .dir("d/")
        .pax(&[
            ("path", b"d/long"),
            ("SCHILY.xattr.user.x", b"\0\xff"),
            ("mtime", b"-1.25"),
        ])
        .file("x", &[1; 700])
        .extension(b'L', &[b'n'; 200])
        .symlink("short", "target")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"100000"),
        ])
        .header(b"x", b'0', 1024, b"")
        .body(b"1\n512\n512\n")
        .raw(&[3; 512])
        .hard_link("h", "d/long")
        .end()
}

#[test]
fn every_byte_is_seen_whatever_the_pieces() {
    let bytes = sample();
    for piece in [1, 7, 511, 512, 513, 4096, 1 << 20] {
        let (seen, result) = drain(&bytes, piece);
        assert_eq!(result.unwrap(), 5, "{piece}");
        assert!(seen == bytes, "{piece}");
    }
}

#[test]
fn every_cut_is_seen_up_to_the_end_or_refused() {
    let bytes = sample();
    for len in 0..bytes.len() {
        let (seen, result) = drain(&bytes[..len], 512);
        if result.is_ok() {
            assert!(seen == bytes[..len], "cut to {len}");
        }
        assert!(bytes.starts_with(&seen), "cut to {len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes changed anywhere, checksums repaired so that the change gets past them.
    #[test]
    fn mutated_tars(changes in prop::collection::vec((0usize..8192, any::<u8>()), 1..12), repair in any::<bool>()) {
        let mut bytes = sample();
        let len = bytes.len();
        for (at, value) in changes {
            bytes[at % len] = value;
        }
        if repair {
            for block in bytes.as_chunks_mut::<512>().0 {
                if &block[257..262] == b"ustar" {
                    checksum(block);
                }
            }
        }
        let (seen, result) = drain(&bytes, 512);
        prop_assert!(bytes.starts_with(&seen));
        if result.is_ok() {
            prop_assert!(seen == bytes);
        }
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let (seen, _) = drain(&bytes, 64);
        prop_assert!(bytes.starts_with(&seen));
    }

    /// PAX bodies of every kind within an otherwise good archive.
    #[test]
    fn pax_bodies(body in "([0-9]{1,3} ?(path|size|mtime|GNU.sparse.[a-z]{3,8}|SCHILY.xattr.u|uid)?=?[-0-9a-z.,]{0,12}\n?){0,6}") {
        let bytes = RawTar::new().extension(b'x', body.as_bytes()).file("f", b"data").end();
        let (seen, result) = drain(&bytes, 512);
        if result.is_ok() {
            prop_assert!(seen == bytes);
        }
    }
}
