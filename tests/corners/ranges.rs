//! Ranges of files: fallocate in all its modes, holes, copies inside the kernel.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::on_twins;

/// `file` is full, `sparse` has data at 1 MiB and at its end only.
fn prepare(dir: &Path) {
    let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i / 5 % 251) as u8).collect();
    fs::write(dir.join("file"), bytes).expect("write");
    let sparse = File::create(dir.join("sparse")).expect("create");
    sparse.set_len(8 << 20).expect("truncate");
    sparse.write_all_at(&[7; 8192], 1 << 20).expect("write");
    sparse
        .write_all_at(&[8; 4096], (8 << 20) - 4096)
        .expect("write");
    sparse.sync_all().expect("sync");
}

const RANGES: &str = "
libc = ctypes.CDLL(None, use_errno=True)
def fallocate(f, mode, start, length):
    if libc.fallocate(f, mode, ctypes.c_long(start), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), 'fallocate')
KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
def map_of(path):
    f = os.open(path, os.O_RDONLY)
    end, at, data = os.fstat(f).st_size, 0, []
    while at < end:
        try:
            start = os.lseek(f, at, os.SEEK_DATA)
        except OSError as error:
            data.append(errno.errorcode[error.errno])
            break
        at = os.lseek(f, start, os.SEEK_HOLE)
        data.append((start, at))
    os.close(f)
    return data
def copy(source, start, target, to, length):
    done = 0
    while done < length:
        n = os.copy_file_range(source, target, length - done, start + done, to + done)
        if n == 0:
            break
        done += n
    return done
";

#[test]
fn fallocate_in_the_modes_the_transport_has() {
    on_twins(prepare, |twins| {
        let said = twins.python(&format!(
            "{RANGES}
f = os.open('file', os.O_RDWR)
def change(words, mode, start, length):
    before = os.fstat(f)
    time.sleep(0.01)
    tell(words, fallocate, f, mode, start, length)
    os.fsync(f)
    s = os.fstat(f)
    print('  ', s.st_size, s.st_blocks, s.st_mtime_ns > before.st_mtime_ns, s.st_ctime_ns > before.st_ctime_ns, content('file'))
change('punch', PUNCH | KEEP, 4096, 8192)
change('punch, unaligned', PUNCH | KEEP, 20000, 1000)
change('punch over the end', PUNCH | KEEP, 98304, 65536)
change('zero', ZERO, 30000, 20000)
change('zero over the end, size kept', ZERO | KEEP, 90000, 50000)
change('zero over the end', ZERO, 90000, 20000)
change('allocate inside', 0, 0, 50000)
change('allocate behind the end, size kept', KEEP, 110000, 90000)
change('allocate behind the end', 0, 110000, 10000)
change('punch without keep', PUNCH, 0, 4096)
change('nothing', 0, 0, 0)
change('before the beginning', 0, -1, 10)
r = os.open('file', os.O_RDONLY)
tell('by a reader', fallocate, r, 0, 0, 10)
"
        ));
        assert!(said.starts_with("punch None\n"), "{said}");
    });
}

/// The kernel's FUSE knows no others, and says so before it asks.
#[test]
fn fallocate_in_other_modes_is_refused_and_changes_nothing() {
    on_twins(prepare, |twins| {
        let said = twins.python_on_mount(&format!(
            "{RANGES}
before = content('file')
f = os.open('file', os.O_RDWR)
for words, mode in [('collapse', COLLAPSE), ('insert', INSERT), ('unshare', UNSHARE)]:
    tell(words, fallocate, f, mode, 4096, 4096)
assert content('file') == before
"
        ));
        assert_eq!(said, "collapse ENOTSUP\ninsert ENOTSUP\nunshare ENOTSUP\n");
    });
}

#[test]
fn holes_are_where_they_were() {
    on_twins(prepare, |twins| {
        let script = format!(
            "{RANGES}
print(map_of('sparse'), map_of('file'))
f = os.open('sparse', os.O_RDONLY)
for whence in (os.SEEK_DATA, os.SEEK_HOLE):
    for at in (0, 1 << 20, (1 << 20) + 5, 5 << 20, (8 << 20) - 1, 8 << 20, 9 << 20, -1):
        tell(at, os.lseek, f, at, whence)
"
        );
        let below = twins.python(&script);
        assert!(
            below.starts_with("[(1048576, 1056768), (8384512, 8388608)]"),
            "{below}"
        );
        // Copy-up by a change of the mode, then by one byte of data.
        twins.sh("chmod 600 sparse file");
        assert_eq!(twins.python(&script), below);
        let said = twins.python(&format!(
            "{RANGES}
f = os.open('sparse', os.O_RDWR)
os.pwrite(f, b'x', 4 << 20)
print(map_of('sparse'))
fallocate(f, PUNCH | KEEP, 1 << 20, 4096)
print(map_of('sparse'), content('sparse'))
os.fsync(f)
print(os.fstat(f).st_blocks)
os.ftruncate(f, 16 << 20)
print(map_of('sparse'))
"
        ));
        assert!(said.contains("(4194304, 4198400)"), "{said}");
    });
}

#[test]
fn copies_between_lower_and_upper() {
    on_twins(prepare, |twins| {
        let said = twins.python(&format!(
            "{RANGES}
size = 100000
low = os.open('file', os.O_RDONLY)
new = os.open('new', os.O_RDWR | os.O_CREAT, 0o600)
print('lower to new', copy(low, 0, new, 0, size), content('new') == content('file'))
print('to an offset', copy(low, 5000, new, 150001, 1000), content('new'))
print('over the end of the source', copy(low, 99000, new, 0, 5000), content('new'))
print('from behind the end', copy(low, 100000, new, 0, 10))
sparse = os.open('sparse', os.O_RDWR)
print('new to lower', copy(new, 0, sparse, 1 << 20, 4096), content('sparse'), content('new'))
print('just written', os.pwrite(new, b'fresh', 10), copy(new, 8, sparse, 0, 10), os.pread(sparse, 12, 0))
both = os.open('file', os.O_RDWR)
print('within one file', copy(both, 0, both, 50000, 20000), content('file'), os.pread(low, 5, 50000) == os.pread(low, 5, 0))
tell('overlapping', copy, both, 0, both, 10, 100)
tell('into a reader', copy, both, 0, low, 60000, 100)
print('holes', copy(sparse, 2 << 20, new, 0, 1 << 20), content('new'))
appender = os.open('new', os.O_RDWR | os.O_APPEND)
tell('by an appender', copy, both, 0, appender, 0, 100)
directory = os.open('.', os.O_RDONLY)
tell('from a directory', copy, directory, 0, new, 0, 100)
s = os.stat('new')
print(s.st_size, s.st_nlink)
"
        ));
        assert!(said.starts_with("lower to new 100000 True\n"), "{said}");
        // Nothing of it touched the source in the lower.
        let whole = twins.python("print(content('new'), content('sparse'), content('file'))");
        twins.remount();
        assert_eq!(
            twins.python("print(content('new'), content('sparse'), content('file'))"),
            whole
        );
    });
}
