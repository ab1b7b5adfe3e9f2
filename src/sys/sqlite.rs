//! A VFS for SQLite's connections that write: the standard one, but its many small writes are few large ones.
//!
//! SQLite writes a page to its log as 24 and 4096 bytes, and writes the log back page by page, which for an import of
//! hundreds of megabytes is a sixth of its processor time. Here a transaction's frames are gathered ([`log`]), and
//! writing back looks ahead ([`copying`]). Locks, the shared index of the log, syncs and everything else are the
//! standard VFS's; connections with it and without work on the same files at the same time, in this process and in
//! others.
//!
//! What is relied on is documented: the formats of the log and of its index
//! (<https://www.sqlite.org/walformat.html>), and the interface of a VFS
//! (<https://www.sqlite.org/c3ref/io_methods.html>). Where something is not as expected, writes go straight to the
//! standard VFS.

mod copying;
mod log;
#[cfg(test)]
mod tests;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, null_mut};
use std::slice;
use std::sync::OnceLock;

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

use copying::Copying;
use log::Gathered;

type Code = c_int;

const OK: Code = ffi::SQLITE_OK;
/// Pages of other databases go through as they are, bytes.
pub const PAGE: usize = 4096;
const LOG_HEADER: i64 = 32;
const FRAME_HEADER: usize = 24;
const FRAME: i64 = (FRAME_HEADER + PAGE) as i64;
/// Bytes read or written at a time. The standard VFS does less than 128 KiB at once.
const PIECE: usize = 124 << 10;

const NAME: &CStr = c"ovl-gather";

/// The name to open a connection with; `None` if there is no such VFS, so that the standard one must do.
pub fn gathering() -> Option<&'static CStr> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    REGISTERED.get_or_init(register).then_some(NAME)
}

fn register() -> bool {
    // SAFETY: the standard VFS is static and never changes but for its list's link, which is set anew for the copy.
    // The copy is never freed, as one that is registered must not be.
    unsafe {
        let Some(standard) = ffi::sqlite3_vfs_find(ptr::null()).as_ref() else {
            return false;
        };
        let Ok(len) = c_int::try_from(size_of::<File>()) else {
            return false;
        };
        if standard.iVersion < 3 {
            return false;
        }
        let vfs = Box::leak(Box::new(sqlite3_vfs {
            szOsFile: len + standard.szOsFile,
            pNext: null_mut(),
            zName: NAME.as_ptr(),
            xOpen: Some(open),
            ..*standard
        }));
        ffi::sqlite3_vfs_register(vfs, 0) == OK
    }
}

/// A database or its log; the standard VFS's file lies behind it in the same memory.
///
/// A connection is used by one thread at a time, and with it these.
#[repr(C)]
struct File {
    head: sqlite3_file,
    is_log: bool,
    /// A log's database, a database's log; null where there is none.
    other: *mut Self,
    /// Of a log.
    gathered: Gathered,
    /// Of a database.
    copying: Copying,
    /// Of a database: the first part of the log's index, while it is mapped.
    index: *const u8,
}

/// SQLite aligns a file to this.
const _: () = assert!(align_of::<File>() <= 8 && size_of::<File>().is_multiple_of(8));

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 3,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: Some(fetch),
    xUnfetch: Some(unfetch),
};

/// Calls the standard VFS's method of a file of ours.
macro_rules! standard {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        let standard = behind($file);
        // Every file of the standard VFS has all of them; that they may be missing is for other VFSs.
        match (*(*standard).pMethods).$method {
            Some(method) => method(standard $(, $argument)*),
            None => ffi::SQLITE_IOERR,
        }
    }};
}

unsafe fn behind(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: the caller has a file of ours, made with this much in front of the standard one's.
    unsafe { file.byte_add(size_of::<File>()) }
}

/// Writes to the log what was gathered for it.
unsafe fn flush(file: *mut sqlite3_file) -> Code {
    // SAFETY: the caller has an open file of ours, which nobody else uses meanwhile.
    unsafe {
        let this = file.cast::<File>();
        (*this)
            .gathered
            .flush(&mut |bytes, at| put(file, bytes, at))
    }
}

