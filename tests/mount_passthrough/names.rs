//! Files whose names come, go and move while they are open, and what is left when all is closed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::time::Duration;

use rustix::fs::{CWD, RenameFlags};

use super::data::{Mapping, same_attributes};
use super::mode_support::{BOTH, PASSTHROUGH};
use super::mount_support::{Site, wait_until};
use super::{both, on_each, ovl, pattern, same_file, unmount, uring_support};

#[test]
fn open_files_outlive_their_names() {
    on_each(
        |_| (),
        |site, _| {
            let mnt = site.path("mnt");
            for name in ["new", "hello"] {
                let path = mnt.join(name);
                if name == "new" {
                    fs::write(&path, "from below").unwrap();
                }
                let file = both().open(&path).unwrap();
                let map = Mapping::new(&file, 10, true);
                fs::remove_file(&path).unwrap();
                file.write_all_at(b"BELOW", 5).unwrap();
                map.write(0, b'F');
                let mut text = [0; 10];
                file.read_exact_at(&mut text, 0).unwrap();
                assert_eq!(&text, b"From BELOW");
                assert_eq!(file.metadata().unwrap().nlink(), 0);
                file.set_len(4).unwrap();
                assert_eq!(file.metadata().unwrap().len(), 4);
                // By its descriptor it is opened once more.
                let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
                assert_eq!(fs::read(again).unwrap(), b"From");
                // Another one takes the name.
                fs::write(&path, "other").unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"other");
                file.read_exact_at(&mut text[..4], 0).unwrap();
                assert_eq!(text[..4], *b"From");
            }
        },
    );
}

#[test]
fn open_files_keep_their_bytes_when_names_move() {
    on_each(
        |_| (),
        |site, _| {
            let mnt = site.path("mnt");
            let (a, b) = (mnt.join("a"), mnt.join("sub/b"));
            fs::write(&a, "aaaa").unwrap();
            fs::write(&b, "bbbb").unwrap();
            let (one, two) = (both().open(&a).unwrap(), both().open(&b).unwrap());
            rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
            one.write_all_at(b"A", 0).unwrap();
            two.write_all_at(b"B", 0).unwrap();
            assert_eq!(fs::read(&b).unwrap(), b"Aaaa");
            assert_eq!(fs::read(&a).unwrap(), b"Bbbb");
            // Over an open one.
            fs::rename(&b, &a).unwrap();
            two.write_all_at(b"gone", 0).unwrap();
            one.write_all_at(b"here", 0).unwrap();
            assert_eq!(fs::read(&a).unwrap(), b"here");
            let mut text = [0; 4];
            two.read_exact_at(&mut text, 0).unwrap();
            assert_eq!(&text, b"gone");
            assert!(!b.exists());
            // A lower's file moves while it is read, and is written by its new name.
            let held = File::open(mnt.join("hello")).unwrap();
            fs::rename(mnt.join("hello"), mnt.join("moved")).unwrap();
            let writer = both().open(mnt.join("moved")).unwrap();
            writer.write_all_at(b"F", 0).unwrap();
            let mut text = [0; 10];
            held.read_exact_at(&mut text, 0).unwrap();
            assert_eq!(&text, b"From below");
            same_file(&mnt.join("moved"), &site.path("upper/moved"));
        },
    );
}

/// One file, whichever name it is opened by.
#[test]
fn names_of_one_file_are_one_file() {
    on_each(
        |site| fs::hard_link(site.path("lower/hello"), site.path("lower/sub/hello")).unwrap(),
        |site, _| {
            let mnt = site.path("mnt");
            fs::write(mnt.join("new"), "from below").unwrap();
            fs::hard_link(mnt.join("new"), mnt.join("sub/new")).unwrap();
            for name in ["new", "hello"] {
                let (a, b) = (mnt.join(name), mnt.join("sub").join(name));
                let (one, two) = (both().open(&a).unwrap(), both().open(&b).unwrap());
                one.write_all_at(b"F", 0).unwrap();
                two.write_all_at(b"B", 5).unwrap();
                let mut text = [0; 10];
                one.read_exact_at(&mut text, 0).unwrap();
                assert_eq!(&text, b"From Below", "{name}");
                drop(one);
                fs::remove_file(&a).unwrap();
                two.write_all_at(b"!", 4).unwrap();
                assert_eq!(fs::read(&b).unwrap(), b"From!Below", "{name}");
                fs::hard_link(&b, &a).unwrap();
                same_attributes(&a, &b);
                assert_eq!(fs::read(&a).unwrap(), b"From!Below", "{name}");
            }
        },
    );
}

