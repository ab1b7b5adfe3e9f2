//! For users who are not root: a user namespace in which they are, with the ids that /etc/subuid and /etc/subgid give
//! them, and a mount namespace in which they may mount.
//!
//! Entering is for a process with one thread, and final. Who is root already stays where it is. Mounts made inside are
//! seen by the processes inside only, and gone with the last of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::process::{Gid, Uid, WaitOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{Error, Result};
use crate::mount::Process;
use crate::sys::{self, Fork};

/// A range of ids that a user may give away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// Is this process in a user namespace other than the first?
pub fn inside() -> bool {
    // The first one maps all there are onto themselves.
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let fields: Vec<&str> = map.split_ascii_whitespace().collect();
        fields != ["0", "0", "4294967295"]
    })
}

/// Does a group of this number exist here?
pub fn has_group(gid: u32) -> bool {
    is_mapped("/proc/self/gid_map", gid)
}

/// Does a user of this number exist here?
pub fn has_user(uid: u32) -> bool {
    is_mapped("/proc/self/uid_map", uid)
}

/// Lines of user_namespaces(7): first id inside, first outside, how many.
fn is_mapped(map: &str, id: u32) -> bool {
    fs::read_to_string(map).is_ok_and(|map| {
        map.lines().any(|line| {
            let numbers: Vec<u32> = line
                .split_ascii_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect();
            matches!(numbers[..], [first, _, count] if id >= first && id - first < count)
        })
    })
}

/// May supplementary groups be set here?
pub fn may_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").is_ok_and(|word| word.trim() == "allow")
}

/// Makes this process root, in a user namespace if it is not already.
pub fn enter() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    make_namespace().map_err(|e| {
        Error::io(
            "making a user namespace (needs /proc/sys/user/max_user_namespaces above 0) as",
            Path::new(&user()),
            e,
        )
    })
}

/// Joins the user and mount namespaces of a living process that entered before.
pub fn join(process: &Process) -> Result<()> {
    join_some(
        process,
        &[LinkNameSpaceType::User, LinkNameSpaceType::Mount],
    )
}

/// Joins its user namespace only.
pub fn join_user(process: &Process) -> Result<()> {
    join_some(process, &[LinkNameSpaceType::User])
}

fn join_some(process: &Process, kinds: &[LinkNameSpaceType]) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let dir = format!("/proc/{}/ns", process.pid);
    let fail = |e: io::Error| Error::io("joining", Path::new(&dir), e);
    // All are opened first: once inside, /proc is another's.
    let mut files = Vec::new();
    for kind in kinds {
        let name = match kind {
            LinkNameSpaceType::Mount => "mnt",
            _ => "user",
        };
        files.push(File::open(format!("{dir}/{name}")).map_err(fail)?);
    }
    for (file, kind) in files.iter().zip(kinds) {
        move_into_link_name_space(file.as_fd(), Some(*kind)).map_err(|e| fail(e.into()))?;
    }
    become_root().map_err(fail)
}

fn user() -> String {
    rustix::process::getuid().as_raw().to_string()
}

/// A helper outside writes the mappings once we are inside.
fn make_namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let owner = name_of(uid.as_raw());
    let maps = [
        (
            "newuidmap",
            "uid_map",
            uid.as_raw(),
            own_ranges("/etc/subuid", uid.as_raw(), &owner),
        ),
        (
            "newgidmap",
            "gid_map",
            gid.as_raw(),
            own_ranges("/etc/subgid", uid.as_raw(), &owner),
        ),
    ];
    let pid = std::process::id();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let ((go, inside), (answer, done)) = (pipe()?, pipe()?);
    match sys::fork()? {
        Fork::Child => {
            drop((inside, answer));
            let mut word = [0];
            let mapped = match File::from(go).read(&mut word) {
                Ok(1) => write_maps(pid, &maps),
                // It could not enter.
                _ => Ok(()),
            };
            if let Err(error) = &mapped {
                let _ = File::from(done).write_all(error.to_string().as_bytes());
            }
            std::process::exit(i32::from(mapped.is_err()));
        }
        Fork::Parent { child } => {
            drop((go, done));
            let entered = sys::unshare_user_and_mounts();
            if entered.is_ok() {
                File::from(inside).write_all(b"x")?;
            } else {
                drop(inside);
            }
            let mut said = String::new();
            File::from(answer).read_to_string(&mut said)?;
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
            entered?;
            if !said.is_empty() {
                return Err(io::Error::other(said));
            }
        }
    }
    become_root()?;
    // What is mounted from now on is ours alone; what others mount still comes in.
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    Ok(())
}

fn become_root() -> io::Result<()> {
    if may_set_groups() {
        rustix::thread::set_thread_groups(&[])?;
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// By newuidmap and newgidmap, with ranges; without either just the one id, which the kernel lets everybody map.
fn write_maps(pid: u32, maps: &[(&str, &str, u32, Vec<Range>); 2]) -> io::Result<()> {
    let with_ranges = maps.iter().all(|(_, _, _, ranges)| !ranges.is_empty());
    if with_ranges {
        let outcome = maps
            .iter()
            .try_for_each(|(program, _, own, ranges)| run_mapper(program, pid, *own, ranges));
        match outcome {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    maps.iter().try_for_each(|(_, map, own, _)| {
        fs::write(format!("/proc/{pid}/{map}"), format!("0 {own} 1\n"))
    })
}

fn run_mapper(program: &str, pid: u32, own: u32, ranges: &[Range]) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args([pid, 0, own, 1].map(|number| number.to_string()));
    let mut next = 1;
    for range in ranges {
        command.args([next, range.first, range.count].map(|number| number.to_string()));
        // Beyond all numbers the mapper refuses.
        next = next.saturating_add(range.count);
    }
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{program}: {}", said.trim())))
}

/// The name of a user of this machine, by /etc/passwd.
fn name_of(uid: u32) -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    entry.unwrap_or_default()
}

fn own_ranges(path: &str, uid: u32, name: &str) -> Vec<Range> {
    ranges(&fs::read_to_string(path).unwrap_or_default(), uid, name)
}

/// Lines of subuid(5): `NAME:FIRST:COUNT`, where NAME may be a number.
fn ranges(text: &str, uid: u32, name: &str) -> Vec<Range> {
    let uid = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            if owner.is_empty() || (owner != name && owner != uid) {
                return None;
            }
            let range = Range {
                first: fields.next()?.parse().ok()?,
                count: fields.next()?.parse().ok()?,
            };
            (range.count > 0 && range.first.checked_add(range.count).is_some()).then_some(range)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_subuid() {
        let text =
            "other:1:2\nme:100000:65536\n1000:300000:10\n:5:5\nme:x:1\nme:7:0\nme:4294967295:2\n";
        let found: Vec<(u32, u32)> = ranges(text, 1000, "me")
            .into_iter()
            .map(|range| (range.first, range.count))
            .collect();
        assert_eq!(found, [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(ranges(text, 5, ""), []);
    }
}
