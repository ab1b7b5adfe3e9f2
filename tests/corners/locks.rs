//! Locks between processes: flock, record locks, and those of open file descriptions.

use std::fs;
use std::path::Path;

use super::on_twins;

fn prepare(dir: &Path) {
    fs::write(dir.join("file"), "x".repeat(100)).expect("write");
}

/// `ask` runs a call in another process and prints what it met.
const ANOTHER: &str = "
def ask(words, call, *args):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        tell(words, call, *args)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)
def fresh(how, flags=os.O_RDWR):
    return how(os.open('file', flags))
NB = fcntl.LOCK_NB
def record(kind, start, length, command=fcntl.F_SETLK):
    lock = struct.pack('hhqqi4x', kind, 0, start, length, 0)
    return lambda f: len(fcntl.fcntl(f, command, lock))
def holder(kind, start, length, command=fcntl.F_GETLK):
    lock = struct.pack('hhqqi4x', kind, 0, start, length, 0)
    def look(f):
        kind, whence, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(f, command, lock))
        return kind, start, length, {0: 'nobody', -1: 'a description', os.getppid(): 'the parent'}.get(pid, 'stranger')
    return look
";

#[test]
fn flock_between_processes() {
    on_twins(prepare, |twins| {
        let said = twins.python(&format!(
            "{ANOTHER}
shared = lambda f: fcntl.flock(f, fcntl.LOCK_SH | NB)
exclusive = lambda f: fcntl.flock(f, fcntl.LOCK_EX | NB)
# A lock on a file of the lower, opened only to be read, holds against one who opens the same file to write to it.
mine = os.open('file', os.O_RDONLY)
fcntl.flock(mine, fcntl.LOCK_SH)
ask('shared beside shared', fresh, shared)
ask('exclusive beside shared', fresh, exclusive)
with open('file', 'r+') as f:
    f.write('copied up')
ask('exclusive after copy-up', fresh, exclusive)
fcntl.flock(mine, fcntl.LOCK_EX)
ask('shared beside exclusive', fresh, shared)
ask('by the inherited descriptor', exclusive, mine)
os.rename('file', 'other'); os.rename('other', 'file')
ask('after two renames', fresh, shared)
os.close(mine)
ask('free', fresh, exclusive)
"
        ));
        assert!(said.contains("exclusive after copy-up EAGAIN"), "{said}");
        assert!(said.ends_with("free None\n"), "{said}");
    });
}

#[test]
fn record_locks_between_processes() {
    on_twins(prepare, |twins| {
        let said = twins.python(&format!(
            "{ANOTHER}
W, R, U = fcntl.F_WRLCK, fcntl.F_RDLCK, fcntl.F_UNLCK
mine = os.open('file', os.O_RDWR)
record(W, 10, 10)(mine)
ask('overlapping', fresh, record(R, 15, 1))
ask('beside', fresh, record(W, 20, 10))
ask('who', fresh, holder(W, 0, 0))
os.pwrite(mine, b'copied up', 0)
ask('after copy-up', fresh, record(W, 0, 100))
record(R, 12, 4)(mine)
ask('read in the middle', fresh, record(R, 13, 1))
ask('write in the middle', fresh, record(W, 13, 1))
ask('split', fresh, holder(W, 16, 0))
# Closing any descriptor of the file lets all of a process's record locks go.
os.close(os.open('file', os.O_RDONLY))
ask('all gone', fresh, record(W, 0, 0))
"
        ));
        assert!(said.contains("who (1, 10, 10, 'the parent')"), "{said}");
        assert!(said.ends_with("all gone 32\n"), "{said}");
    });
}

#[test]
fn locks_of_open_file_descriptions() {
    on_twins(prepare, |twins| {
        let said = twins.python(&format!(
            "{ANOTHER}
W, R, U = fcntl.F_WRLCK, fcntl.F_RDLCK, fcntl.F_UNLCK
OFD, LOOK = fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK
one, two = os.open('file', os.O_RDWR), os.open('file', os.O_RDWR)
record(W, 0, 10, OFD)(one)
tell('the same process, another description', record(W, 5, 1, OFD), two)
tell('a record lock of the same process', record(W, 5, 1), two)
ask('another process', fresh, record(W, 5, 1, OFD))
ask('who', fresh, holder(W, 0, 0, LOOK))
# Closing another descriptor of the file lets nothing go.
os.close(two)
ask('still', fresh, record(W, 5, 1, OFD))
ask('the child shares the description', record(R, 0, 10, OFD), one)
ask('now shared', fresh, record(R, 5, 1, OFD))
os.close(one)
ask('gone with the last descriptor', fresh, record(W, 0, 0, OFD))
"
        ));
        assert!(said.contains("still EAGAIN"), "{said}");
        assert!(said.contains("who (1, 0, 10, 'a description')"), "{said}");
    });
}

/// One who waits for a lock gets it when it is let go, and not before.
#[test]
fn a_waiting_locker_is_served() {
    on_twins(prepare, |twins| {
        let said = twins.python(
            "
for lock, how in [(fcntl.flock, fcntl.LOCK_EX), (fcntl.lockf, fcntl.LOCK_EX)]:
    f = os.open('file', os.O_RDWR)
    os.ftruncate(f, 0)
    lock(f, how)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        own = os.open('file', os.O_RDWR | os.O_APPEND)
        os.write(go, b'x')
        lock(own, how)
        os.write(own, b'second ')
        os._exit(0)
    os.read(ready, 1)
    time.sleep(0.05)
    os.pwrite(f, b'first ', 0)
    lock(f, fcntl.LOCK_UN)
    os.waitpid(pid, 0)
    print(os.pread(f, 100, 0))
",
        );
        assert_eq!(said, "b'first second '\n".repeat(2));
    });
}
