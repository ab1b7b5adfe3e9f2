//! The mount step: open `/dev/fuse`, attach it to a directory, know the mount by its id.
//!
//! Three ways, tried in this order: fsopen/fsmount/move_mount (the kernel is greeted before anybody sees the mount),
//! mount(2), and `fusermount3` for users who may do neither. The target is an open descriptor, so that a swapped path
//! between check and mount changes nothing. Nothing here unmounts by path what it has not identified by id.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};

use super::error::{Error, Result};
use super::mountinfo::{self, MountId, MountInfo, MountKey};

/// Type of our mounts in the mount table.
pub const FSTYPE: &[u8] = b"fuse.ovl";

const DEV_FUSE: &str = "/dev/fuse";

/// How the kernel is to treat the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// The first column of the mount table.
    pub source: OsString,
    pub read_only: bool,
    pub suid: bool,
    pub dev: bool,
    pub exec: bool,
    /// Record reading times (`relatime`); otherwise never.
    pub atime: bool,
    /// Users besides the mounting one may come in. The kernel then checks permissions for them.
    pub allow_other: bool,
}

impl Default for Flags {
    /// For root what containers need (set-id programs and device nodes work, everybody may come in); for others nothing
    /// that a file could gain rights by.
    fn default() -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            source: "ovl".into(),
            read_only: false,
            suid: root,
            dev: root,
            exec: true,
            atime: false,
            allow_other: root,
        }
    }
}

/// A mount just made, its kernel still to be greeted through `device`.
#[derive(Debug)]
pub struct Mounted {
    pub device: OwnedFd,
    pub mount: Mount,
}

#[derive(Debug)]
pub enum Mount {
    /// It lies nowhere yet, and goes when this is dropped.
    Free(OwnedFd),
    Lying(MountInfo),
}

/// An open mount point: the directory, and its parent and name to find what was mounted on it.
pub struct Target {
    dir: OwnedFd,
    path: PathBuf,
}

