//! Bytes: mapped, direct, appended, cut off, with holes, copied; and what stat says of them.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{both, on_each, pattern, same_file, without_daemon};

const PAGE: usize = 4096;

/// A shared mapping of the first `len` bytes.
pub struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    pub fn new(file: &File, len: usize, write: bool) -> Self {
        let access = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let (fd, none) = (file.as_raw_fd(), std::ptr::null_mut());
        // SAFETY: a new mapping, of the kernel's choice of place.
        let at = unsafe { libc::mmap(none, len, access, libc::MAP_SHARED, fd, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { at, len }
    }

    pub fn read(&self, at: usize) -> u8 {
        assert!(at < self.len);
        // SAFETY: inside the mapping, which is shared with others: so one byte, volatile.
        unsafe { self.at.cast::<u8>().add(at).read_volatile() }
    }

    pub fn write(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: as for reading; the tests write only to mappings made for it.
        unsafe { self.at.cast::<u8>().add(at).write_volatile(byte) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// What the mount tells of a file is what the file behind it tells.
pub fn same_attributes(shown: &Path, kept: &Path) {
    let of = |path: &Path| {
        let m = fs::metadata(path).unwrap();
        let times = [(m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec())];
        (m.size(), m.mode(), m.nlink(), times)
    };
    assert_eq!(of(shown), of(kept), "{}", shown.display());
}

/// The kernel does not tell the mount of what goes through mappings, also after the file was closed.
#[test]
fn what_is_written_through_a_mapping_is_seen_by_all() {
    on_each(
        |site| fs::write(site.path("lower/low"), pattern(3 * PAGE, 1)).unwrap(),
        |site, _| {
            for name in ["low", "new"] {
                let (shown, kept) = (site.path("mnt").join(name), site.path("upper").join(name));
                if name == "new" {
                    fs::write(&shown, pattern(3 * PAGE, 1)).unwrap();
                }
                let file = both().open(&shown).unwrap();
                let map = Mapping::new(&file, 3 * PAGE, true);
                let before = fs::metadata(&shown).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                map.write(10, 0xee);
                let mut byte = [0];
                file.read_exact_at(&mut byte, 10).unwrap();
                assert_eq!(byte, [0xee]);
                same_attributes(&shown, &kept);
                let after = fs::metadata(&shown).unwrap();
                assert!(after.modified().unwrap() > before.modified().unwrap());
                file.write_all_at(&[0xdd], 11).unwrap();
                assert_eq!(map.read(11), 0xdd);

                // The file is closed, the mapping stays.
                drop(file);
                std::thread::sleep(Duration::from_millis(20));
                fs::read(&shown).unwrap();
                same_attributes(&shown, &kept);
                std::thread::sleep(Duration::from_millis(20));
                map.write(2 * PAGE, 0xcc);
                assert_eq!(fs::read(&shown).unwrap()[2 * PAGE], 0xcc);
                same_attributes(&shown, &kept);
                same_file(&shown, &kept);
                let again = both().open(&shown).unwrap();
                again.write_all_at(&[0xbb], 2 * PAGE as u64 + 1).unwrap();
                assert_eq!(map.read(2 * PAGE + 1), 0xbb);
                drop(map);
                same_attributes(&shown, &kept);
            }
        },
    );
}

/// Pages of the mount's own cache must not be shown again once the kernel has written past them.
#[test]
fn what_was_read_before_is_not_shown_after() {
    on_each(
        |site| fs::write(site.path("lower/low"), pattern(3 * PAGE, 1)).unwrap(),
        |site, _| {
            let (shown, kept) = (site.path("mnt/low"), site.path("upper/low"));
            // Through the cache: mapped, too.
            let reader = File::open(&shown).unwrap();
            let map = Mapping::new(&reader, 3 * PAGE, false);
            assert_eq!(map.read(PAGE), pattern(3 * PAGE, 1)[PAGE]);
            drop((map, reader));
            let file = both().open(&shown).unwrap();
            file.write_all_at(&[0x5a; PAGE], PAGE as u64).unwrap();
            same_file(&shown, &kept);
            drop(file);
            let reader = File::open(&shown).unwrap();
            let map = Mapping::new(&reader, 3 * PAGE, false);
            assert_eq!(map.read(PAGE), 0x5a);
            both()
                .open(&shown)
                .unwrap()
                .write_all_at(&[0xa5], PAGE as u64)
                .unwrap();
            assert_eq!(map.read(PAGE), 0xa5);
            same_file(&shown, &kept);

            // Somebody reads the lower's file while another one writes: both through the cache, and both see it.
            fs::remove_file(&shown).unwrap();
            fs::write(site.path("mnt/sub/two"), "").unwrap();
            let held = File::open(site.path("mnt/hello")).unwrap();
            let map = Mapping::new(&held, 10, false);
            assert_eq!(map.read(0), b'f');
            let writer = both().open(site.path("mnt/hello")).unwrap();
            writer.write_all_at(b"F", 0).unwrap();
            assert_eq!(map.read(0), b'F');
            assert_eq!(fs::read(site.path("mnt/hello")).unwrap(), b"From below");
            drop((held, map));
            assert_eq!(fs::read(site.path("mnt/hello")).unwrap(), b"From below");
            drop(writer);
            // Nobody has it open any more.
            let writer = both().open(site.path("mnt/hello")).unwrap();
            writer.write_all_at(b"x", 4).unwrap();
            assert_eq!(fs::read(site.path("mnt/hello")).unwrap(), b"Fromxbelow");
            same_file(&site.path("mnt/hello"), &site.path("upper/hello"));
        },
    );
}

#[test]
fn direct_appended_and_cut_off() {
    on_each(
        |site| fs::write(site.path("lower/low"), pattern(64 * PAGE, 1)).unwrap(),
        |site, record| {
            let (shown, kept) = (site.path("mnt/low"), site.path("upper/low"));
            let mut room = vec![0_u8; 3 * PAGE];
            let at = room.as_ptr().align_offset(PAGE);
            let direct = both().custom_flags(libc::O_DIRECT).open(&shown).unwrap();
            room[at..at + PAGE].fill(0x11);
            direct
                .write_all_at(&room[at..at + PAGE], PAGE as u64)
                .unwrap();
            let buffered = both().open(&shown).unwrap();
            let mut read = vec![0; PAGE];
            buffered.read_exact_at(&mut read, PAGE as u64).unwrap();
            assert_eq!(read, vec![0x11; PAGE]);
            buffered.write_all_at(&[0x22; PAGE], PAGE as u64).unwrap();
            direct
                .read_exact_at(&mut room[at..at + PAGE], PAGE as u64)
                .unwrap();
            assert_eq!(room[at..at + PAGE], vec![0x22; PAGE]);
            without_daemon(record, || {
                direct
                    .write_all_at(&room[at..at + PAGE], 2 * PAGE as u64)
                    .unwrap();
            });
            drop((direct, buffered));

            let append = || OpenOptions::new().append(true).open(&shown).unwrap();
            let (mut one, mut two) = (append(), append());
            for _ in 0..3 {
                one.write_all(b"one").unwrap();
                two.write_all(b"two").unwrap();
            }
            let bytes = fs::read(&shown).unwrap();
            assert_eq!(bytes[64 * PAGE..], *b"onetwoonetwoonetwo");
            assert_eq!(fs::metadata(&shown).unwrap().len(), 64 * PAGE as u64 + 18);
            two.set_len(5).unwrap();
            one.write_all(b"end").unwrap();
            assert_eq!(fs::read(&shown).unwrap(), [&bytes[..5], b"end"].concat());
            let mut file = both().truncate(true).open(&shown).unwrap();
            assert_eq!(fs::metadata(&shown).unwrap().len(), 0);
            assert_eq!(one.metadata().unwrap().len(), 0);
            file.write_all(b"anew").unwrap();
            file.rewind().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, "anew");
            same_file(&shown, &kept);
            same_attributes(&shown, &kept);

            // A file of the lowers that is cut off when it is opened.
            let file = File::create(site.path("mnt/hello")).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 0);
            assert_eq!(fs::read(site.path("upper/hello")).unwrap(), b"");
            assert_eq!(fs::read(site.path("lower/hello")).unwrap(), b"from below");
        },
    );
}

#[test]
fn holes_and_ranges() {
    on_each(
        |site| fs::write(site.path("lower/low"), pattern(4 * PAGE, 1)).unwrap(),
        |site, _| {
            let mnt = site.path("mnt");
            let file = both().create_new(true).open(mnt.join("holes")).unwrap();
            let mib = 1 << 20;
            file.write_all_at(&[1; PAGE], mib).unwrap();
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(mib));
            let end = mib + PAGE as u64;
            assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(mib)), Ok(end));
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 2 * mib).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 2 * mib);
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let map = Mapping::new(&file, 2 << 20, true);
            assert_eq!(map.read(1 << 20), 1);
            rustix::fs::fallocate(&file, punch, mib, PAGE as u64).unwrap();
            assert_eq!(map.read(1 << 20), 0);
            let mut byte = [9];
            file.read_exact_at(&mut byte, mib).unwrap();
            assert_eq!(byte, [0]);

            // From the cache to what is passed through, and back to itself.
            let low = File::open(mnt.join("low")).unwrap();
            let (mut from, mut to) = (0, 3 * PAGE as u64);
            let copied = rustix::fs::copy_file_range(
                low.as_fd(),
                Some(&mut from),
                file.as_fd(),
                Some(&mut to),
                4 * PAGE,
            );
            assert_eq!(copied, Ok(4 * PAGE));
            let mut read = vec![0; 4 * PAGE];
            file.read_exact_at(&mut read, 3 * PAGE as u64).unwrap();
            assert!(read == pattern(4 * PAGE, 1));
            assert_eq!(map.read(3 * PAGE + 5), pattern(6, 1)[5]);
            let (mut from, mut to) = (3 * PAGE as u64, mib);
            let copied = rustix::fs::copy_file_range(
                file.as_fd(),
                Some(&mut from),
                file.as_fd(),
                Some(&mut to),
                PAGE,
            );
            assert_eq!(copied, Ok(PAGE));
            assert_eq!(map.read((1 << 20) + 5), pattern(6, 1)[5]);
            file.sync_all().unwrap();
            same_file(&mnt.join("holes"), &site.path("upper/holes"));
            same_attributes(&mnt.join("holes"), &site.path("upper/holes"));
        },
    );
}

