//! Hostile layers, T01 to T09: paths, links, whiteouts, order. Cases are numbered as in the project's list of hostile
//! input; T10 to T19 are in `image_hostile_tar.rs`, T21 to T30 in `image_hostile_documents.rs`.
//!
//! An import never unpacks anything, so what is checked is: the error and that nothing was recorded, or the tree that the
//! store now holds.

mod image_support;

use std::ffi::OsStr;
use std::fs;

use image_support::fixture::*;
use image_support::*;
use ovl::meta::FileKind;
use ovl::store::Digest;

#[test]
fn t01_paths_that_climb() {
    let f = Fixture::new();
    for path in [
        "../canary",
        "../../canary",
        "a/../../canary",
        "a/..",
        "..",
        "/../x",
        "./../x",
    ] {
        f.refused(&RawTar::new().file(path, b"x").end(), "\"..\"");
        f.refused(&RawTar::new().dir(path).end(), "\"..\"");
        f.refused(
            &RawTar::new().file("a", b"").hard_link("b", path).end(),
            "\"..\"",
        );
    }
    let tree = f.tree(
        &RawTar::new()
            .file("/abs/canary", b"x")
            .file("//./b//c/", b"y")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "abs", "abs/canary", "b", "b/c"]);
}

#[test]
fn t02_writing_through_a_symlink() {
    let f = Fixture::new();
    let probe = f.dir.path().join("probe");
    fs::create_dir(&probe).unwrap();
    let target = probe.to_str().unwrap();
    let tree = f.tree(
        &RawTar::new()
            .symlink("etc", target)
            .file("etc/x", b"x")
            .end(),
    );
    assert_eq!(tree[OsStr::new("etc")].kind, FileKind::Directory);
    let trees = f.trees(&[
        RawTar::new().symlink("etc", target).end(),
        RawTar::new().file("etc/x", b"x").end(),
    ]);
    assert_eq!(trees[0][OsStr::new("etc")].kind, FileKind::Symlink);
    assert_eq!(trees[1][OsStr::new("etc/x")].kind, FileKind::Regular);
    assert_eq!(fs::read_dir(&probe).unwrap().count(), 0);
}

#[test]
fn t03_a_root_that_is_no_directory() {
    let f = Fixture::new();
    for name in [".", "/.", "./", "/", "././/"] {
        f.refused(
            &RawTar::new().symlink(name, "/").file("x", b"").end(),
            "root of the layer",
        );
        f.refused(&RawTar::new().file(name, b"").end(), "root of the layer");
        f.refused(
            &RawTar::new().file("a", b"").hard_link(name, "a").end(),
            "root of the layer",
        );
    }
    f.refused(&RawTar::new().symlink("", "/").end(), "name is empty");
}

#[test]
fn t04_hard_links() {
    let f = Fixture::new();
    f.refused(
        &RawTar::new().hard_link("a", "etc/shadow").end(),
        "neither in this layer",
    );
    f.refused(
        &RawTar::new().hard_link("a", "/etc/shadow").end(),
        "neither in this layer",
    );
    f.refused(&RawTar::new().hard_link("a", "a").end(), "to itself");
    f.refused(&RawTar::new().hard_link("a", "./a").end(), "to itself");
    f.refused(
        &RawTar::new().dir("d").hard_link("a", "d").end(),
        "directory",
    );
    f.refused(
        &RawTar::new().dir("d").hard_link("a", ".").end(),
        "directory",
    );
    f.refused(
        &RawTar::new().hard_link("a", "b").hard_link("b", "a").end(),
        "neither in this layer",
    );
    f.refused(
        &RawTar::new().hard_link("a", "b").hard_link("b", "c").end(),
        "neither in this layer",
    );
    let links: Vec<u8> = (0..10_001)
        .fold(RawTar::new(), |tar, i| {
            tar.hard_link(&format!("l{i}"), "nowhere")
        })
        .end();
    f.refused(&links, "too many hard links");
    // To a symlink: the symlink gets another name, wherever it points.
    let tree = f.tree(
        &RawTar::new()
            .symlink("s", "/etc/shadow")
            .hard_link("l", "s")
            .end(),
    );
    assert_eq!(
        (tree[OsStr::new("l")].kind, tree[OsStr::new("l")].nlink),
        (FileKind::Symlink, 2)
    );
    // To an entry that comes later.
    let tree = f.tree(
        &RawTar::new()
            .hard_link("l", "later")
            .file("later", b"x")
            .end(),
    );
    assert_eq!(tree[OsStr::new("l")], tree[OsStr::new("later")]);
    assert_eq!(tree[OsStr::new("l")].nlink, 2);
}

