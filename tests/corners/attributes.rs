//! What stat, statx, names and extended attributes can say, to their last bit.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags, Timespec, Timestamps};

use super::{Site, check_twins, on_twins};

/// Seconds, nanoseconds: before 1970, at the ends of 32 bits, after 2106.
const TIMES: [(i64, i64); 6] = [
    (-1, 1),
    (-2_000_000_000, 999_999_999),
    (0, 0),
    ((1 << 31) - 1, 999_999_999),
    ((1 << 32) - 1, 1),
    (7_500_000_000, 123_456_789),
];

fn prepare(dir: &Path) {
    for (i, (secs, nanos)) in TIMES.into_iter().enumerate() {
        let name = dir.join(format!("f{i}"));
        fs::write(&name, "x").expect("write");
        let time = Timespec {
            tv_sec: secs,
            tv_nsec: nanos,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &name, &times, AtFlags::empty()).expect("utimensat");
    }
    let sparse = File::create(dir.join("sparse")).expect("create");
    sparse.set_len(1 << 30).expect("truncate");
    sparse.write_all_at(&[1; 5000], 123_456_789).expect("write");
    sparse.sync_all().expect("sync");
    fs::create_dir(dir.join("dir")).expect("mkdir");
    std::os::unix::fs::symlink("dir", dir.join("link")).expect("symlink");
}

fn statx(path: &Path) -> Statx {
    rustix::fs::statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME,
    )
    .expect("statx")
}

/// Everything asked for is there and as in the plain directory. Of a birth time nothing is said rather than a wrong one.
#[test]
fn statx_says_what_stat_says_and_no_more() {
    on_twins(prepare, |twins| {
        for name in ["f0", "f5", "sparse", "dir", "link", "."] {
            let (shown, plain) = (
                statx(&twins.mnt().join(name)),
                statx(&twins.plain().join(name)),
            );
            let mask = StatxFlags::from_bits_retain(shown.stx_mask);
            assert!(mask.contains(StatxFlags::BASIC_STATS), "{name}: {mask:?}");
            assert!(!mask.contains(StatxFlags::BTIME), "{name}: {mask:?}");
            assert_eq!(shown.stx_btime.tv_sec, 0, "{name}");
            assert_eq!(shown.stx_mode, plain.stx_mode, "{name}");
            let is_root = shown.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
            assert_eq!(is_root, name == ".", "{name}");
            assert!(
                !shown.stx_attributes.contains(StatxAttributes::IMMUTABLE),
                "{name}"
            );
            let meta = fs::symlink_metadata(twins.mnt().join(name)).expect("stat");
            assert_eq!(
                (meta.ino(), meta.nlink()),
                (shown.stx_ino, shown.stx_nlink.into()),
                "{name}"
            );
            if name != "." && name != "dir" {
                assert_eq!(
                    (shown.stx_size, shown.stx_nlink, shown.stx_uid),
                    (plain.stx_size, plain.stx_nlink, plain.stx_uid),
                    "{name}"
                );
            }
        }
    });
}

#[test]
fn times_of_all_ages_survive_copy_up_and_remount() {
    on_twins(prepare, |twins| {
        let check = |dir: &Path, when: &str| {
            for (i, (secs, nanos)) in TIMES.into_iter().enumerate() {
                let m = fs::metadata(dir.join(format!("f{i}"))).expect("stat");
                assert_eq!((m.mtime(), m.mtime_nsec()), (secs, nanos), "f{i} {when}");
                assert_eq!((m.atime(), m.atime_nsec()), (secs, nanos), "f{i} {when}");
            }
        };
        check(&twins.mnt(), "below");
        twins.sh("chmod 600 f?");
        check(&twins.mnt(), "copied up");
        check(&twins.upper(), "in the upper");
        twins.remount();
        check(&twins.mnt(), "after a remount");
    });
}

