//! Bytes of one file written to another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::Result;
use crate::layer::LayerFile;

/// How much is read at once from a layer that has no descriptor to copy from.
const BUFFER: usize = 1 << 20;
/// Copies of so many bytes, of files that have to be unpacked, are made by several threads, and by so many at most.
const WORTH_SHARING: u64 = 8 << 20;
const MOST_COPIERS: usize = 4;

/// Copies the first `len` bytes of a file of `size` bytes, holes as holes; a reflink where the file system can.
pub(super) fn copy_data(from: &LayerFile, to: &OwnedFd, len: u64, size: u64) -> Result<()> {
    if let Some(fd) = from.fd()
        && len == size
        && rustix::fs::ioctl_ficlone(to, fd).is_ok()
    {
        return Ok(());
    }
    let mut at = 0;
    while at < len {
        let Some(start) = from.next_data(at)? else {
            break;
        };
        if start >= len {
            break;
        }
        let end = from.next_hole(start)?.min(len);
        copy_range(from, to, start, end)?;
        at = end;
    }
    // What was copied to its end, without one, has its size.
    if at == len && len == size {
        return Ok(());
    }
    rustix::fs::ftruncate(to, len)
}

fn copy_range(from: &LayerFile, to: &OwnedFd, start: u64, end: u64) -> Result<()> {
    let mut at = start;
    if let Some(fd) = from.fd() {
        while at < end {
            let (mut source, mut target) = (at, at);
            let len = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match rustix::fs::copy_file_range(fd, Some(&mut source), to, Some(&mut target), len) {
                // The lower shrank underneath, or this pair of file systems cannot: read and write.
                Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
                Ok(n) => at += n as u64,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
    // A stored file has to be unpacked and verified, which is worth more than one processor.
    let helpers = match from.fd() {
        None if end - at >= WORTH_SHARING => {
            std::thread::available_parallelism().map_or(1, |all| all.get().min(MOST_COPIERS)) - 1
        }
        _ => 0,
    };
    let next = AtomicU64::new(at);
    std::thread::scope(|scope| {
        let copy = || copy_blocks(from, to, &next, end);
        // Where no thread can be had, this one does all.
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, copy).ok();
        let helpers: Vec<_> = (0..helpers).map_while(spawn).collect();
        let mut done = copy();
        for helper in helpers {
            done = done.and(helper.join().unwrap_or(Err(Errno::IO)));
        }
        done
    })
}

/// Copies blocks one after another, from where `next` is up to `end`, which others do as well.
fn copy_blocks(from: &LayerFile, to: &OwnedFd, next: &AtomicU64, end: u64) -> Result<()> {
    let mut buf = Vec::new();
    loop {
        let mut at = next.fetch_add(BUFFER as u64, Ordering::Relaxed);
        if at >= end {
            return Ok(());
        }
        let stop = end.min(at + BUFFER as u64);
        buf.resize((stop - at) as usize, 0);
        while at < stop {
            let got = from.read_at(at, &mut buf[..(stop - at) as usize]);
            let written = match got {
                // Shorter than its layer said.
                Ok(0) => Err(Errno::IO),
                Ok(got) => write_all(to.as_fd(), at, &buf[..got]).map(|()| got as u64),
                Err(e) => Err(e),
            };
            match written {
                Ok(got) => at += got,
                Err(e) => {
                    // The others need not go on.
                    next.fetch_max(end, Ordering::Relaxed);
                    return Err(e);
                }
            }
        }
    }
}

/// Writes all of `data` at `offset`.
pub(super) fn write_all(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<()> {
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwrite(fd, &data[done..], offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;

    fn open(path: &std::path::Path) -> OwnedFd {
        fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
            .into()
    }

    /// Several threads share one copy; what cannot be read or written is an error, whoever meets it.
    #[test]
    fn blocks_are_copied_once_each_and_errors_are_told() {
        let tmp = tempfile::tempdir().unwrap();
        let size = 5 * BUFFER + 123;
        let data: Vec<u8> = (0..size).map(|n| (n / 97 % 251) as u8).collect();
        fs::write(tmp.path().join("from"), &data).unwrap();
        let from = LayerFile::Fd(Arc::new(open(&tmp.path().join("from"))));
        let copy = |name: &str, start: u64, end: u64| {
            let to = open(&tmp.path().join(name));
            let next = AtomicU64::new(start);
            let done: Vec<_> = std::thread::scope(|scope| {
                let run = || copy_blocks(&from, &to, &next, end);
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(run)).collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            (done, fs::read(tmp.path().join(name)).unwrap())
        };
        let (done, all) = copy("all", 0, size as u64);
        assert!(done.iter().all(Result::is_ok) && all == data, "{done:?}");
        let (done, part) = copy("part", 1000, size as u64 - 5);
        assert!(done.iter().all(Result::is_ok), "{done:?}");
        assert!(part[1000..] == data[1000..size - 5] && part[..1000].iter().all(|b| *b == 0));
        let (done, _) = copy("beyond", 0, size as u64 + 1);
        assert!(done.contains(&Err(Errno::IO)), "{done:?}");
    }
}
