//! POSIX access control lists: `setfacl`, `getfacl`, and what new objects inherit.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::{fs, str};

use super::{Site, Twins, check_twins, on_twins};

fn setfacl(args: &[&str], path: &Path) {
    let status = Command::new("setfacl").args(args).arg(path).status();
    assert!(status.expect("setfacl").success(), "{}", path.display());
}

/// A file and a directory with lists of their own, and the directory with one for what is made in it.
fn prepare(dir: &Path) {
    fs::write(dir.join("file"), "x").expect("write");
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o640)).expect("chmod");
    setfacl(&["-m", "u:1234:rw,g:77:r"], &dir.join("file"));
    fs::create_dir(dir.join("dir")).expect("mkdir");
    fs::write(dir.join("dir/old"), "x").expect("write");
    setfacl(&["-m", "u:1234:rwx"], &dir.join("dir"));
    setfacl(
        &["-d", "-m", "u::rwx,u:1234:rwx,g::rx,g:77:rx,m::rwx,o::-"],
        &dir.join("dir"),
    );
}

/// As `on_twins`, and besides where modes are kept in xattrs.
fn everywhere(check: impl Fn(&Twins)) {
    on_twins(prepare, &check);
    println!("xattr_permissions");
    let words = &["-o", "xattr_permissions=2"];
    check_twins(Site::new(), words, prepare, &check);
}

/// What is made under a default list gets it, whatever the umask; subdirectories hand it on; a mode given on creation
/// is the most that the list may allow.
#[test]
fn new_objects_inherit_the_default_list() {
    everywhere(|twins| {
        let said = twins.sh("umask 077
             mkdir dir/sub dir/sub/deep; mkdir -m 750 dir/narrow
             : > dir/sub/file; mkfifo dir/pipe; ln -s old dir/link
             mkdir plain; : > plain/file
             getfacl -n dir/* dir/sub/* plain plain/file
             stat -c '%a %n' dir/* dir/sub/* plain/file");
        for line in [
            "660 dir/sub/file",
            "770 dir/sub/deep",
            "750 dir/narrow",
            "660 dir/pipe",
            "600 plain/file",
            "default:user:1234:rwx",
        ] {
            assert!(said.lines().any(|l| l == line), "{line} is missing: {said}");
        }
        let before = twins.sh("find . | sort | xargs getfacl -n");
        twins.remount();
        assert_eq!(
            twins.sh("find . | sort | xargs getfacl -n"),
            before,
            "after a remount"
        );
    });
}

/// The group bits of a file with a list are its mask: chmod changes the mask, setfacl the mode.
#[test]
fn mode_and_mask_are_one() {
    everywhere(|twins| {
        twins.sh("getfacl -n file dir; stat -c '%a %n' file dir");
        let said = twins.sh("chmod 604 file; getfacl -n file; stat -c %a file");
        assert!(said.contains("mask::---"), "{said}");
        let said = twins.sh("setfacl -m m::rwx file; getfacl -n file; stat -c %a file");
        assert!(said.ends_with("674\n"), "{said}");
        let said = twins.sh("setfacl -m u::r,o::- file; stat -c %a file");
        assert_eq!(said, "460\n");
        // A list that says no more than a mode does is none.
        let said =
            twins.sh("setfacl -b file; getfacl -n file; stat -c %a file; getfattr -d -m - file");
        assert!(!said.contains("1234"), "{said}");
        twins.sh("setfacl -k dir; getfacl -n dir; mkdir dir/sub; getfacl -n dir/sub");
    });
}

/// Copy-up takes the lists along: of the file, and of the directories above it.
#[test]
fn copy_up_keeps_the_lists() {
    on_twins(prepare, |twins| {
        let said = twins.sh("echo y >> file; echo y >> dir/old; getfacl -n file dir dir/old");
        assert!(
            said.contains("user:1234:rw-") && said.contains("default:group:77:r-x"),
            "{said}"
        );
        // What lies in the upper says the same, without the mount's help.
        let of = |dir: &Path| {
            let output = Command::new("getfacl")
                .args(["-n", "file", "dir", "dir/old"])
                .current_dir(dir)
                .output()
                .expect("getfacl");
            str::from_utf8(&output.stdout).expect("UTF-8").to_owned()
        };
        assert_eq!(of(&twins.upper()), said);
        twins.sh("mkdir dir/new; : > dir/new/file; getfacl -n dir/new dir/new/file");
    });
}

/// The lists decide: a user named by one may, others may not; the mask takes away again.
#[test]
fn the_lists_are_obeyed() {
    everywhere(|twins| {
        let said = twins.sh(
            "as() { setpriv --reuid $1 --regid $1 --clear-groups sh -c \"$2\" >/dev/null 2>&1 && echo $1 may || echo $1 may not; }
             chmod 755 .
             as 1234 'cat file'; as 4321 'cat file'; as 77 'cat file'
             as 1234 'echo y >> file'; as 77 'echo y >> file'
             as 1234 ': > dir/mine'; as 4321 ': > dir/theirs'; as 4321 'cat dir/mine'
             stat -c '%a %u:%g %n' dir/mine; getfacl -n dir/mine
             chmod g-rwx file; as 1234 'cat file'
             as 1234 'setfacl -m u:4321:rw dir/mine'; as 4321 'setfacl -m u:4321:rw dir/mine'
             getfacl -n dir/mine",
        );
        assert!(
            said.starts_with(
                "1234 may\n4321 may not\n77 may\n1234 may\n77 may not\n1234 may\n4321 may not\n4321 may not\n660 "
            ),
            "{said}"
        );
    });
}