/// A sparse file takes the room it took, before and after copy-up.
#[test]
fn blocks_of_sparse_files_are_true() {
    on_twins(prepare, |twins| {
        let said = twins.sh("stat -c '%s %b %B' sparse; du -k sparse; chmod 600 sparse; sync sparse; stat -c '%s %b %B' sparse");
        let blocks: u64 = said
            .split(' ')
            .nth(1)
            .and_then(|b| b.parse().ok())
            .expect("blocks");
        assert!((16..100).contains(&blocks), "{said}");
        twins.remount();
        twins.sh("stat -c '%s %b %B' sparse; du -k sparse");
    });
}

/// 255 bytes of a name are enough, 256 too many, whatever the call; what is not UTF-8 is a name like any other.
#[test]
fn names_of_every_length_and_byte() {
    on_twins(prepare, |twins| {
        let said = twins.python(
            r"
os.chmod('dir', 0o755)
longest, longer = b'n' * 255, b'n' * 256
odd = bytes(b for b in range(1, 256) if b != 0x2f)
assert len(odd) == 254
for name in (longest, longer, odd, b'\xff\xfe', b' ', b'\n', b'-', b'...', b'\\', 'é'.encode('latin-1')):
    print(len(name), name[:4])
    tell('create', lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)))
    tell('stat', lambda: os.stat(name).st_nlink)
    tell('link', os.link, name, b'dir/' + name)
    tell('again', os.link, name, b'dir/' + name)
    tell('xattr', os.setxattr, name, b'user.a', b'v')
    tell('rename', os.rename, name, b'dir/moved')
    tell('rename back', os.rename, b'dir/moved', name)
    tell('symlink', os.symlink, b'f0', b'dir/' + name)
    tell('list', lambda: name in os.listdir(b'dir'))
    tell('unlink', os.unlink, name)
    tell('mkdir', os.mkdir, name)
    tell('mknod', os.mknod, name, stat.S_IFIFO)
    tell('rmdir', os.rmdir, name)
    tell('mkfifo', os.mkfifo, name)
print(len(os.listdir(b'.')))
print(len(os.listdir(b'dir')))
",
        );
        assert_eq!(said.matches("ENAMETOOLONG").count(), 12, "{said}");
        let list = "for name in sorted(os.listdir(b'dir')): print(len(name), hashlib.sha256(name).hexdigest()[:8], os.lstat(b'dir/' + name).st_nlink)";
        let before = twins.python(list);
        twins.remount();
        assert_eq!(twins.python(list), before);
    });
}

const XATTRS: &str = r"
name = b'user.' + bytes(b for b in range(1, 251))
longer = name + b'x'
for path in (b'f0', b'dir'):
    for n in (name, longer, b'user.\xff\xfe', b'user.', b'user', b'nonsense.a', b'trusted.\x80', b''):
        tell((path, len(n)), os.setxattr, path, n, b'value')
        tell('get', os.getxattr, path, n)
    print(sorted(hashlib.sha256(os.fsencode(n)).hexdigest()[:8] for n in os.listxattr(path)))
    tell('remove', os.removexattr, path, name)
    tell('again', os.removexattr, path, name)
tell('user xattr of a symlink', os.setxattr, b'link', b'user.a', b'v', follow_symlinks=False)
tell('trusted xattr of a symlink', os.setxattr, b'link', b'trusted.a', b'v', follow_symlinks=False)
tell('and read', os.getxattr, b'link', b'trusted.a', follow_symlinks=False)
";

#[test]
fn xattr_names_of_every_byte() {
    on_twins(prepare, |twins| {
        let said = twins.python(XATTRS);
        assert!(
            said.contains("ENOTSUP") && said.contains("b'value'"),
            "{said}"
        );
        let list = "print([(p, [(os.fsencode(n), os.getxattr(p, n, follow_symlinks=False)) for n in sorted(os.listxattr(p, follow_symlinks=False))]) for p in ('f0', 'dir', 'link')])";
        let before = twins.python(list);
        twins.remount();
        assert_eq!(twins.python(list), before);
    });
}

