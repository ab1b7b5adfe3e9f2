//! Tables for the `-o` grammar, from command lines recorded of podman and buildah.

use std::path::Path;

use super::*;

fn parse_one(word: &str) -> Parsed {
    parse([word]).unwrap_or_else(|e| panic!("{word}: {e}"))
}

fn options(word: &str) -> Options {
    let parsed = parse_one(word);
    assert_eq!(parsed.warnings, Vec::<String>::new(), "{word}");
    parsed.options
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn as_podman_writes_them() {
    let o = options("lowerdir=l/ABC:l/DEF,upperdir=/s/1/diff,workdir=/s/1/work,,volatile");
    assert_eq!(o.lowers, paths(&["l/ABC", "l/DEF"]));
    assert_eq!(o.upper.as_deref(), Some(Path::new("/s/1/diff")));
    assert_eq!(o.work.as_deref(), Some(Path::new("/s/1/work")));
    assert!(o.volatile);

    let o = options("lowerdir=/a/diff:/a/empty,");
    assert_eq!(o.lowers, paths(&["/a/diff", "/a/empty"]));
    assert_eq!(o.upper, None);

    let o = options("lowerdir=/a,upperdir=/b,workdir=/c,private");
    assert_eq!(o.work.as_deref(), Some(Path::new("/c")));

    let o = options("fsync=0,noacl,xattr_permissions=2,lowerdir=/a");
    assert!(o.no_fsync && o.noacl && !o.volatile);
    assert_eq!(o.xattr_permissions, XattrPermissions::User);

    let o = options("uidmapping=:0:1000:1:1:100000:65536,gidmapping=0:1000:1:1:100000:65536");
    let range = |inside, outside, len| IdRange {
        inside,
        outside,
        len,
    };
    assert_eq!(
        o.uid_mapping,
        [range(0, 1000, 1), range(1, 100_000, 65_536)]
    );
    assert_eq!(o.gid_mapping, o.uid_mapping);

    let context = r#"lowerdir=/a,context="system_u:object_r:container_file_t:s0:c1,c2",ro"#;
    let o = options(context);
    assert_eq!(o.lowers, paths(&["/a"]));
    assert!(o.read_only);
}

#[test]
fn escapes_and_quotes() {
    for (word, lowers) in [
        (r"lowerdir=/a\:b:/c", &["/a:b", "/c"][..]),
        (r"lowerdir=/a\,b:/c\\d", &["/a,b", r"/c\d"]),
        (r#"lowerdir="/a,b:/c""#, &["/a,b", "/c"]),
        (r#"lowerdir=/a"b,ro"#, &[r#"/a"b"#]),
        (r"lowerdir=/end\", &[r"/end\"]),
        ("lowerdir=/a=b", &["/a=b"]),
    ] {
        assert_eq!(options(word).lowers, paths(lowers), "{word}");
    }
    let upper = |word: &str| options(word).upper.expect(word);
    assert_eq!(upper(r"upperdir=/a\,b"), Path::new("/a,b"));
    assert_eq!(upper(r#"upperdir="/a\,b""#), Path::new(r"/a\,b"));
    assert_eq!(upper(r#"upperdir="/unended,x"#), Path::new("/unended,x"));
    let bytes = parse([OsStr::from_bytes(b"upperdir=/\xff")]).expect("any bytes");
    assert_eq!(
        bytes.options.upper.expect("upper").as_os_str().as_bytes(),
        b"/\xff"
    );
}

#[test]
fn the_last_word_counts() {
    let parsed = parse(["ro,nosuid,upperdir=/a", "rw,suid,upperdir=/b"]).expect("two -o");
    let o = parsed.options;
    assert!(!o.read_only);
    assert_eq!(
        (o.suid, o.upper.as_deref()),
        (Some(true), Some(Path::new("/b")))
    );
}

#[test]
fn words_with_values() {
    assert_eq!(
        options("timeout=1.5").timeout,
        Some(Duration::from_millis(1500))
    );
    assert_eq!(options("timeout=0").timeout, Some(Duration::ZERO));
    assert_eq!(options("timeout=1e300").timeout, Some(crate::fuse::FOREVER));
    assert_eq!(options("timeout=inf").timeout, Some(crate::fuse::FOREVER));
    let o = options("xino=auto,redirect_dir=nofollow,metacopy=on,index=off,userxattr,ino32_t");
    assert_eq!(o.xino, Some(Switch::Auto));
    assert_eq!(o.io_uring, None);
    assert_eq!(options("io_uring").io_uring, Some(Switch::On));
    assert_eq!(options("io_uring=auto").io_uring, Some(Switch::Auto));
    assert_eq!(options("io_uring,io_uring=off").io_uring, Some(Switch::Off));
    assert_eq!(o.io, None);
    assert_eq!(options("io=passthrough").io, Some(Io::Passthrough));
    assert_eq!(options("io=passthrough,io=cached").io, Some(Io::Cached));
    assert_eq!(options("io=auto").io, Some(Io::Auto));
    assert_eq!(o.redirect_dir, Some(RedirectDir::NoFollow));
    assert_eq!((o.metacopy, o.index), (Some(true), Some(false)));
    assert!(o.userxattr && o.ino32);
    let o =
        options("squash_to_root,squash_to_uid=7,squash_to_gid=4294967295,static_nlink,noxattrs=1");
    assert!(o.squash_to_root && o.static_nlink && o.noxattrs);
    assert_eq!(
        (o.squash_to_uid, o.squash_to_gid),
        (Some(7), Some(u32::MAX))
    );
    let o = options("writeback=0,sync=1,fsname=my fs,allow_other,nodev,noexec,noatime");
    assert_eq!((o.writeback, o.no_fsync), (Some(false), false));
    assert_eq!(o.fsname.as_deref(), Some(OsStr::new("my fs")));
    assert_eq!(
        (o.allow_other, o.dev, o.exec, o.atime),
        (Some(true), Some(false), Some(false), Some(false))
    );
}

#[test]
fn without_a_meaning_and_silent() {
    let words = "rw,threaded=1,fast_ino=1,fast_ino_check=0,plugins=,default_permissions,diratime,nodiratime,\
                 kernel_cache,max_write=65536,splice_read,no_splice_move,lazytime,rprivate,slave,shared,subtype=x";
    assert_eq!(options(words), Options::default());
    assert_eq!(options(""), Options::default());
    assert_eq!(options(",,,"), Options::default());
}

#[test]
fn unknown_words_are_told() {
    let parsed = parse_one("lowerdir=/a,nonsense,what=ever,b\nad,allow_root");
    assert_eq!(parsed.options.lowers, paths(&["/a"]));
    assert_eq!(
        parsed.warnings,
        [
            "unknown argument ignored: nonsense",
            "unknown argument ignored: what=ever",
            "unknown argument ignored: b\\nad",
            "allow_root is not supported, allow_other is",
        ]
    );
}

#[test]
fn refused() {
    for word in [
        "lowerdir=",
        "lowerdir",
        "lowerdir=/a::/b",
        "upperdir=",
        "workdir",
        "uidmapping=",
        "uidmapping=0:1",
        "uidmapping=0:1000:1:1",
        "uidmapping=a:b:c",
        "uidmapping=0:1000:-1",
        "uidmapping=+0:1000:1",
        "uidmapping=0:1000:0",
        "gidmapping=0:4294967295:2",
        "gidmapping=4294967296:0:1",
        "squash_to_uid=-1",
        "squash_to_uid=4294967296",
        "squash_to_gid=",
        "xattr_permissions=3",
        "timeout=-1",
        "timeout=NaN",
        "timeout=x",
        "xino=maybe",
        "io_uring=2",
        "io",
        "io=direct",
        "redirect_dir=sideways",
        "fsync=2",
        "plugins=evil.so",
    ] {
        let error = parse([word]).expect_err(word);
        assert_eq!(error.exit_code(), 2, "{word}");
        assert!(!error.to_string().contains('\n'), "{word}: {error}");
    }
    // The whole range of ids fits.
    assert_eq!(
        options("uidmapping=0:0:4294967295").uid_mapping[0].len,
        u32::MAX
    );
}

#[test]
fn who_merges() {
    assert_eq!(options("ro").merge, None);
    for (word, merge) in [
        ("merge=fuse", Merge::Fuse),
        ("merge=kernel", Merge::Kernel),
        ("merge=fuse,merge=auto", Merge::Auto),
    ] {
        assert_eq!(options(word).merge, Some(merge), "{word}");
    }
    let error = parse(["merge=both"]).expect_err("nobody of that name");
    assert!(
        error.to_string().contains("fuse, kernel or auto"),
        "{error}"
    );
}