#[test]
fn programs_run_and_are_not_written_meanwhile() {
    on_each(
        |site| {
            fs::copy("/bin/sleep", site.path("lower/low")).unwrap();
        },
        |site, _| {
            let mnt = site.path("mnt");
            fs::copy("/bin/sleep", mnt.join("new")).unwrap();
            for name in ["low", "new"] {
                let program = mnt.join(name);
                assert!(Command::new(&program).arg("0").status().unwrap().success());
                let mut running = Command::new(&program).arg("100").spawn().unwrap();
                let busy = both().open(&program).unwrap_err();
                assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY), "{name}");
                // Refused, too, and not emptied.
                let flags = OFlags::RDONLY | OFlags::TRUNC;
                let cut = rustix::fs::open(&program, flags, Mode::empty()).err();
                assert_eq!(cut, Some(Errno::TXTBSY), "{name}");
                assert!(fs::read(&program).unwrap() == fs::read("/bin/sleep").unwrap());
                running.kill().unwrap();
                running.wait().unwrap();
                let writer = both().open(&program).unwrap();
                let busy = Command::new(&program).arg("0").status().unwrap_err();
                assert_eq!(busy.raw_os_error(), Some(libc::ETXTBSY), "{name}");
                drop(writer);
                assert!(Command::new(&program).arg("0").status().unwrap().success());
            }
        },
    );
}
