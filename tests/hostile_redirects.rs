//! T20: marks of overlays that lead elsewhere, in a lower and in an upper.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use engine_support::Bench;
use ovl::overlay::{NodeId, Options, Redirect, XattrSet};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).expect("lsetxattr");
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = [0; 4096];
    match rustix::fs::lgetxattr(path, name, &mut value[..]) {
        Ok(length) => Some(value[..length].to_vec()),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
        Err(e) => panic!("{}: {name}: {e}", path.display()),
    }
}

/// Redirects of lowers, and of an upper that somebody else made, lead nowhere but into the layers below.
#[test]
fn t20_redirects_do_not_leave_the_layers() {
    const OUT: [&[u8]; 9] = [
        b"../../../outside",
        b"/../outside",
        b"/../../../../../../../../etc",
        b"..",
        b".",
        b"/",
        b"/d/../../outside",
        b"//etc",
        b"outside/../../outside",
    ];
    for redirect in [
        Redirect::Upper,
        Redirect::All,
        Redirect::Off,
        Redirect::Ignore,
    ] {
        for out in OUT {
            for in_upper in [false, true] {
                let options = Options {
                    redirect,
                    ..Options::default()
                };
                let mut b = Bench::with(options, |one, two| {
                    let outside = one.parent().unwrap().join("outside");
                    fs::create_dir(&outside).unwrap();
                    fs::write(outside.join("canary"), "untouched").unwrap();
                    fs::create_dir_all(one.join("d/below")).unwrap();
                    fs::create_dir(two.join("d")).unwrap();
                    if !in_upper {
                        set_xattr(&two.join("d"), "trusted.overlay.redirect", out);
                    }
                });
                if in_upper {
                    b.close();
                    fs::create_dir(b.upper("d")).unwrap();
                    set_xattr(&b.upper("d"), "trusted.overlay.redirect", out);
                    b.remount();
                }
                let what = format!("{redirect:?} {} in_upper {in_upper}", out.escape_ascii());
                for name in ["d/canary", "d/passwd", "d/outside", "d/lower1"] {
                    let found = b.find(name);
                    assert!(!matches!(found, Ok(Some(_))), "{what}: {name}");
                }
                if b.find("d").is_ok_and(|entry| entry.is_some()) {
                    let _ = b.mkdir("d/made");
                }
                let outside = b.tmp.path().join("outside");
                assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{what}");
                assert_eq!(fs::read(outside.join("canary")).unwrap(), b"untouched");
            }
        }
    }
}

/// A file of a lower that says it has its data elsewhere is not followed there.
#[test]
fn t20_metacopy_in_a_lower_is_an_error() {
    let b = Bench::with(
        Options {
            metacopy: true,
            redirect: Redirect::All,
            ..Options::default()
        },
        |one, two| {
            fs::write(one.join("secret"), "secret").unwrap();
            fs::write(two.join("f"), "").unwrap();
            set_xattr(&two.join("f"), "trusted.overlay.metacopy", b"");
            set_xattr(&two.join("f"), "trusted.overlay.redirect", b"/secret");
        },
    );
    let node = b.get("f").node;
    assert_eq!(b.overlay.read(node, 0, &mut [0; 16]), Err(Errno::IO));
    // Nor is it set through the mount.
    b.create("new", b"own");
    let new = b.get("new").node;
    for (name, value) in [("metacopy", &b""[..]), ("redirect", b"/secret")] {
        let name = format!("trusted.overlay.{name}");
        b.overlay
            .setxattr(new, OsStr::new(&name), value, XattrSet::Any)
            .unwrap();
    }
    assert_eq!(b.read("new"), b"own");
    assert_eq!(xattr(&b.upper("new"), "trusted.overlay.metacopy"), None);
}

/// Ends the test if `work` hangs.
fn in_time(what: &str, work: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        work();
        done.send(()).unwrap();
    });
    match wait.recv_timeout(Duration::from_secs(30)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: hangs"),
        _ => worker.join().unwrap(),
    }
}

/// Looks a path up, and makes sure that no directory on it is inside itself.
fn descend(b: &Bench, path: &str) -> Result<NodeId, Errno> {
    let mut on_path = vec![NodeId::ROOT];
    for name in path.split('/') {
        let at = *on_path.last().unwrap();
        let found = b.overlay.lookup(at, OsStr::new(name))?;
        let found = found.ok_or(Errno::NOENT)?.node;
        assert!(!on_path.contains(&found), "{path}: {name} is inside itself");
        on_path.push(found);
    }
    Ok(*on_path.last().unwrap())
}