#[test]
fn t04_hard_links_into_lower_layers() {
    let lower = RawTar::new()
        .dir("d")
        .file("d/f", b"lower")
        .file("gone", b"x")
        .symlink("up", "d")
        .end();
    let hide = RawTar::new().file(".wh.gone", b"").end();
    let f = Fixture::new();
    let upper = RawTar::new()
        .hard_link("copy", "d/f")
        .hard_link("second", "copy")
        .hard_link("replaced", "d/f")
        .file("replaced", b"later")
        .hard_link("became", "d/f")
        .file("became/dir", b"x")
        .end();
    for way in ["file", "pipe"] {
        let f = Fixture::new();
        let archive = docker_archive(&[lower.clone(), hide.clone(), upper.clone()]);
        let images = if way == "file" {
            f.import(&archive)
        } else {
            f.pipe(&archive)
        };
        let images = images.unwrap_or_else(|e| panic!("{way}: {e}"));
        let tree = stored_tree(&f.store, &images[0].layers[2]);
        let copy = &tree[OsStr::new("copy")];
        assert_eq!(
            (copy.content.clone(), copy.nlink),
            (Digest::of(b"lower").to_string(), 2),
            "{way}"
        );
        assert_eq!(&tree[OsStr::new("second")], copy);
        assert_eq!(
            tree[OsStr::new("replaced")].content,
            Digest::of(b"later").to_string()
        );
        assert_eq!(tree[OsStr::new("became")].kind, FileKind::Directory);
        assert!(layer_tar(&f.store, &images[0].layers[2]) == upper);
    }
    for (link, reason) in [
        // Hidden by the whiteout between.
        (
            RawTar::new().hard_link("a", "gone"),
            "neither in this layer",
        ),
        (
            RawTar::new().hard_link("a", "d"),
            "hard link to the directory",
        ),
        // Symlinks in a target are not followed.
        (
            RawTar::new().hard_link("a", "up/f"),
            "neither in this layer",
        ),
    ] {
        for way in ["file", "pipe"] {
            let archive = docker_archive(&[lower.clone(), hide.clone(), link.clone().end()]);
            let error = if way == "file" {
                f.import(&archive)
            } else {
                f.pipe(&archive)
            }
            .unwrap_err();
            assert!(error.to_string().contains(reason), "{way}: {error}");
            f.untouched();
        }
    }
}

/// On a pipe each layer with such links stays half written until the end: there is a bound.
#[test]
fn t04_too_many_waiting_layers_on_a_pipe() {
    let lower = RawTar::new().file("f", b"lower").end();
    let upper = |i: usize| RawTar::new().hard_link(&format!("link{i}"), "f").end();
    let layers = |n: usize| -> Vec<Vec<u8>> {
        std::iter::once(lower.clone())
            .chain((0..n).map(upper))
            .collect()
    };
    let f = Fixture::new();
    let error = f.pipe(&docker_archive(&layers(33))).unwrap_err();
    assert!(error.to_string().contains("uncompressed file"), "{error}");
    f.untouched();
    assert!(f.import(&docker_archive(&layers(33))).is_ok());
    assert!(Fixture::new().pipe(&docker_archive(&layers(32))).is_ok());
}

