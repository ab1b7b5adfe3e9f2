//! A file that the disk gets while it is still being written, so that the last sync has little left to wait for.
//!
//! The kernel by itself leaves hundreds of megabytes in memory and lets the one who syncs wait for all of them, while
//! the disk had nothing to do before.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// The thread is woken after so many bytes.
const STRETCH: u64 = 32 << 20;

/// A file being written. What is not synced by [`WriteOut::sync`] may be lost.
pub struct WriteOut {
    file: File,
    since: u64,
    behind: Option<Behind>,
}

struct Behind {
    wake: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl WriteOut {
    pub fn new(file: File) -> Self {
        Self {
            file,
            since: 0,
            behind: None,
        }
    }

    /// Everything on the disk, file size included.
    ///
    /// # Errors
    /// Those of this sync and of all before it: the kernel tells each failed write only once.
    pub fn sync(&mut self) -> io::Result<()> {
        self.join()?;
        self.file.sync_all()
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(Behind { wake, thread }) = self.behind.take() else {
            return Ok(());
        };
        drop(wake);
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn wake(&mut self) -> io::Result<()> {
        let behind = match &self.behind {
            Some(behind) => behind,
            None => {
                let (file, (wake, woken)) = (self.file.try_clone()?, sync_channel::<()>(1));
                let thread = thread::Builder::new()
                    .name("ovl-write-out".to_owned())
                    .spawn(move || woken.into_iter().try_for_each(|()| file.sync_data()))?;
                self.behind.insert(Behind { wake, thread })
            }
        };
        // Full: it is at it. Gone: it failed, and `sync` tells.
        let _ = behind.wake.try_send(());
        Ok(())
    }
}

impl Write for WriteOut {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.since += n as u64;
        if self.since >= STRETCH {
            self.since = 0;
            self.wake()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for WriteOut {
    fn drop(&mut self) {
        // Nobody asked whether it is on the disk.
        let _ = self.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut out = WriteOut::new(File::create_new(&path).unwrap());
        let piece = vec![7u8; 5 << 20];
        for _ in 0..15 {
            out.write_all(&piece).unwrap();
        }
        assert!(out.behind.is_some(), "the thread was at work");
        out.sync().unwrap();
        assert!(out.behind.is_none());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 75 << 20);
    }
}