/// An upper whose `A` is the lower's `d/e` and has in it a `B` that is `d`, and whose `C` is `d/e` too.
fn nested() -> Bench {
    let options = Options {
        redirect: Redirect::Upper,
        ..Options::default()
    };
    let mut b = Bench::with(options, |one, _| {
        fs::create_dir_all(one.join("d/e/sub")).unwrap();
        fs::write(one.join("d/e/f"), "f").unwrap();
        fs::create_dir(one.join("z")).unwrap();
    });
    b.close();
    for (dir, to) in [("A", "/d/e"), ("A/B", "/d"), ("C", "/d/e")] {
        fs::create_dir(b.upper(dir)).unwrap();
        set_xattr(&b.upper(dir), "trusted.overlay.redirect", to.as_bytes());
    }
    b.remount();
    b
}

/// Redirects that nest in a circle: whatever is looked up first, no directory gets into itself, and nothing that is done
/// there hangs.
#[test]
fn t20_redirects_in_a_circle_end() {
    const FIRST: [&[&str]; 5] = [
        &["A/B/e"],
        &["d/e/sub", "A/B/e"],
        &["C", "A/B/e"],
        &["A/B/sub", "A/sub", "C/sub", "A/B/e/sub", "A/B/e"],
        &["A/B", "d/e", "A/B/e/B/e/B/e"],
    ];
    for first in FIRST {
        in_time(&format!("{first:?}"), move || {
            let b = nested();
            for _ in 0..3 {
                for path in first {
                    println!("{path}: {:?}", descend(&b, path));
                }
                let inside = descend(&b, "A/B").expect("A/B is a directory of the upper");
                // Asks whether the one is inside the other, up to the root.
                println!("rename z: {:?}", b.rename("z", "A/B/z"));
                println!("rename back: {:?}", b.rename("A/B/z", "z"));
                for path in ["A/B/e", "d/e", "C", "A/B/e/sub"] {
                    let Ok(dir) = descend(&b, path) else { continue };
                    let new = OsStr::new("new");
                    let made = b.overlay.mkdir(engine_support::ROOT, dir, new, 0o755, 0);
                    println!("mkdir {path}/new: {made:?}");
                    let flags = ovl::overlay::RenameFlags::default();
                    let moved = b.overlay.rename(
                        NodeId::ROOT,
                        OsStr::new("A"),
                        dir,
                        OsStr::new("x"),
                        flags,
                    );
                    println!("rename A {path}/x: {moved:?}");
                    if moved.is_ok() {
                        b.overlay
                            .rename(dir, OsStr::new("x"), NodeId::ROOT, OsStr::new("A"), flags)
                            .unwrap();
                    }
                    let _ = b.overlay.rmdir(dir, new);
                    let _ = b.overlay.getattr(dir);
                    let _ = b.overlay.read_dir(dir, 0, true, &mut |_| true);
                }
                b.overlay.getattr(inside).expect("A/B has attributes");
            }
            assert!(
                b.overlay.node_count() < 32,
                "{} nodes",
                b.overlay.node_count()
            );
        });
    }
}

/// The origin of a redirect that is reached at a second place while the redirected directory is known: as in the kernel's
/// overlayfs it is stale, and the other keeps its place and its content.
#[test]
fn t20_an_uncovered_origin_is_stale() {
    in_time("origin", || {
        let b = nested();
        let a = descend(&b, "A").unwrap();
        assert_eq!(descend(&b, "d/e"), Err(Errno::STALE));
        assert_eq!(descend(&b, "A/B/e"), Err(Errno::STALE));
        assert_eq!(descend(&b, "A").unwrap(), a);
        assert_eq!(b.read("A/f"), b"f");
        // Equal redirects: two directories.
        assert_ne!(descend(&b, "C").unwrap(), a);
        assert_eq!(b.read("C/f"), b"f");
        b.write("A/f", 0, b"F");
        assert_eq!(b.read("A/f"), b"F");
    });
}

/// Directories of an upper that change places under a running mount, seen through what was known of them before.
#[test]
fn t20_directories_moved_into_each_other_below_end() {
    in_time("moved below", || {
        let b = Bench::new(|one, _| fs::create_dir(one.join("z")).unwrap());
        fs::create_dir_all(b.upper("a/b")).unwrap();
        let (a, inner) = (descend(&b, "a").unwrap(), descend(&b, "a/b").unwrap());
        assert!(matches!(b.overlay.lookup(inner, OsStr::new("a")), Ok(None)));
        fs::rename(b.upper("a/b"), b.upper("b")).unwrap();
        fs::rename(b.upper("a"), b.upper("b/a")).unwrap();
        // `inner` is known as `a/b` still.
        let found = b.overlay.lookup(inner, OsStr::new("a"));
        assert!(matches!(found, Err(Errno::LOOP)), "{found:?}");
        for dir in [a, inner] {
            let flags = ovl::overlay::RenameFlags::default();
            let name = OsStr::new("z");
            let moved = b.overlay.rename(NodeId::ROOT, name, dir, name, flags);
            println!("rename: {moved:?}");
            let made = b
                .overlay
                .mkdir(engine_support::ROOT, dir, OsStr::new("new"), 0o755, 0);
            println!("mkdir: {made:?}");
        }
    });
}
