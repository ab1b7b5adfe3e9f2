//! O_DIRECT and mappings: several ways to the same bytes, before and after copy-up.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::on_twins;

const SIZE: usize = 200_000;

fn prepare(dir: &Path) {
    let bytes: Vec<u8> = (0..SIZE as u32).map(|i| (i / 7 % 251) as u8).collect();
    fs::write(dir.join("big"), bytes).expect("write");
}

/// Helpers of the scripts below: aligned buffers.
const DIRECT: &str = "
def page(byte, n=4096):
    m = mmap.mmap(-1, n)
    m[:] = bytes([byte]) * n
    return m
def read(f, at, n=4096):
    m = mmap.mmap(-1, n)
    got = os.preadv(f, [m], at)
    return got, hashlib.sha256(m[:got]).hexdigest()[:16]
";

#[test]
fn direct_buffered_and_mapped_bytes_are_the_same() {
    on_twins(prepare, |twins| {
        let said = twins.python(&format!(
            "{DIRECT}
early = os.open('big', os.O_RDONLY | os.O_DIRECT)
print('lower', read(early, 0), read(early, 4096, 65536), read(early, 196608), read(early, 204800))
direct = os.open('big', os.O_RDWR | os.O_DIRECT)
print('write', os.pwritev(direct, [page(0x41)], 8192))
print('read by the descriptor from before', read(early, 8192))
buffered = os.open('big', os.O_RDWR)
print('read through the cache', os.pread(buffered, 8, 8188), os.pread(buffered, 8, 12284))
os.pwrite(buffered, b'buffered', 4096)
print('written through the cache', read(direct, 4096), read(early, 4096))
mapped = mmap.mmap(buffered, 0)
mapped[16384:16390] = b'mapped'
print('written by a mapping', read(direct, 16384))
os.pwritev(direct, [page(0x42)], 16384)
print('seen by the mapping', mapped[16382:16392], mapped[20478:20482] == os.pread(buffered, 4, 20478))
print('behind the end', os.pwritev(direct, [page(0x43)], 204800), os.fstat(direct).st_size)
print('the gap', read(direct, 196608, 8192))
os.ftruncate(direct, 8192 + 100)
print('cut', read(direct, 8192), read(early, 4096, 65536))
mapped.close()
print(content('big'), os.stat('big').st_size)
new = os.open('new', os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
for i in range(16):
    os.pwritev(new, [page(i, 65536)], (15 - i) * 65536)
print('new', content('new'), read(new, 65536 * 3, 65536))
gone = os.open('big', os.O_RDWR | os.O_DIRECT)
os.unlink('big')
print('unlinked', os.pwritev(gone, [page(0x44)], 0), read(gone, 0), os.fstat(gone).st_nlink)
"
        ));
        assert!(said.contains("write 4096"), "{said}");
        let hashes = "print(content('new'))";
        let before = twins.python(hashes);
        twins.remount();
        assert_eq!(twins.python(hashes), before);
    });
}

/// Whoever maps or opens a file before its copy-up sees what is written after it, which the kernel's overlayfs does not
/// promise. A private mapping keeps its own changes to itself.
#[test]
fn mappings_live_over_copy_up() {
    on_twins(prepare, |twins| {
        let said = twins.python(
            "
reader = os.open('big', os.O_RDONLY)
seen = mmap.mmap(reader, 0, prot=mmap.PROT_READ)
private = mmap.mmap(reader, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
private[0:7] = b'private'
def times():
    s = os.stat('big')
    return s.st_mtime_ns, s.st_ctime_ns
before = times()
print('a private change is nobody else’s', os.pread(reader, 7, 0) == seen[0:7], seen[0:7] == b'private')
time.sleep(0.02)
writer = os.open('big', os.O_RDWR)
shared = mmap.mmap(writer, 0)
shared[4096:4102] = b'shared'
print(seen[4096:4102], private[4096:4102], os.pread(reader, 6, 4096), private[0:7])
shared.flush()
after = times()
print('mtime and ctime moved', after[0] > before[0], after[1] > before[1])
time.sleep(0.02)
shared[8192:8198] = b'second'
shared.flush()
os.fsync(writer)
again = times()
print('and again', again[0] > after[0], again[1] > after[1])
os.pwrite(writer, b'by call', 12288)
print(seen[12288:12295], shared[12288:12295], private[12288:12295])
os.ftruncate(writer, 300000)
wide = mmap.mmap(writer, 300000)
wide[299990:] = b'the end...'
print(os.pread(reader, 20, 299985), os.fstat(reader).st_size)
os.rename('big', 'moved')
wide[0:5] = b'moved'
print(seen[0:5], private[0:5], os.pread(reader, 5, 0))
os.unlink('moved')
wide[0:4] = b'gone'
print(seen[0:4], os.pread(reader, 4, 0), os.fstat(reader).st_nlink)
",
        );
        assert!(said.contains("mtime and ctime moved True True"), "{said}");
    });
}

/// The times of a mapped write are on disk too, not only in the kernel's cache.
#[test]
fn times_of_mapped_writes_are_kept() {
    on_twins(prepare, |twins| {
        let earlier = fs::metadata(twins.mnt().join("big")).expect("stat");
        twins.python(
            "
f = os.open('big', os.O_RDWR)
m = mmap.mmap(f, 0)
time.sleep(0.02)
m[100:104] = b'late'
m.flush(); m.close(); os.close(f)
print(content('big'))
",
        );
        let of = |path: &Path| {
            let m = fs::metadata(path).expect("stat");
            (m.mtime(), m.mtime_nsec(), m.size())
        };
        let shown = of(&twins.mnt().join("big"));
        assert!(shown > (earlier.mtime(), earlier.mtime_nsec(), SIZE as u64));
        assert_eq!(of(&twins.upper().join("big")), shown);
        twins.remount();
        assert_eq!(of(&twins.mnt().join("big")), shown);
    });
}