#[test]
fn t05_whiteouts_that_escape() {
    let f = Fixture::new();
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh..."] {
        f.refused(&RawTar::new().file(name, b"").end(), "whiteout");
    }
    f.refused(
        &RawTar::new().file(".wh.a/b", b"").end(),
        "below a whiteout",
    );
    f.refused(
        &RawTar::new()
            .symlink("etc", "/probe")
            .file("etc/../.wh.x", b"")
            .end(),
        "\"..\"",
    );
    // AUFS' own files say nothing, nor does what lies below them.
    let tree = f.tree(
        &RawTar::new()
            .file(".wh..wh.foo", b"junk")
            .dir(".wh..wh.plnk")
            .file(".wh..wh.plnk/123.456", b"x")
            .hard_link(".wh..wh.aufs2", ".wh..wh.plnk/123.456")
            .file("a", b"")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "a"]);
    // A whiteout and an opaque mark below a symlink of the same layer act on the layer's own tree.
    let tree = f.tree(
        &RawTar::new()
            .symlink("etc", "/probe")
            .file("etc/.wh.victim", b"")
            .symlink("o", "/x")
            .file("o/.wh..wh..opq", b"")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "etc", "etc/victim(whiteout)", "o"]);
    assert_eq!(
        (
            tree[OsStr::new("o")].kind,
            tree[OsStr::new("o")].content.as_str()
        ),
        (FileKind::Directory, "(opaque)")
    );
    // AUFS wrote whiteouts as hard links to one file.
    let tree = f.tree(&RawTar::new().hard_link("a/.wh.x", ".wh..wh.aufs").end());
    assert_eq!(paths(&tree), ["", "a", "a/x(whiteout)"]);
}

#[test]
fn t06_order_within_a_layer_does_not_matter() {
    let parts: [fn(RawTar) -> RawTar; 4] = [
        |t| t.file("d/.wh..wh..opq", b""),
        |t| t.file("d/sibling", b"s"),
        |t| t.file(".wh.x", b""),
        |t| t.file("x", b"new"),
    ];
    let mut trees = Vec::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 3, 1]] {
        let tar = order.iter().fold(RawTar::new(), |tar, &i| parts[i](tar));
        trees.push(Fixture::new().tree(&tar.end()));
    }
    assert!(
        trees.windows(2).all(|pair| pair[0] == pair[1]),
        "{trees:#?}"
    );
    let tree = &trees[0];
    assert_eq!(paths(tree), ["", "d", "d/sibling", "x"]);
    assert_eq!(tree[OsStr::new("d")].content, "(opaque)");
    // A whiteout of a parent, then an entry below it: the parent is there, and hides what was below.
    let tree = Fixture::new().tree(&RawTar::new().file(".wh.d", b"").file("d/new", b"").end());
    assert_eq!(tree[OsStr::new("d")].content, "(opaque)");
    assert!(tree.contains_key(OsStr::new("d/new")));
}

#[test]
fn t07_t08_t09_later_entries_win() {
    let f = Fixture::new();
    let tree = f.tree(&RawTar::new().symlink("foo", "/probe").dir("foo").end());
    assert_eq!(tree[OsStr::new("foo")].kind, FileKind::Directory);
    let tree = f.tree(&RawTar::new().symlink("foo", "/probe").dir("foo/.").end());
    assert_eq!(tree[OsStr::new("foo")].kind, FileKind::Directory);
    let tree = f.tree(
        &RawTar::new()
            .dir("d")
            .file("d/x", b"")
            .file("d", b"file")
            .end(),
    );
    assert_eq!(paths(&tree), ["", "d"]);
    let tree = f.tree(&RawTar::new().file("f", b"x").file("f/below", b"").end());
    assert_eq!(paths(&tree), ["", "f", "f/below"]);
    let tree = f.tree(
        &RawTar::new()
            .file("a", b"1")
            .file("a", b"22")
            .symlink("b", "x")
            .file("b", b"3")
            .end(),
    );
    assert_eq!(
        (tree[OsStr::new("a")].size, tree[OsStr::new("b")].kind),
        (2, FileKind::Regular)
    );
}
