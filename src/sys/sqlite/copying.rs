//! The log being written back: frames are read some way ahead, and where they hold neighbouring pages, these are
//! written with the first of them.
//!
//! SQLite reads a frame, writes its page, and goes on, page by page in ascending order. That a page is written before
//! its turn, or in an older form than the one its turn brings, makes no difference as long as its frame is one that
//! may be written back: every reader of now or later has that frame, or a later one of the same page, in the log,
//! until SQLite says that the log was written back, and by then each page has had its turn. Nothing is kept back, so
//! that an error is told before SQLite goes on.

use std::ops::Range;

use super::{Code, FRAME, FRAME_HEADER, LOG_HEADER, OK, PAGE, PIECE};

/// Frames read at a time.
const AHEAD: i64 = (PIECE / PAGE) as i64;

#[derive(Default)]
pub(super) struct Copying {
    /// The last frame that may be written back; frames count from 1, and 0 is none.
    last_frame: i64,
    /// Where the database ends, or will.
    end: i64,
    /// Frames that were read, the first without its header.
    bytes: Vec<u8>,
    frames: Range<i64>,
    /// The frame that SQLite read last.
    current: i64,
    /// Frames whose pages were written, in neighbouring places, and where the first is.
    written: Range<i64>,
    written_at: i64,
    run: Vec<u8>,
}

impl Copying {
    pub(super) fn begin(&mut self, last_frame: i64) {
        self.end();
        self.last_frame = last_frame;
    }

    pub(super) fn end(&mut self) {
        (self.last_frame, self.end, self.current) = (0, 0, 0);
        (self.frames, self.written) = (0..0, 0..0);
    }

    pub(super) fn database_ends(&mut self, at: i64) {
        self.end = at;
    }

    /// The page at `at` of the log, which is read with those that follow; `None` if it must be read as always.
    pub(super) fn read(
        &mut self,
        at: i64,
        read: &mut dyn FnMut(&mut [u8], i64) -> Code,
    ) -> Option<&[u8]> {
        let before = at - FRAME_HEADER as i64 - LOG_HEADER;
        self.current = 0;
        if before < 0 || before % FRAME != 0 {
            return None;
        }
        let frame = before / FRAME + 1;
        if !self.frames.contains(&frame) {
            let count = (self.last_frame - frame + 1).min(AHEAD);
            if count < 2 {
                return None;
            }
            let len = usize::try_from(count * FRAME).ok()? - FRAME_HEADER;
            self.frames = 0..0;
            self.written = 0..0;
            let room = len.saturating_sub(self.bytes.len());
            self.bytes.try_reserve_exact(room).ok()?;
            self.bytes.resize(len, 0);
            if read(&mut self.bytes, at) != OK {
                return None;
            }
            self.frames = frame..frame + count;
        }
        self.current = frame;
        self.page(frame)
    }

    /// Writes a page of the database, perhaps with others, unless it is written already.
    pub(super) fn write(
        &mut self,
        page: &[u8],
        at: i64,
        write: &mut dyn FnMut(&[u8], i64) -> Code,
    ) -> Code {
        let current = self.current;
        if self.page(current) != Some(page) {
            return write(page, at);
        }
        if self.written.contains(&current)
            && at == self.written_at + (current - self.written.start) * PAGE as i64
        {
            return OK;
        }
        let mut next = current + 1;
        while self.frames.contains(&next)
            && self.continues(next, at + (next - current) * PAGE as i64)
        {
            next += 1;
        }
        let len = (next - current) as usize * PAGE;
        self.run.clear();
        if next == current + 1 || self.run.try_reserve_exact(len).is_err() {
            return write(page, at);
        }
        for frame in current..next {
            match page_of(&self.bytes, &self.frames, frame) {
                Some(page) => self.run.extend_from_slice(page),
                None => return write(page, at),
            }
        }
        let code = write(&self.run, at);
        if code == OK {
            self.written = current..next;
            self.written_at = at;
        }
        code
    }

    /// Whether the page of a frame goes to this place of the database.
    fn continues(&self, frame: i64, at: i64) -> bool {
        let Some(start) = place(&self.frames, frame) else {
            return false;
        };
        let number = start
            .checked_sub(FRAME_HEADER)
            .and_then(|header| self.bytes.get(header..)?.first_chunk())
            .map(|bytes| i64::from(u32::from_be_bytes(*bytes)));
        number == Some(at / PAGE as i64 + 1) && at + PAGE as i64 <= self.end
    }

    fn page(&self, frame: i64) -> Option<&[u8]> {
        page_of(&self.bytes, &self.frames, frame)
    }
}

/// Where the page of a frame begins among `frames`, of which the first has no header.
fn place(frames: &Range<i64>, frame: i64) -> Option<usize> {
    frames
        .contains(&frame)
        .then(|| (frame - frames.start) as usize * FRAME as usize)
}

