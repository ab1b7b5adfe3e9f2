//! The log of a connection that writes: frames of a transaction that has not come to its end are gathered.
//!
//! Invariant: nothing is kept back once the frame that ends a transaction begins to be written. So what others may
//! look at is in the file, and what fails on the way there fails the transaction.

use super::{Code, FRAME, FRAME_HEADER, LOG_HEADER, OK, PAGE, PIECE};

/// Bytes that follow each other in the file and are not in it yet.
#[derive(Default)]
pub(super) struct Gathered {
    at: i64,
    bytes: Vec<u8>,
    /// Where the page of a frame goes whose header was gathered last.
    page_at: Option<i64>,
    /// Frames are lost: the transaction cannot come to a good end any more.
    failed: Option<Code>,
}

impl Gathered {
    /// Takes in `bytes` that belong at `at`, or writes them with all that was gathered before.
    pub(super) fn write(
        &mut self,
        bytes: &[u8],
        at: i64,
        write: &mut dyn FnMut(&[u8], i64) -> Code,
    ) -> Code {
        if let Some(failed) = self.failed {
            return failed;
        }
        let page_at = self.page_at.take();
        let header = is_header_within(bytes, at);
        let page = bytes.len() == PAGE && page_at == Some(at);
        if !header && !page {
            return match self.flush(write) {
                OK => write(bytes, at),
                failed => failed,
            };
        }
        if at != self.end() || self.bytes.len() + bytes.len() > PIECE {
            match self.flush(write) {
                OK => {}
                failed => return failed,
            }
        }
        if self.bytes.capacity() < PIECE && self.bytes.try_reserve_exact(PIECE).is_err() {
            return write(bytes, at);
        }
        if self.bytes.is_empty() {
            self.at = at;
        }
        self.bytes.extend_from_slice(bytes);
        if header {
            self.page_at = Some(at + FRAME_HEADER as i64);
        }
        OK
    }

    /// Writes what was gathered. If that fails, so does everything until [`Self::forget`].
    pub(super) fn flush(&mut self, write: &mut dyn FnMut(&[u8], i64) -> Code) -> Code {
        if let Some(failed) = self.failed {
            return failed;
        }
        if self.bytes.is_empty() {
            return OK;
        }
        let code = write(&self.bytes, self.at);
        self.forget();
        self.failed = (code != OK).then_some(code);
        code
    }

    /// Drops what was gathered: the transaction has ended without the frame that would have ended it.
    pub(super) fn forget(&mut self) {
        self.bytes.clear();
        self.page_at = None;
        self.failed = None;
    }

    /// Whether some of these bytes of the file are still here.
    pub(super) fn overlaps(&self, at: i64, len: usize) -> bool {
        !self.bytes.is_empty() && at < self.end() && at + len as i64 > self.at
    }

    fn end(&self) -> i64 {
        self.at + self.bytes.len() as i64
    }
}

/// Whether it is the header of a frame that does not end a transaction: the size of the database, in bytes 4 to 7, is
/// 0.
fn is_header_within(bytes: &[u8], at: i64) -> bool {
    bytes.len() == FRAME_HEADER
        && at >= LOG_HEADER
        && (at - LOG_HEADER) % FRAME == 0
        && bytes[4..8] == [0; 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(commit: u8) -> [u8; FRAME_HEADER] {
        let mut header = [7; FRAME_HEADER];
        header[4..8].copy_from_slice(&[0, 0, 0, commit]);
        header
    }

    fn frame(n: i64) -> i64 {
        LOG_HEADER + n * FRAME
    }

    /// What reaches the file, as (offset, length).
    #[derive(Default)]
    struct Writes(Vec<(i64, usize)>);

    impl Writes {
        fn put(&mut self, gathered: &mut Gathered, n: i64, commit: u8) {
            let mut write = |bytes: &[u8], at| {
                self.0.push((at, bytes.len()));
                OK
            };
            let header_at = frame(n);
            assert_eq!(gathered.write(&header(commit), header_at, &mut write), OK);
            let page_at = header_at + FRAME_HEADER as i64;
            assert_eq!(gathered.write(&[n as u8; PAGE], page_at, &mut write), OK);
        }
    }

    #[test]
    fn the_end_of_a_transaction_leaves_nothing_behind() {
        let (mut gathered, mut writes) = (Gathered::default(), Writes::default());
        for n in 0..3 {
            writes.put(&mut gathered, n, 0);
        }
        assert_eq!(writes.0, []);
        assert!(gathered.overlaps(frame(2), 1) && !gathered.overlaps(frame(3), PAGE));
        writes.put(&mut gathered, 3, 9);
        let whole = 3 * FRAME as usize;
        assert_eq!(
            writes.0,
            [
                (frame(0), whole),
                (frame(3), FRAME_HEADER),
                (frame(3) + FRAME_HEADER as i64, PAGE)
            ]
        );
        assert!(!gathered.overlaps(0, usize::MAX >> 1));
    }

    #[test]
    fn frames_written_anew_come_after_those_they_replace() {
        let (mut gathered, mut writes) = (Gathered::default(), Writes::default());
        writes.put(&mut gathered, 5, 0);
        writes.put(&mut gathered, 2, 0);
        writes.put(&mut gathered, 3, 1);
        let (one, at) = (FRAME as usize, |n| frame(n) + FRAME_HEADER as i64);
        let ends = [(frame(3), FRAME_HEADER), (at(3), PAGE)];
        assert_eq!(writes.0[..2], [(frame(5), one), (frame(2), one)]);
        assert_eq!(writes.0[2..], ends);
    }

    #[test]
    fn what_is_no_frame_goes_straight_on() {
        for (bytes, at) in [
            (vec![0; 32], 0),
            (header(0).to_vec(), frame(1) + 8),
            (vec![0; PAGE], frame(1) + FRAME_HEADER as i64),
            (vec![0; 100], frame(2)),
        ] {
            let (mut gathered, mut writes) = (Gathered::default(), Writes::default());
            writes.put(&mut gathered, 7, 0);
            let mut write = |bytes: &[u8], at| {
                writes.0.push((at, bytes.len()));
                OK
            };
            assert_eq!(gathered.write(&bytes, at, &mut write), OK);
            assert_eq!(writes.0, [(frame(7), FRAME as usize), (at, bytes.len())]);
        }
    }

    #[test]
    fn a_failure_is_told_and_pieces_are_bounded() {
        let mut gathered = Gathered::default();
        let mut largest = 0;
        for n in 0..100 {
            let mut write = |bytes: &[u8], _| {
                largest = largest.max(bytes.len());
                OK
            };
            gathered.write(&header(0), frame(n), &mut write);
            gathered.write(&[1; PAGE], frame(n) + FRAME_HEADER as i64, &mut write);
        }
        assert!((PIECE - FRAME as usize..=PIECE).contains(&largest));
        let mut calls = 0;
        let mut fail = |_: &[u8], _| {
            calls += 1;
            10
        };
        assert_eq!(gathered.write(&header(1), frame(100), &mut fail), 10);
        assert_eq!(calls, 1);
        // Even if SQLite went on, no later frame may be taken for one of a whole transaction.
        for commit in [0, 1] {
            let code = gathered.write(&header(commit), frame(101), &mut |_, _| unreachable!());
            assert_eq!(code, 10);
        }
        assert_eq!(gathered.flush(&mut |_, _| unreachable!()), 10);
        gathered.forget();
        gathered.write(&header(0), frame(100), &mut |_, _| OK);
        gathered.forget();
        assert_eq!(
            gathered.flush(&mut |_, _| unreachable!("it was dropped")),
            OK
        );
    }
}