/// 64 KiB, the most an xattr can have. ext4 has less room; tmpfs holds it, also through a copy-up.
#[test]
fn the_largest_xattr_there_is() {
    let site = Site::new();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(site.path("."))
        .status()
        .expect("mount");
    assert!(mounted.success());
    for dir in ["upper", "mnt", "run"] {
        fs::create_dir(site.path(dir)).expect("mkdir");
    }
    let prepare = |dir: &Path| {
        fs::write(dir.join("file"), "x").expect("write");
        let largest = vec![b'v'; 65_536];
        rustix::fs::setxattr(
            dir.join("file"),
            "user.below",
            &largest,
            rustix::fs::XattrFlags::empty(),
        )
        .expect("a kernel whose tmpfs has user xattrs (6.6)");
    };
    check_twins(site, &[], prepare, |twins| {
        let said = twins.python(
            "
def digest(name):
    value = os.getxattr('file', name)
    return len(value), hashlib.sha256(value).hexdigest()[:8]
print(digest('user.below'))
tell('set', os.setxattr, 'file', 'user.new', bytes(i % 256 for i in range(65536)))
print(digest('user.below'), digest('user.new'))
tell('one more', os.setxattr, 'file', 'user.more', bytes(65537))
tell('replace', os.setxattr, 'file', 'user.below', b'w' * 65536, os.XATTR_REPLACE)
print(digest('user.below'), sorted(os.listxattr('file')))
",
        );
        assert!(said.contains("one more E2BIG"), "{said}");
        let list = "print(sorted((n, hashlib.sha256(os.getxattr('file', n)).hexdigest()) for n in os.listxattr('file')))";
        let before = twins.python(list);
        twins.remount();
        assert_eq!(twins.python(list), before);
    });
}

/// FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, as lsattr and chattr use them.
#[test]
fn inode_flags_are_shown_set_and_kept() {
    on_twins(prepare, |twins| {
        let flags = "lsattr -d f0 f1 dir | tr -d e";
        twins.sh(flags);
        let said = twins.sh(&format!("chattr +dA f0; chattr +dS dir; {flags}"));
        assert!(
            said.contains('d') && said.contains('A') && said.contains('S'),
            "{said}"
        );
        twins.sh(&format!("chattr -A f0; echo more >> f0; {flags}; cat f0"));
        let before = twins.sh(flags);
        twins.remount();
        assert_eq!(twins.sh(flags), before);
        // Nobody changes what is immutable or append-only. When a writer learns of it differs.
        twins.sh("chattr +i f1; chattr +a f2; lsattr f1 f2 | tr -d e");
        let said = twins.sh(
            "for c in 'rm -f f1' 'chmod 600 f1' 'mv f1 f9' 'ln f1 f9' 'rm -f f2' 'chmod 600 f2'; do
                 $c 2>/dev/null && echo \"$c: done\" || echo \"$c: refused\"
             done
             for f in f1 f2; do
                 dd if=/dev/zero of=$f bs=1 count=1 conv=notrunc,fsync 2>/dev/null && echo $f: written || echo $f: refused
             done",
        );
        assert_eq!(said.matches("refused").count(), 8, "{said}");
        twins.remount();
        assert_eq!(twins.sh("cat f1 f2"), "xx");
        twins.sh("chattr -i f1; chattr -a f2; rm f1 f2; ls");
    });
}

/// A file is found by its descriptor's path as long as it has a name; without one it cannot get one.
#[test]
fn links_by_descriptor() {
    on_twins(prepare, |twins| {
        let said = twins.python(
            "
f = os.open('f0', os.O_RDWR)
def link(name):
    # linkat with AT_SYMLINK_FOLLOW
    os.link('/proc/self/fd/%d' % f, name, src_dir_fd=f, follow_symlinks=True)
tell('with a name', link, 'second')
print(os.stat('f0').st_nlink, os.path.samefile('f0', 'second'))
os.unlink('f0')
tell('with another name', link, 'dir/third')
os.unlink('second')
print(os.fstat(f).st_nlink, os.path.samestat(os.fstat(f), os.stat('dir/third')))
os.unlink('dir/third')
tell('without a name', link, 'again')
print(os.fstat(f).st_nlink, os.pread(f, 10, 0), sorted(os.listdir('dir')))
",
        );
        assert!(said.contains("without a name ENOENT"), "{said}");
    });
}
