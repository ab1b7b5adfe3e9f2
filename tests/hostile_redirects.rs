//! T20: marks of overlays that lead elsewhere, in a lower and in an upper.

mod engine_support;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use engine_support::Bench;
use ovl::overlay::{Options, Redirect, XattrSet};
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