impl Target {
    /// Opens a mount point, which must be a directory that is no mount of ours already.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => Error::Missing {
                what: "mount point",
                path: path.to_owned(),
                hint: ": make the directory first",
            },
            Errno::NOTDIR => Error::NotDirectory {
                what: "mount point",
                path: path.to_owned(),
            },
            errno => Error::io("mount point", path, errno),
        })?;
        let fail = |e| Error::io("mount point", path, e);
        let real = mountinfo::path_of(&dir).map_err(fail)?;
        let mount = mountinfo::by_id(mountinfo::mount_of(&dir).map_err(fail)?).map_err(fail)?;
        if mount.is_some_and(|m| m.mount_point == real && mountinfo::is_ours(&m)) {
            return Err(Error::AlreadyMounted { path: real });
        }
        Ok(Self { dir, path: real })
    }

    /// Absolute, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leads to the directory itself, whatever its name is by now.
    pub(super) fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd())
    }

    pub(super) fn refused(&self, reason: impl Into<String>) -> Error {
        Error::Kernel {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

/// Mounts on `target`, or makes a mount that is to be placed there, by the first way that this process may go.
pub fn mount(target: &Target, flags: &Flags) -> Result<Mounted> {
    let device = match open_device() {
        Ok(device) => device,
        // Another user's fusermount3 may open what we may not.
        Err(Errno::ACCESS | Errno::PERM) => return by_fusermount(target, flags),
        Err(errno @ (Errno::NOENT | Errno::NODEV | Errno::NXIO)) => {
            let why = io::Error::from(errno);
            return Err(target.refused(format!(
                "{DEV_FUSE}: {why}: FUSE is not available (modprobe fuse, or pass the device in)"
            )));
        }
        Err(errno) => return Err(Error::io("opening", Path::new(DEV_FUSE), errno)),
    };
    match unattached(flags, device.as_fd()) {
        Ok(free) => {
            let mount = Mount::Free(free);
            return Ok(Mounted { device, mount });
        }
        Err(Errno::NOSYS | Errno::PERM) => {}
        Err(errno) => return Err(target.refused(io::Error::from(errno).to_string())),
    }
    let id = by_mount2(target, flags, device.as_fd()).and_then(|()| topmost(target));
    match id {
        Ok(id) => lying(target, device, id),
        Err(Errno::PERM) => {
            drop(device);
            by_fusermount(target, flags)
        }
        Err(errno) => Err(target.refused(io::Error::from(errno).to_string())),
    }
}

pub(super) fn open_device() -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::open(DEV_FUSE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

fn lying(target: &Target, device: OwnedFd, id: MountId) -> Result<Mounted> {
    let mount = Mount::Lying(identified(target, id)?);
    Ok(Mounted { device, mount })
}

fn identified(target: &Target, id: MountId) -> Result<MountInfo> {
    match mountinfo::by_id(id) {
        Ok(Some(info)) => Ok(info),
        // Without its device the mount will be dead, and nobody saw it alive.
        Ok(None) => Err(target.refused("the mount vanished at once")),
        Err(e) => Err(Error::io("reading", Path::new("/proc/self/mountinfo"), e)),
    }
}

/// Puts a mount whose kernel has been greeted on `target`: what `enter` finds in it, or, where that cannot be had, all of it.
/// `enter` gives EINVAL where it can only enter what lies somewhere: then it does for a moment at `aside`, which is not there
/// yet, in a directory that nobody else can look into. `TimedOut` is its last word. If this fails, nothing is mounted.
pub fn place(
    target: &Target,
    outer: OwnedFd,
    aside: &Path,
    enter: impl Fn(BorrowedFd<'_>) -> io::Result<OwnedFd>,
) -> Result<MountInfo> {
    let refused = |error: io::Error| target.refused(error.to_string());
    let whole = |error: io::Error, outer: io::Result<OwnedFd>| match error.kind() {
        io::ErrorKind::TimedOut => Err(error),
        _ => {
            tracing::debug!(%error, "mounted whole: the root's ACL is asked for each time");
            outer
        }
    };
    let entered = match enter(outer.as_fd()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            // What has lain somewhere cannot be put anywhere else once it is taken away; a copy can.
            let again = || enter(outer.as_fd()).or_else(|error| whole(error, copy(&outer)));
            while_at(aside, &outer, again)
        }
        Err(error) => whole(error, Ok(outer)),
        entered => entered,
    };
    let shown = entered.map_err(refused)?;
    let id = mountinfo::mount_of(&shown).map_err(refused)?;
    attach(&shown, target).map_err(|errno| refused(errno.into()))?;
    identified(target, id).inspect_err(|_| detach(&shown))
}

/// All that a mount shows, once more.
fn copy(mount: &OwnedFd) -> io::Result<OwnedFd> {
    use rustix::mount::OpenTreeFlags as Flags;
    let flags = Flags::OPEN_TREE_CLONE | Flags::OPEN_TREE_CLOEXEC | Flags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(mount, "", flags)?)
}

/// Calls `act` while `mount`, which lies nowhere, lies at `place`, a directory made for that.
pub(super) fn while_at<T>(
    place: &Path,
    mount: &OwnedFd,
    act: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    std::fs::create_dir(place)?;
    let done = Target::open(place)
        .map_err(io::Error::other)
        .and_then(|there| {
            attach(mount, &there)?;
            let done = act();
            detach(mount);
            done
        });
    let _ = std::fs::remove_dir(place);
    done
}

/// Takes a mount away from where it lies, by its descriptor.
fn detach(mount: &OwnedFd) {
    let link = format!("/proc/self/fd/{}", mount.as_raw_fd());
    if let Err(error) = rustix::mount::unmount(link, UnmountFlags::DETACH) {
        tracing::warn!(%error, "a mount that is of no use could not be taken away");
    }
}

/// What FUSE needs to be told, besides the descriptor.
fn fuse_parameters(flags: &Flags) -> Vec<(&'static str, Option<String>)> {
    let mut parameters = vec![
        ("rootmode", Some("40000".to_owned())),
        (
            "user_id",
            Some(rustix::process::geteuid().as_raw().to_string()),
        ),
        (
            "group_id",
            Some(rustix::process::getegid().as_raw().to_string()),
        ),
        // The engine does not judge permissions: the kernel must, whoever comes in.
        ("default_permissions", None),
    ];
    if flags.allow_other {
        parameters.push(("allow_other", None));
    }
    parameters
}

/// A mount that lies nowhere yet, which `device` is the other end of.
pub(super) fn unattached(
    flags: &Flags,
    device: BorrowedFd<'_>,
) -> std::result::Result<OwnedFd, Errno> {
    use rustix::mount as m;
    let context = m::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    m::fsconfig_set_string(&context, "source", &*flags.source)?;
    m::fsconfig_set_string(&context, "subtype", "ovl")?;
    m::fsconfig_set_string(&context, "fd", device.as_raw_fd().to_string())?;
    for (key, value) in fuse_parameters(flags) {
        match value {
            Some(value) => m::fsconfig_set_string(&context, key, value)?,
            None => m::fsconfig_set_flag(&context, key)?,
        }
    }
    if flags.read_only {
        m::fsconfig_set_flag(&context, "ro")?;
    }
    m::fsconfig_create(&context)?;
    m::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags))
}