fn page_of<'b>(bytes: &'b [u8], frames: &Range<i64>, frame: i64) -> Option<&'b [u8]> {
    let start = place(frames, frame)?;
    bytes.get(start..start + PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log whose frames hold these pages; every byte of a page is its frame's number.
    fn log(pages: &[u32]) -> Vec<u8> {
        let mut log = vec![0; LOG_HEADER as usize];
        for (n, page) in (1..).zip(pages) {
            log.extend_from_slice(&page.to_be_bytes());
            log.extend_from_slice(&[0; FRAME_HEADER - 4]);
            log.extend_from_slice(&[n; PAGE]);
        }
        log
    }

    fn page_at(frame: i64) -> i64 {
        LOG_HEADER + (frame - 1) * FRAME + FRAME_HEADER as i64
    }

    /// Copies as SQLite does: of the frames up to `last` each page's latest, in order. Gives the writes as (page,
    /// pages).
    fn copied(pages: &[u32], last: i64, end: u32) -> Vec<(i64, usize)> {
        let log = log(pages);
        let mut latest = std::collections::BTreeMap::new();
        for (frame, page) in (1..=last).zip(pages) {
            latest.insert(*page, frame);
        }
        let mut copying = Copying::default();
        copying.begin(last);
        copying.database_ends(i64::from(end) * PAGE as i64);
        let (mut writes, mut database) = (Vec::new(), vec![0; (end as usize + 1) * PAGE]);
        for (page, frame) in &latest {
            let mut read = |into: &mut [u8], at: i64| {
                let at = at as usize;
                assert!(
                    at + into.len() <= page_at(last) as usize + PAGE,
                    "beyond the last"
                );
                into.copy_from_slice(&log[at..at + into.len()]);
                OK
            };
            let mut bytes = vec![0; PAGE];
            match copying.read(page_at(*frame), &mut read) {
                Some(page) => bytes.copy_from_slice(page),
                None => assert_eq!(read(&mut bytes, page_at(*frame)), OK),
            }
            assert_eq!(bytes, [*frame as u8; PAGE]);
            let mut write = |bytes: &[u8], at: i64| {
                writes.push((at / PAGE as i64 + 1, bytes.len() / PAGE));
                database[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
                OK
            };
            assert_eq!(
                copying.write(&bytes, i64::from(*page - 1) * PAGE as i64, &mut write),
                OK
            );
        }
        for (page, frame) in latest {
            let at = (page as usize - 1) * PAGE;
            assert_eq!(database[at..at + PAGE], [frame as u8; PAGE], "page {page}");
        }
        writes
    }

    #[test]
    fn neighbours_are_written_together() {
        for (pages, last, end, want) in [
            (&[1, 2, 3, 4][..], 4, 9, &[(1, 4)][..]),
            // Two transactions; the second changes a page of the first.
            (&[2, 3, 4, 5, 1, 3], 6, 9, &[(1, 1), (2, 4), (3, 1)]),
            // Only the first frames may be copied.
            (&[1, 2, 3, 4], 2, 9, &[(1, 2)]),
            (&[1, 2], 1, 9, &[(1, 1)]),
            (&[7, 5, 3, 1], 4, 9, &[(1, 1), (3, 1), (5, 1), (7, 1)]),
        ] {
            assert_eq!(copied(pages, last, end), want, "{pages:?}");
        }
        let many: Vec<u32> = (1..=100).collect();
        let writes = copied(&many, 100, 100);
        assert_eq!(writes.len(), 100usize.div_ceil(AHEAD as usize));
    }

    #[test]
    fn pages_beyond_the_end_are_not_written_with_others() {
        let log = log(&[1, 2, 3]);
        let mut copying = Copying::default();
        copying.begin(3);
        copying.database_ends(2 * PAGE as i64);
        let page = copying.read(page_at(1), &mut |into, at| {
            into.copy_from_slice(&log[at as usize..at as usize + into.len()]);
            OK
        });
        let (page, mut written) = (page.unwrap().to_vec(), 0);
        copying.write(&page, 0, &mut |bytes, _| {
            written = bytes.len();
            OK
        });
        assert_eq!(written, 2 * PAGE);
    }

    #[test]
    fn failures_are_told_at_once() {
        let log = log(&[1, 2, 3]);
        let mut read = |into: &mut [u8], at: i64| {
            into.copy_from_slice(&log[at as usize..at as usize + into.len()]);
            OK
        };
        let mut copying = Copying::default();
        copying.begin(3);
        copying.database_ends(3 * PAGE as i64);
        assert_eq!(copying.read(page_at(1), &mut |_, _| 266), None);
        let page = copying.read(page_at(1), &mut read).unwrap().to_vec();
        assert_eq!(copying.write(&page, 0, &mut |_, _| 10), 10);
        // Not taken for written: the next page is tried again.
        let page = copying.read(page_at(2), &mut read).unwrap().to_vec();
        let mut tried = 0;
        let code = copying.write(&page, PAGE as i64, &mut |bytes, _| {
            tried = bytes.len();
            OK
        });
        assert_eq!((code, tried), (OK, 2 * PAGE));
        copying.end();
        assert_eq!(copying.read(page_at(3), &mut read), None);
    }
}