/// Writes to the file behind `file`.
unsafe fn put(file: *mut sqlite3_file, bytes: &[u8], at: i64) -> Code {
    // SAFETY: the caller has an open file of ours; the bytes are there as long as the call. None are more than SQLite
    // itself writes at once, or PIECE.
    unsafe {
        standard!(
            file,
            xWrite,
            bytes.as_ptr().cast(),
            bytes.len() as c_int,
            at
        )
    }
}

unsafe extern "C" fn open(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives memory of szOsFile bytes, aligned to eight, and hands the name of a log over with what
    // sqlite3_database_file_object wants in front of it. The file that gives was opened here if it has our methods.
    unsafe {
        let standard = ffi::sqlite3_vfs_find(ptr::null());
        let Some(call) = standard.as_ref().and_then(|vfs| vfs.xOpen) else {
            return ffi::SQLITE_ERROR;
        };
        if flags & (ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_WAL) == 0 {
            return call(standard, name, file, flags, out);
        }
        // Neither is touched if opening fails early.
        (*file).pMethods = ptr::null();
        (*behind(file)).pMethods = ptr::null();
        let code = call(standard, name, behind(file), flags, out);
        if (*behind(file)).pMethods.is_null() {
            return code;
        }
        let this = file.cast::<File>();
        this.write(File {
            head: sqlite3_file { pMethods: &METHODS },
            is_log: flags & ffi::SQLITE_OPEN_WAL != 0,
            other: null_mut(),
            gathered: Gathered::default(),
            copying: Copying::default(),
            index: ptr::null(),
        });
        if (*this).is_log && !name.is_null() {
            let database = ffi::sqlite3_database_file_object(name);
            if !database.is_null() && ptr::eq((*database).pMethods, &METHODS) {
                (*this).other = database.cast();
                (*(*this).other).other = this;
            }
        }
        code
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes an open file once and uses it no more; a log before its database.
    unsafe {
        let this = file.cast::<File>();
        // Frames that no transaction's end followed.
        (*this).gathered.forget();
        if let Some(other) = (*this).other.as_mut() {
            other.other = null_mut();
        }
        let code = standard!(file, xClose);
        this.drop_in_place();
        code
    }
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    into: *mut c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: an open file, used by nobody else meanwhile, and room for `len` bytes, which is not negative.
    unsafe {
        let this = file.cast::<File>();
        if (*this).gathered.overlaps(at, len as usize) {
            match flush(file) {
                OK => {}
                failed => return failed,
            }
        }
        if (*this).is_log && len as usize == PAGE && !(*this).other.is_null() {
            let copying = &mut (*(*this).other).copying;
            let page = copying.read(at, &mut |bytes, at| {
                standard!(
                    file,
                    xRead,
                    bytes.as_mut_ptr().cast(),
                    bytes.len() as c_int,
                    at
                )
            });
            if let Some(page) = page {
                ptr::copy_nonoverlapping(page.as_ptr(), into.cast(), page.len());
                return OK;
            }
        }
        standard!(file, xRead, into, len, at)
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    from: *const c_void,
    len: c_int,
    at: i64,
) -> c_int {
    // SAFETY: an open file, used by nobody else meanwhile, and `len` bytes, which is not negative.
    unsafe {
        let this = file.cast::<File>();
        let bytes = slice::from_raw_parts(from.cast::<u8>(), len as usize);
        let mut put = |bytes: &[u8], at| put(file, bytes, at);
        if !(*this).is_log {
            (*this).copying.write(bytes, at, &mut put)
        } else if (*this).other.is_null() {
            // Nobody would tell when a transaction has ended.
            put(bytes, at)
        } else {
            (*this).gathered.write(bytes, at, &mut put)
        }
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: i64) -> c_int {
    // SAFETY: an open file, used by nobody else meanwhile.
    unsafe {
        match flush(file) {
            OK => standard!(file, xTruncate, len),
            failed => failed,
        }
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: an open file, used by nobody else meanwhile.
    unsafe {
        match flush(file) {
            OK => standard!(file, xSync, flags),
            failed => failed,
        }
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, len: *mut i64) -> c_int {
    // SAFETY: an open file, used by nobody else meanwhile, and room for the answer.
    unsafe {
        match flush(file) {
            OK => {}
            failed => return failed,
        }
        let code = standard!(file, xFileSize, len);
        if code == OK {
            (*file.cast::<File>()).copying.database_ends(*len);
        }
        code
    }
}

unsafe extern "C" fn file_control(
    file: *mut sqlite3_file,
    what: c_int,
    with: *mut c_void,
) -> c_int {
    // SAFETY: an open file, used by nobody else meanwhile; `with` is what the interface says for `what`.
    unsafe {
        let this = file.cast::<File>();
        match what {
            ffi::SQLITE_FCNTL_CKPT_START => match last_frame_to_copy((*this).index) {
                Some(last) => (*this).copying.begin(last),
                None => (*this).copying.end(),
            },
            ffi::SQLITE_FCNTL_SIZE_HINT => (*this).copying.database_ends(*with.cast::<i64>()),
            ffi::SQLITE_FCNTL_CKPT_DONE => (*this).copying.end(),
            _ => {}
        }
        standard!(file, xFileControl, what, with)
    }
}

/// The last frame that the writing back which now begins may copy (`nBackfillAttempted` of the log's index).
unsafe fn last_frame_to_copy(index: *const u8) -> Option<i64> {
    /// In the index, whose numbers are in the machine's order.
    const VERSION_AT: usize = 0;
    const PAGE_SIZE_AT: usize = 14;
    const ATTEMPTED_AT: usize = 128;
    const VERSION: u32 = 3_007_000;
    if index.is_null() {
        return None;
    }
    // SAFETY: the index is mapped, 32 KiB of it and aligned to a page. Others may write to it, but what is read here
    // is only changed by who holds the lock for writing back: this connection.
    unsafe {
        let version = index.byte_add(VERSION_AT).cast::<u32>().read_volatile();
        let page = index.byte_add(PAGE_SIZE_AT).cast::<u16>().read_volatile();
        let attempted = index.byte_add(ATTEMPTED_AT).cast::<u32>().read_volatile();
        (version == VERSION && usize::from(page) == PAGE).then_some(i64::from(attempted))
    }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    region: c_int,
    len: c_int,
    extend: c_int,
    into: *mut *mut c_void,
) -> c_int {
    // SAFETY: an open database, used by nobody else meanwhile, and room for the answer, which stays mapped until it
    // is unmapped.
    unsafe {
        let code = standard!(file, xShmMap, region, len, extend, into);
        if region == 0 {
            let mapped = if code == OK { *into } else { null_mut() };
            (*file.cast::<File>()).index = mapped.cast::<u8>().cast_const();
        }
        code
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut sqlite3_file,
    first: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: an open database, used by nobody else meanwhile, as is its log.
    unsafe {
        // The lock for writing is the first. Whoever has it next writes where this transaction did, unless that came
        // to its end, and then nothing is left here.
        if first == 0
            && flags & ffi::SQLITE_SHM_UNLOCK != 0
            && let Some(log) = (*file.cast::<File>()).other.as_mut()
        {
            log.gathered.forget();
        }
        standard!(file, xShmLock, first, count, flags)
    }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: an open database, used by nobody else meanwhile.
    unsafe {
        (*file.cast::<File>()).index = ptr::null();
        standard!(file, xShmUnmap, delete)
    }
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    // SAFETY: an open database.
    unsafe {
        let standard = behind(file);
        if let Some(barrier) = (*(*standard).pMethods).xShmBarrier {
            barrier(standard);
        }
    }
}

/// Methods that only hand on.
macro_rules! handed_on {
    ($($name:ident $method:ident ($($argument:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $argument: $type)*) -> c_int {
            // SAFETY: an open file, and what else the standard VFS's method wants.
            unsafe { standard!(file, $method $(, $argument)*) }
        }
    )*};
}

handed_on! {
    lock xLock(level: c_int);
    unlock xUnlock(level: c_int);
    check_reserved_lock xCheckReservedLock(held: *mut c_int);
    sector_size xSectorSize();
    device_characteristics xDeviceCharacteristics();
    fetch xFetch(at: i64, len: c_int, into: *mut *mut c_void);
    unfetch xUnfetch(at: i64, mapped: *mut c_void);
}