pub(super) fn attributes(flags: &Flags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (set, attribute) in [
        (flags.read_only, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (!flags.suid, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (!flags.dev, MountAttrFlags::MOUNT_ATTR_NODEV),
        (!flags.exec, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (!flags.atime, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ] {
        attributes.set(attribute, set);
    }
    attributes
}

/// Puts a mount that lies nowhere on `target`.
pub(super) fn attach(mount: &OwnedFd, target: &Target) -> std::result::Result<(), Errno> {
    let both_empty =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", &target.dir, "", both_empty)
}

fn by_mount2(
    target: &Target,
    flags: &Flags,
    device: BorrowedFd<'_>,
) -> std::result::Result<(), Errno> {
    let mut data = format!("fd={}", device.as_raw_fd());
    for (key, value) in fuse_parameters(flags) {
        data.push(',');
        data.push_str(key);
        if let Some(value) = value {
            data.push('=');
            data.push_str(&value);
        }
    }
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        &*flags.source,
        target.link(),
        OsStr::from_bytes(FSTYPE),
        mount_flags(flags),
        &*data,
    )
}

/// [`attributes`] for mount(2).
pub(super) fn mount_flags(flags: &Flags) -> MountFlags {
    let mut mount_flags = MountFlags::empty();
    for (set, flag) in [
        (flags.read_only, MountFlags::RDONLY),
        (!flags.suid, MountFlags::NOSUID),
        (!flags.dev, MountFlags::NODEV),
        (!flags.exec, MountFlags::NOEXEC),
        (!flags.atime, MountFlags::NOATIME),
    ] {
        mount_flags.set(flag, set);
    }
    mount_flags
}

/// The mount that now lies on `target`, where the way taken did not tell its id.
fn topmost(target: &Target) -> std::result::Result<MountId, Errno> {
    let found = mountinfo::mounted_at(&target.path)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    match found {
        Some(mount) if mountinfo::is_ours(&mount) => Ok(mount.id),
        _ => Err(Errno::STALE),
    }
}

/// Lets the set-uid helper mount; it hands the open device over a socket whose number it finds in `_FUSE_COMMFD`.
fn by_fusermount(target: &Target, flags: &Flags) -> Result<Mounted> {
    let (ours, theirs) = UnixStream::pair()
        .map_err(|e| Error::io("making a socket for", Path::new("fusermount3"), e))?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
        .map_err(|e| Error::io("passing a socket to", Path::new("fusermount3"), e))?;
    let child = Command::new("fusermount3")
        .arg("-o")
        .arg(fusermount_options(flags))
        .arg("--")
        .arg(&target.path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    drop(theirs);
    let child = child.map_err(|e| {
        target.refused(format!(
            "not permitted here, and fusermount3 cannot be run: {e}"
        ))
    })?;
    let device = receive_descriptor(&ours);
    let output = child
        .wait_with_output()
        .map_err(|e| Error::io("waiting for", Path::new("fusermount3"), e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(target.refused(said.trim().replace('\n', "; ")));
    }
    let device = device
        .map_err(|e| target.refused(format!("fusermount3 handed over no descriptor: {e}")))?;
    let id = topmost(target).map_err(|e| target.refused(io::Error::from(e).to_string()))?;
    lying(target, device, id)
}

fn fusermount_options(flags: &Flags) -> OsString {
    let mut options = OsString::from("subtype=ovl,default_permissions,fsname=");
    // fusermount3 takes a backslash for an escape and a comma for the end.
    for byte in flags.source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push("\\");
        }
        options.push(OsStr::from_bytes(&[*byte]));
    }
    for (set, word) in [
        (flags.allow_other, ",allow_other"),
        (flags.read_only, ",ro"),
        (!flags.exec, ",noexec"),
        (!flags.atime, ",noatime"),
        (flags.suid, ",suid"),
        (flags.dev, ",dev"),
    ] {
        if set {
            options.push(word);
        }
    }
    options
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0_u8];
    let mut data = [io::IoSliceMut::new(&mut byte)];
    let received = recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("more than one descriptor came"));
    }
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
}

