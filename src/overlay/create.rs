//! New names: create, mknod, mkdir, symlink, link.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::acl::{self, Inherited};
use super::copyup::Extent;
use super::engine::{OpenFile, Overlay, check_name};
use super::few::Few;
use super::node::{Node, State, UpperObject};
use super::resolve::UpperName;
use super::rules::Rules;
use super::{Caller, Entry, NodeId, Result, attrs};
use crate::layer::{LayerFile, Permissions, host, whiteout};
use crate::meta::{Attr, FileKind};

/// What is to be made.
enum Make<'a> {
    Node { kind: FileKind, rdev: u64 },
    Directory,
    Symlink(&'a OsStr),
}

impl Make<'_> {
    const fn kind(&self) -> FileKind {
        match self {
            Self::Node { kind, .. } => *kind,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
        }
    }

    /// Makes it, and opens it: a file for reading and writing, which mostly comes next.
    fn make(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        on_disk: FileKind,
        perm: u32,
    ) -> Result<OwnedFd> {
        let mode = Mode::from_raw_mode(perm & 0o1777);
        match self {
            Self::Node { .. } if on_disk == FileKind::Regular => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::RDWR
                    | OFlags::CLOEXEC
                    | OFlags::NOFOLLOW;
                return rustix::fs::openat(dir, name, flags, mode);
            }
            Self::Node { kind, rdev } => rustix::fs::mknodat(
                dir,
                name,
                FileType::from_raw_mode(kind.mode_bits()),
                mode,
                *rdev,
            ),
            Self::Directory => rustix::fs::mkdirat(dir, name, mode),
            Self::Symlink(target) => rustix::fs::symlinkat(*target, dir, name),
        }?;
        host::open_at(dir, name, OFlags::PATH | OFlags::NOFOLLOW).inspect_err(|_| {
            let _ = super::upper::remove_tree(dir, name);
        })
    }
}

/// Owner, group and mode a new object gets.
struct Birth {
    uid: u32,
    gid: u32,
    perm: u32,
}

impl Overlay {
    /// Makes any object but a directory or symlink. `mode` is the whole `st_mode`, `umask` the caller's, which a default
    /// ACL of the directory overrides. `rdev` as `dev_t`.
    pub fn mknod(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u64,
    ) -> Result<Entry> {
        let kind = FileKind::from_mode(mode).ok_or(Errno::INVAL)?;
        match kind {
            FileKind::Directory | FileKind::Symlink => return Err(Errno::INVAL),
            _ => {}
        }
        self.make(
            caller,
            parent,
            name,
            mode,
            umask,
            &Make::Node { kind, rdev },
        )
    }

    /// Makes a regular file; EEXIST if the name is there.
    pub fn create(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        self.make(
            caller,
            parent,
            name,
            mode,
            umask,
            &Make::Node {
                kind: FileKind::Regular,
                rdev: 0,
            },
        )
    }

