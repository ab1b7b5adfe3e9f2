//! T07, T09, T16: what is left of hostile layers beside `hostile_image.rs`: a host directory's mode, one directory named twice,
//! and what follows, or is missing from, a compressed stream.

mod image_support;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use image_support::fixture::*;
use image_support::*;
use ovl::store::Digest;

/// A header of a directory with this mode.
fn dir_of_mode(name: &str, mode: &str) -> [u8; 512] {
    let mut block = header(name.as_bytes(), b'5', 0, b"");
    block[100..107].copy_from_slice(mode.as_bytes());
    checksum(&mut block);
    block
}

/// CVE-2026-33056: a directory entry after a symlink of its name changed the mode of what the symlink led to.
#[test]
fn t07_the_mode_of_what_a_symlink_leads_to() {
    let f = Fixture::new();
    let probe = f.dir.path().join("probe");
    fs::create_dir(&probe).unwrap();
    fs::set_permissions(&probe, fs::Permissions::from_mode(0o750)).unwrap();
    let target = probe.to_str().unwrap();
    for name in ["foo", "foo/.", "foo/", "./foo/./"] {
        let layer = RawTar::new()
            .symlink("foo", target)
            .raw(&dir_of_mode(name, "0000777"))
            .end();
        let tree = f.tree(&layer);
        assert_eq!(tree[OsStr::new("foo")].perm, 0o777, "{name}");
        let mode = probe.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o750, "{name}");
    }
}

#[test]
fn t09_a_directory_twice() {
    let f = Fixture::new();
    let layer = RawTar::new()
        .raw(&dir_of_mode("d", "0000700"))
        .file("d/kept", b"x")
        .raw(&dir_of_mode("d", "0001755"))
        .end();
    let tree = f.tree(&layer);
    assert_eq!(tree[OsStr::new("d")].perm, 0o1755, "the last one counts");
    assert!(tree.contains_key(OsStr::new("d/kept")));
    // The digest is that of the bytes, both entries among them.
    assert!(layer_tar(&f.store, &Digest::of(&layer)) == layer);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

#[test]
fn t16_what_follows_a_compressed_stream() {
    type Pack = fn(&[u8]) -> Vec<u8>;
    let layer = RawTar::new().file("x", b"x").end();
    let (one, two) = layer.split_at(700);
    for (kind, pack) in [("gzip", gzip as Pack), ("zstd", zstd)] {
        let whole = pack(&layer);
        // Several members are one stream, an empty one among them.
        let members = [pack(one), pack(b""), pack(two)].concat();
        for bytes in [&whole, &members] {
            for pipe in [false, true] {
                let f = Fixture::new();
                let images = if pipe { f.pipe(bytes) } else { f.import(bytes) };
                let images = images.unwrap_or_else(|e| panic!("{kind}: {e}"));
                assert_eq!(images[0].layers, [Digest::of(&layer)], "{kind}");
                assert!(layer_tar(&f.store, &images[0].layers[0]) == layer, "{kind}");
            }
        }
        // A member that holds more: its bytes are the layer's too.
        let more = [pack(&layer), pack(b"behind the end")].concat();
        let all = [&layer[..], b"behind the end"].concat();
        let f = Fixture::new();
        assert_eq!(
            f.import(&more).unwrap()[0].layers,
            [Digest::of(&all)],
            "{kind}"
        );
        // Bytes that are no member, and members cut short.
        let junk = [&whole[..], b"junk that is no member"].concat();
        let mut cases = vec![("junk", junk)];
        for cut in [1, 4, 8, 9, whole.len() / 2] {
            cases.push(("cut", whole[..whole.len() - cut].to_vec()));
        }
        for (what, bytes) in cases {
            for pipe in [false, true] {
                let f = Fixture::new();
                let result = if pipe {
                    f.pipe(&bytes)
                } else {
                    f.import(&bytes)
                };
                let error = result.expect_err(&format!("{kind}: {what}"));
                assert_eq!(error.exit_code(), 5, "{kind}: {what}: {error}");
                f.untouched();
            }
        }
    }
}