/// The kernel forgets names and inodes that are not in use; of open files it must not.
#[test]
fn what_the_kernel_forgets_can_be_opened_again() {
    on_each(
        |_| (),
        |site, _| {
            let mnt = site.path("mnt");
            let held = both().create_new(true).open(mnt.join("held")).unwrap();
            for round in 0..5_u8 {
                fs::write(mnt.join("closed"), [round; 100]).unwrap();
                let mapped = both().open(mnt.join("hello")).unwrap();
                let map = Mapping::new(&mapped, 10, true);
                map.write(0, b'a' + round);
                drop((mapped, map));
                held.write_all_at(&[round], u64::from(round)).unwrap();
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                assert_eq!(fs::read(mnt.join("closed")).unwrap(), [round; 100]);
                assert_eq!(fs::read(mnt.join("hello")).unwrap()[0], b'a' + round);
                assert_eq!(
                    fs::read(mnt.join("held")).unwrap().len(),
                    usize::from(round) + 1
                );
            }
        },
    );
}

/// A file that the kernel had to pass through to is given back with its last user: its room is free again.
#[test]
fn nothing_is_held_when_all_is_closed() {
    for mode in [PASSTHROUGH, BOTH] {
        if !mode.is_here() {
            continue;
        }
        uring_support::permit_io_uring();
        let site = Site::new();
        let upper = site.path("upper");
        let made = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"])
            .arg(&upper)
            .status();
        assert!(made.unwrap().success());
        for dir in ["up", "work"] {
            fs::create_dir(upper.join(dir)).unwrap();
        }
        let free = || rustix::fs::statvfs(&upper).unwrap().f_bfree;
        let mut task = site.task();
        task.words = mode.words.to_vec();
        task.words.extend(["-o", "workdir=upper/work"]);
        task.upper = Some(upper.join("up"));
        let mut command = site.command(&task);
        let output = command.current_dir(site.path(".")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let record = site.record().expect("a record");
        let mnt = site.path("mnt");
        fs::write(mnt.join("warm"), "up").unwrap();
        let before = free();
        for round in 0..4 {
            let path = mnt.join("big");
            let file = both().create_new(true).open(&path).unwrap();
            file.write_all_at(&pattern(40 << 20, round), 0).unwrap();
            let reader = File::open(&path).unwrap();
            fs::remove_file(&path).unwrap();
            assert!(free() + 9000 < before);
            drop(file);
            let mut byte = [0];
            reader.read_exact_at(&mut byte, 5).unwrap();
            drop(reader);
            let again = wait_until(Duration::from_secs(10), || free() + 10 >= before);
            assert!(
                again,
                "round {round}: {} of {before} blocks are free",
                free()
            );
        }
        unmount(&site, &record);
        let done = Command::new("umount").arg(&upper).status().unwrap();
        assert!(done.success(), "somebody holds files of the upper");
    }
}

#[test]
fn a_look_at_the_changes_sees_open_files() {
    on_each(
        |_| (),
        |site, _| {
            let mnt = site.path("mnt");
            let file = both().open(mnt.join("hello")).unwrap();
            file.write_all_at(b"not synced", 100).unwrap();
            let map = Mapping::new(&file, 10, true);
            map.write(0, b'F');
            fs::write(mnt.join("new"), "text").unwrap();
            let said = ovl(site, &["diff", mnt.to_str().unwrap()]);
            let said = String::from_utf8(said.stdout).unwrap();
            for line in ["/hello", "/new"] {
                assert!(said.contains(line), "{said}");
            }
            let words = ["commit", mnt.to_str().unwrap(), "kept:now"];
            let committed = ovl(site, &words);
            assert!(committed.status.success(), "{committed:?}");
            let text = ovl(site, &["cat", "kept:now", "/hello"]);
            assert!(text.stdout.starts_with(b"From below"), "{text:?}");
            assert!(text.stdout.ends_with(b"not synced"), "{text:?}");
        },
    );
}