    pub fn mkdir(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Entry> {
        self.make(caller, parent, name, mode, umask, &Make::Directory)
    }

    pub fn symlink(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Entry> {
        self.make(caller, parent, name, 0o777, 0, &Make::Symlink(target))
    }

    /// Checks that `name` is free in a live directory of the upper. The caller owns the namespace.
    pub(super) fn free_name(&self, dir: &Arc<Node>, name: &OsStr) -> Result<UpperName> {
        if dir.is_removed() {
            return Err(Errno::NOENT);
        }
        self.check_reserved(name)?;
        match self.upper_name(dir, name)? {
            UpperName::Present(_) => Err(Errno::EXIST),
            hidden @ (UpperName::Whiteout | UpperName::Marked) => Ok(hidden),
            UpperName::Absent if self.lowers_show(dir, name)? => Err(Errno::EXIST),
            UpperName::Absent => Ok(UpperName::Absent),
        }
    }

    fn make(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        what: &Make<'_>,
    ) -> Result<Entry> {
        check_name(name)?;
        let dir = self.table.get(parent)?;
        dir.dir()?;
        self.copy_up(&dir, Extent::All)?;
        let _names = dir.names_owned()?;
        let was = self.free_name(&dir, name)?;
        let fd = self.upper_dir(&dir)?;
        let rules = self.rules(&dir, fd.as_fd())?;
        let (birth, inherited) = self.birth(caller, &rules, what.kind(), (mode, umask))?;
        let over_whiteout = matches!(was, UpperName::Whiteout);
        let whole = !over_whiteout && self.is_born_whole(what, &birth, &inherited, &rules.above)?;
        let (made, stat) = if whole {
            let made = what.make(fd.as_fd(), name, self.kind_on_disk(what.kind()), birth.perm)?;
            match self.settle(made.as_fd(), what, &birth, &inherited) {
                Ok(stat) => (made, stat),
                Err(e) => {
                    let _ = super::upper::remove_tree(fd.as_fd(), name);
                    return Err(e);
                }
            }
        } else {
            self.make_in_work(fd.as_fd(), name, over_whiteout, what, &birth, &inherited)?
        };
        self.welcome(&dir, name, made, stat)
    }

    /// Makes a regular file without a name, as O_TMPFILE does; `parent` is where it belongs. [`Self::link`] gives it one.
    /// EOPNOTSUPP where the upper's file system has no such files.
    pub fn tmpfile(&self, caller: Caller, parent: NodeId, mode: u32, umask: u32) -> Result<Entry> {
        let dir = self.table.get(parent)?;
        dir.dir()?;
        self.copy_up(&dir, Extent::All)?;
        if dir.is_removed() {
            return Err(Errno::NOENT);
        }
        let fd = self.upper_dir(&dir)?;
        let rules = self.rules(&dir, fd.as_fd())?;
        let kind = FileKind::Regular;
        let (birth, inherited) = self.birth(caller, &rules, kind, (mode, umask))?;
        // Not in the directory itself, which need not be writable for this process.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let first = Mode::RUSR | Mode::WUSR;
        let made = rustix::fs::openat(self.writable()?.work(), c".", flags, first)?;
        let stat = self.settle(
            made.as_fd(),
            &Make::Node { kind, rdev: 0 },
            &birth,
            &inherited,
        )?;
        self.welcome_nameless(made, stat)
    }

    /// A new file of the upper without a name, which is open, becomes a node the kernel knows.
    fn welcome_nameless(&self, made: OwnedFd, stat: host::Stat) -> Result<Entry> {
        let made = Arc::new(made);
        let object = UpperObject {
            key: stat.key,
            pinned: Some(Arc::clone(&made)),
            index: None,
            data_below: false,
        };
        let state = || State {
            links: Few::None,
            upper: Some(Box::new(object)),
            lowers: Few::None,
        };
        let id = self.free_number(stat.key);
        let node = self.table.intern(id, FileKind::Regular, || (state(), None));
        let is_it = |upper: &UpperObject| upper.key == stat.key;
        if !node.state().upper.as_deref().is_some_and(is_it) {
            return Err(Errno::STALE);
        }
        let open = OpenFile {
            file: LayerFile::Fd(made),
            upper: true,
            writable: true,
        };
        self.files.insert(node.id.0, open);
        let mut attr = stat.attr;
        self.finish_attr(&node, &mut attr)?;
        self.table.remember(&node);
        Ok(Entry {
            node: node.id,
            attr,
        })
    }

    /// Owner, group, mode and ACLs of what a caller makes in a directory of these rules.
    fn birth(
        &self,
        caller: Caller,
        rules: &Rules,
        kind: FileKind,
        (mode, umask): (u32, u32),
    ) -> Result<(Birth, Inherited)> {
        let acl = rules.default_acl.as_deref();
        let inherited = acl::inherit(acl, kind, mode & 0o7777, umask)?;
        let caller = Caller {
            uid: self.ids.uid_on_disk(caller.uid)?,
            gid: self.ids.gid_on_disk(caller.gid)?,
            ..caller
        };
        let birth = birth(caller, &rules.above, kind, inherited.perm);
        Ok((birth, inherited))
    }

    /// Does the file system give a new object its owner, mode and ACLs by itself? What takes further steps must not be
    /// seen before they are done, nor found so after a crash: least of all a character device 0:0, which is a whiteout
    /// until it is marked.
    fn is_born_whole(
        &self,
        what: &Make<'_>,
        birth: &Birth,
        inherited: &Inherited,
        above: &Attr,
    ) -> Result<bool> {
        let (own_uid, own_gid) = self.writable()?.ids;
        let group_goes_down = above.perm & libc::S_ISGID != 0;
        let gid = if group_goes_down { above.gid } else { own_gid };
        let set_ids = if group_goes_down && what.kind().is_dir() {
            libc::S_ISGID
        } else {
            0
        };
        Ok(self.permissions == Permissions::Inode
            && !self.is_device_zero(what)
            && !inherited.has_acl()
            && birth.uid == own_uid
            && birth.gid == gid
            && birth.perm & (libc::S_ISUID | libc::S_ISGID) == set_ids)
    }

    /// Made in the workdir and put in place in one step.
    fn make_in_work(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        over_whiteout: bool,
        what: &Make<'_>,
        birth: &Birth,
        inherited: &Inherited,
    ) -> Result<(OwnedFd, host::Stat)> {
        let upper = self.writable()?;
        let temp = upper.temp_name();
        let made = (|| {
            let on_disk = self.kind_on_disk(what.kind());
            let fd = what.make(upper.work(), &temp, on_disk, birth.perm)?;
            let is_dir = what.kind().is_dir();
            if is_dir && over_whiteout {
                // What the whiteout hid must stay hidden.
                upper.make_opaque(fd.as_fd())?;
            }
            if self.is_device_zero(what) {
                mark_device(fd.as_fd())?;
            }
            self.settle(fd.as_fd(), what, birth, inherited)?;
            let how = match (over_whiteout, is_dir) {
                (true, true) => RenameFlags::EXCHANGE,
                (true, false) => RenameFlags::empty(),
                (false, _) => RenameFlags::NOREPLACE,
            };
            // A directory that moves is written to: its `..` changes.
            upper.permitted(fd.as_fd(), libc::S_IWUSR, || {
                rustix::fs::renameat_with(upper.work(), temp.as_os_str(), dir, name, how)
            })?;
            if is_dir && over_whiteout {
                // It is done: what is left over goes with the next mount.
                let _ = upper.remove_work(&temp);
            }
            // The rename was a change of the object too: its ctime is what the kernel keeps for ever.
            let stat = self.stat(fd.as_fd())?;
            Ok((fd, stat))
        })();
        if made.is_err() {
            let _ = upper.remove_work(&temp);
        }
        made
    }

    /// A new object of the upper, which is open, becomes a node the kernel knows. The caller owns the namespace.
    fn welcome(
        &self,
        dir: &Arc<Node>,
        name: &OsStr,
        made: OwnedFd,
        stat: host::Stat,
    ) -> Result<Entry> {
        let id = self.lowers.host_ino(stat.key);
        let (kind, on_disk) = (stat.attr.kind, self.kind_on_disk(stat.attr.kind));
        self.list_add(dir, name, id, kind);
        let found = super::resolve::Found {
            id,
            kind,
            upper: Some((stat, None)),
            name_in_upper: true,
            data_below: false,
            impure: Some(false),
            lowers: Few::None,
            lower_path: None,
            lower_attr: None,
        };
        let (node, attr) = self.intern(dir, name, found)?;
        let made = Arc::new(made);
        if kind == FileKind::Directory {
            self.dirs.insert(node.id.0, made);
            self.list_nothing(&node)?;
        } else if kind == FileKind::Regular && on_disk == FileKind::Regular {
            let open = OpenFile {
                file: LayerFile::Fd(made),
                upper: true,
                writable: true,
            };
            self.files.insert(node.id.0, open);
        }
        self.table.remember(&node);
        Ok(Entry {
            node: node.id,
            attr,
        })
    }

    /// A second name for a file.
    pub fn link(&self, node: NodeId, parent: NodeId, name: &OsStr) -> Result<Entry> {
        check_name(name)?;
        let node = self.table.get(node)?;
        if node.is_dir() {
            return Err(Errno::PERM);
        }
        let dir = self.table.get(parent)?;
        dir.dir()?;
        self.copy_up(&dir, Extent::All)?;
        self.copy_up(&node, Extent::Metadata)?;
        if self.data_by_name(&node)? {
            self.copy_up(&node, Extent::All)?;
        }
        let _names = dir.names_owned()?;
        let was = self.free_name(&dir, name)?;
        let upper = self.writable()?;
        let fd = self.upper_dir(&dir)?;
        let (source, stat) = self.upper_object(&node, OFlags::PATH | OFlags::NOFOLLOW)?;
        if node.id != self.lowers.host_ino(stat.key) {
            self.mark_impure(&dir)?;
        }
        if node
            .state()
            .upper
            .as_ref()
            .is_some_and(|u| u.index.is_some())
        {
            self.base_nlink_on_upper(&node)?;
        }
        let link = |to: BorrowedFd<'_>, as_name: &OsStr| {
            rustix::fs::linkat(
                rustix::fs::CWD,
                host::proc_path(source.as_fd()),
                to,
                as_name,
                AtFlags::SYMLINK_FOLLOW,
            )
        };
        if matches!(was, UpperName::Whiteout) {
            let temp = upper.temp_name();
            link(upper.work(), &temp)?;
            if let Err(e) = rustix::fs::renameat(upper.work(), temp.as_os_str(), &*fd, name) {
                upper.remove_work(&temp)?;
                return Err(e);
            }
        } else {
            link(fd.as_fd(), name)?;
        }
        self.list_add(&dir, name, node.id, node.kind);
        // The kernel holds the inode over link, unlink and rename: nobody takes its last name meanwhile.
        let had_none = node.is_removed();
        node.add_link(&dir, name, true);
        if had_none && let Some(upper) = &mut node.state_mut().upper {
            // From now on it is found by this name.
            upper.pinned = None;
        }
        self.table.remember(&node);
        Ok(Entry {
            node: node.id,
            attr: self.attr_of(&node)?,
        })
    }

    /// Would it be a whiteout on disk?
    fn is_device_zero(&self, what: &Make<'_>) -> bool {
        self.kind_on_disk(what.kind()) == FileKind::CharDevice
            && matches!(what, Make::Node { rdev: 0, .. })
    }

    /// Gives a just-made object its owner, mode and ACLs where the file system did not already.
    fn settle(
        &self,
        fd: BorrowedFd<'_>,
        what: &Make<'_>,
        birth: &Birth,
        inherited: &Inherited,
    ) -> Result<host::Stat> {
        let stat = host::stat_fd(fd)?;
        if self.permissions != Permissions::Inode {
            let mut attr = stat.attr;
            (attr.uid, attr.gid, attr.perm, attr.kind) =
                (birth.uid, birth.gid, birth.perm, what.kind());
            if let Make::Node { rdev, .. } = what {
                attr.rdev = *rdev;
            }
            inherited.apply(fd)?;
            self.keep(fd, &attr)?;
            return self.stat(fd);
        }
        let uid = (stat.attr.uid != birth.uid).then_some(birth.uid);
        let gid = (stat.attr.gid != birth.gid).then_some(birth.gid);
        attrs::set_owner(fd, uid, gid)?;
        let mut changed = uid.is_some() || gid.is_some();
        if what.kind() != FileKind::Symlink {
            changed |= inherited.apply(fd)?;
            // chown clears set-id bits, the process's umask others.
            if changed || stat.attr.perm != birth.perm {
                attrs::set_perm(fd, birth.perm)?;
                changed = true;
            }
        }
        if changed { host::stat_fd(fd) } else { Ok(stat) }
    }

    /// A directory of the caller's making stands in the workdir: empty, opaque, and otherwise like `like`.
    pub(super) fn make_empty_twin(&self, like: BorrowedFd<'_>) -> Result<OsString> {
        let upper = self.writable()?;
        let temp = upper.temp_name();
        rustix::fs::mkdirat(upper.work(), temp.as_os_str(), Mode::RWXU)?;
        let fd = host::open_at(upper.work(), &temp, OFlags::PATH | OFlags::DIRECTORY)?;
        let attr = self.stat(like)?.attr;
        // Not by an AUFS mark, which would be something in it.
        upper.mark(fd.as_fd(), "opaque", b"y")?;
        self.keep(fd.as_fd(), &attr)?;
        Ok(temp)
    }
}

impl Overlay {
    /// Makes, in the workdir, a character device 0:0 that is no whiteout. EINVAL where it cannot be told from one.
    pub(super) fn make_device(&self) -> Result<OsString> {
        let upper = self.writable()?;
        let temp = upper.temp_name();
        let mode = Mode::empty();
        rustix::fs::mknodat(upper.work(), &temp, FileType::CharacterDevice, mode, 0)
            .map_err(|_| Errno::INVAL)?;
        let marked = host::open_at(upper.work(), &temp, OFlags::PATH | OFlags::NOFOLLOW)
            .and_then(|fd| mark_device(fd.as_fd()));
        if marked.is_err() {
            let _ = upper.remove_work(&temp);
            return Err(Errno::INVAL);
        }
        Ok(temp)
    }
}

/// Tells a user's character device 0:0 from a whiteout. Only `trusted.*` can be set on devices: without the privilege
/// for it such a device cannot be made.
pub(super) fn mark_device(fd: BorrowedFd<'_>) -> Result<()> {
    host::set_xattr_fd(
        fd,
        OsStr::new(whiteout::DEVICE_XATTR),
        b"y",
        XattrFlags::empty(),
    )
    .map_err(|_| Errno::PERM)
}

/// POSIX and System V rules: the group of a set-group-ID directory is inherited, and by subdirectories the bit too.
fn birth(caller: Caller, above: &Attr, kind: FileKind, perm: u32) -> Birth {
    let inherits = above.perm & libc::S_ISGID != 0;
    Birth {
        uid: caller.uid,
        gid: if inherits { above.gid } else { caller.gid },
        perm: if inherits && kind.is_dir() {
            perm | libc::S_ISGID
        } else {
            perm
        },
    }
}