/// Takes the mount `key` means away, wherever it has been moved to. `Ok(false)`: it is gone already. EBUSY while it is in use
/// (unless `lazy`) or hidden below another mount.
pub fn unmount(key: &MountKey, lazy: bool) -> io::Result<bool> {
    let Some(mount) = key.find()? else {
        return Ok(false);
    };
    // A mount on top of ours would be hit in its place. (Nobody can pin a path, so a race of a few microseconds stays.)
    if mountinfo::mounted_at(&mount.mount_point)?.is_none_or(|top| top.id != key.id) {
        return Err(Errno::BUSY.into());
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    match rustix::mount::unmount(&mount.mount_point, flags) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => unmount_by_fusermount(&mount.mount_point, lazy).map(|()| true),
        Err(errno) => Err(errno.into()),
    }
}

fn unmount_by_fusermount(path: &Path, lazy: bool) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .args(if lazy { &["-u", "-z"][..] } else { &["-u"] })
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("busy") {
        return Err(Errno::BUSY.into());
    }
    Err(io::Error::other(said.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::sync::Arc;

    use super::*;
    use crate::fuse::{Config, Session};
    use crate::layer::DirLayer;
    use crate::overlay::{Options, Overlay, Stack};

    /// Ten look-ups by somebody who does not own the root.
    fn look_up(path: &Path) {
        let done = Command::new("sh")
            .args([
                "-c",
                "for i in 0 1 2 3 4 5 6 7 8 9; do [ -e \"$0\" ] || exit 1; done",
            ])
            .arg(path)
            .uid(4711)
            .gid(4711)
            .status()
            .unwrap();
        assert!(done.success(), "{}", path.display());
    }

    /// Since Linux 6.15 the merged root is found in a mount that lies nowhere, before that in one that lies somewhere
    /// (`refusals` 1); and where it cannot be entered, all is mounted as it is (2). Only then the kernel asks for the
    /// root's ACL each time.
    #[test]
    fn what_is_mounted_is_the_merged_root() {
        for (refusals, root, asks) in [(0, "/merged", false), (1, "/merged", false), (2, "/", true)]
        {
            let dir = tempfile::tempdir().unwrap();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            let [lower, at] = ["lower", "at"].map(|name| dir.path().join(name));
            std::fs::create_dir_all(lower.join("sub")).unwrap();
            std::fs::create_dir(&at).unwrap();
            std::fs::write(lower.join("sub/file"), "text").unwrap();
            let stack = Stack {
                lowers: vec![Arc::new(DirLayer::open(&lower).unwrap())],
                upper: None,
            };
            let engine = Arc::new(Overlay::new(stack, &Options::default()).unwrap());
            let target = Target::open(&at).unwrap();
            let flags = Flags {
                read_only: true,
                ..Flags::default()
            };
            let Mounted { device, mount } = mount(&target, &flags).unwrap();
            let Mount::Free(outer) = mount else {
                panic!("not by the new calls: {mount:?}");
            };
            let session = Session::start(engine, device, &Config::default()).unwrap();
            let left = Cell::new(refusals);
            let enter = |outer: BorrowedFd<'_>| {
                if left.get() > 0 {
                    left.set(left.get() - 1);
                    // Looked for in vain, as by a Linux before 6.15.
                    assert!(session.enter(outer).is_ok());
                    session.leave();
                    return Err(Errno::INVAL.into());
                }
                session.enter(outer)
            };
            let info = place(&target, outer, &dir.path().join("aside"), enter).unwrap();
            assert!(!dir.path().join("aside").exists());
            let counters = session.counters();
            let serving = std::thread::spawn(|| session.run());

            let file = at.join("sub/file");
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
            look_up(&file);
            let before = counters.requests();
            look_up(&file);
            assert_eq!(counters.requests() > before, asks, "{refusals}");
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let lines: Vec<Vec<&str>> = table
                .lines()
                .map(|line| line.split(' ').collect())
                .filter(|words: &Vec<&str>| Path::new(words[4]) == at)
                .collect();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert_eq!(lines[0][3], root);
            assert!(!at.join("merged").exists(), "{refusals}");

            assert!(unmount(&MountKey::of(&info), false).unwrap());
            serving.join().unwrap().unwrap();
        }
    }

    #[test]
    fn fusermount_words() {
        let mut flags = Flags {
            source: r"a,b\c".into(),
            read_only: false,
            suid: false,
            dev: false,
            exec: true,
            atime: false,
            allow_other: false,
        };
        assert_eq!(
            fusermount_options(&flags),
            r"subtype=ovl,default_permissions,fsname=a\,b\\c,noatime"
        );
        flags = Flags {
            source: "ovl".into(),
            read_only: true,
            suid: true,
            dev: true,
            exec: false,
            atime: true,
            allow_other: true,
        };
        assert_eq!(
            fusermount_options(&flags),
            "subtype=ovl,default_permissions,fsname=ovl,allow_other,ro,noexec,suid,dev"
        );
    }
}
