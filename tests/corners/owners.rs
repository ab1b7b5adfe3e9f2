//! Who owns what is made, and who may remove it: set-group-ID directories, the sticky bit, umask.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::on_twins;

fn prepare(dir: &Path) {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("chmod");
    for (name, mode) in [("shared", 0o2777), ("sticky", 0o1777)] {
        fs::create_dir(dir.join(name)).expect("mkdir");
        chown(dir.join(name), None, Some(77)).expect("chown");
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).expect("chmod");
        for (file, owner) in [("anns", 1001), ("bobs", 1002)] {
            fs::write(dir.join(name).join(file), "x").expect("write");
            chown(dir.join(name).join(file), Some(owner), Some(owner)).expect("chown");
        }
    }
}

/// `as ID COMMAND` as that user, in that group alone.
const AS: &str = "as() { setpriv --reuid $1 --regid $1 --clear-groups sh -c \"$2\" 2>/dev/null || echo \"$1 may not: $2\"; }\n";

/// The group and the bit go down into subdirectories, the group into files; the bit of a file is not for those outside
/// the group to give.
#[test]
fn set_group_id_directories_hand_their_group_on() {
    on_twins(prepare, |twins| {
        let said = twins.sh(&format!(
            "{AS}umask 002
             as 1001 'umask 002; mkdir shared/sub shared/sub/deep; : > shared/sub/file; ln -s x shared/link; mkfifo shared/pipe'
             as 1001 'mkdir -m 700 shared/mine; cp /bin/true shared/tool; chmod 2755 shared/tool'
             : > shared/roots; mkdir sticky/sub
             setpriv --reuid 1001 --regid 1001 --groups 77 sh -c 'cp /bin/true shared/member; chmod 2755 shared/member'
             as 1001 'chgrp 77 shared/anns'
             chgrp 78 shared; mkdir shared/later; chmod g-s shared; mkdir shared/none
             mv shared/sub sticky/moved; mkdir sticky/moved/new
             find shared sticky | sort | xargs stat -c '%a %u:%g %n'"
        ));
        for line in [
            "2775 1001:77 sticky/moved/deep",
            "664 1001:77 sticky/moved/file",
            "2700 1001:77 shared/mine",
            "755 1001:77 shared/tool",
            "2755 1001:77 shared/member",
            "2775 0:78 shared/later",
            "775 0:0 shared/none",
            "2775 0:77 sticky/moved/new",
        ] {
            assert!(said.lines().any(|l| l == line), "{line} is missing: {said}");
        }
        let list = "find . | sort | xargs stat -c '%a %u:%g %n'";
        let before = twins.sh(list);
        twins.remount();
        assert_eq!(twins.sh(list), before);
    });
}

/// In a sticky directory only the owner of a file (or of the directory) takes its name away, be it of the lower or new.
#[test]
fn the_sticky_bit_protects_names() {
    on_twins(prepare, |twins| {
        let said = twins.sh(&format!(
            "{AS}as 1001 ': > sticky/new; mkdir sticky/dir; chmod 777 sticky/dir'
             as 1002 'rm -f sticky/anns'; as 1002 'mv sticky/anns sticky/x'; as 1002 'mv sticky/bobs sticky/anns'
             as 1002 'rm -f sticky/new'; as 1002 'rmdir sticky/dir'; as 1002 'mv sticky/dir sticky/other'
             as 1002 ': > sticky/dir/inside'; as 1002 'ln sticky/bobs sticky/hard'; as 1002 'rm sticky/hard'
             as 1001 'mv sticky/anns sticky/renamed'; as 1001 'rm -f sticky/new'
             as 1002 'mv sticky/bobs sticky/dir/bobs'
             find sticky | sort | xargs stat -c '%a %u:%g %n'"
        ));
        assert_eq!(said.matches("1002 may not").count(), 6, "{said}");
        assert_eq!(said.matches("1001 may not").count(), 0, "{said}");
    });
}

/// Without a default list the umask counts, for every kind and every caller, and bits above it are kept.
#[test]
fn the_umask_counts() {
    on_twins(prepare, |twins| {
        twins.python(
            "
for mask in (0, 0o022, 0o077, 0o777):
    os.umask(mask)
    for mode in (0o777, 0o1666, 0o6755, 0o000):
        name = '%o-%o' % (mask, mode)
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        os.mkdir(name + 'd', mode)
        os.mknod(name + 'p', stat.S_IFIFO | mode)
        os.mknod(name + 'c', stat.S_IFCHR | mode, os.makedev(1, 3))
        print(name, *('%o' % os.stat(name + kind).st_mode for kind in ('', 'd', 'p', 'c')))
",
        );
    });
}
