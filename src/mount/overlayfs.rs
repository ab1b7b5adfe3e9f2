//! The kernel's overlayfs: its options, and making a mount of it.
//!
//! Layers are handed over as open descriptors, so that what was checked is what is mounted, and so that a layer need not
//! lie anywhere. Two ways, tried in this order: fsopen with `lowerdir+` (Linux 6.7), then mount(2), whose options
//! fit one page.
//!
//! Source: Documentation/filesystems/overlayfs.rst; fs/overlayfs/params.c for what excludes what.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags};

use super::kernel::{self, Flags, Target};
use super::mountinfo::{self, MountId};
use crate::overlay::{Marks, Options, Redirect};

/// Type of these mounts in the mount table.
pub const FSTYPE: &str = "overlay";

/// What is merged.
pub struct Layers<'a> {
    /// Topmost first.
    pub lowers: Vec<BorrowedFd<'a>>,
    pub upper: BorrowedFd<'a>,
    pub work: BorrowedFd<'a>,
}

/// An option, with its value if it takes one.
pub type Word = (&'static str, Option<&'static str>);

/// Options of overlayfs for a mount that the engine would make with `options`. `marks`: where the upper's marks are.
/// `index`: hard-linked files stay one inode. `far`: a lower is a FUSE mount, whose inode numbers are long.
pub fn words(options: &Options, marks: Marks, index: bool, far: bool) -> Vec<Word> {
    let on = |on| Some(if on { "on" } else { "off" });
    let redirect = match (marks, options.redirect) {
        // overlayfs trusts no redirect that a user could have made.
        (Marks::User, _) | (_, Redirect::Ignore) => "nofollow",
        (_, Redirect::Off) => "follow",
        (_, Redirect::Upper | Redirect::All) => "on",
    };
    let mut words = vec![
        ("redirect_dir", Some(redirect)),
        ("metacopy", on(options.metacopy)),
        ("index", on(index)),
        ("nfs_export", on(false)),
        ("xino", Some(if far { "on" } else { "auto" })),
    ];
    if marks == Marks::User {
        words.push(("userxattr", None));
    }
    if options.volatile {
        words.push(("volatile", None));
    }
    words
}

/// Mounts on `target`.
pub fn mount(
    target: &Target,
    flags: &Flags,
    layers: &Layers<'_>,
    words: &[Word],
) -> Result<MountId, Errno> {
    match told(flags, layers, words) {
        Ok(context) => by_new_api(target, flags, &context),
        // Only as long as nothing was tried: a volatile overlay that is refused leaves its mark, which the next would meet.
        Err(Errno::NOSYS | Errno::OPNOTSUPP) => by_mount2(target, flags, layers, words),
        Err(errno) => Err(errno),
    }
}

/// A context that has been told everything. EOPNOTSUPP where the kernel's overlayfs cannot take its layers one by one.
fn told(flags: &Flags, layers: &Layers<'_>, words: &[Word]) -> Result<OwnedFd, Errno> {
    use rustix::mount as m;
    let context = m::fsopen(FSTYPE, FsOpenFlags::FSOPEN_CLOEXEC)?;
    m::fsconfig_set_string(&context, "source", &*flags.source)?;
    for lower in &layers.lowers {
        hand_over(&context, "lowerdir+", *lower).map_err(|errno| match errno {
            Errno::INVAL => Errno::OPNOTSUPP,
            errno => errno,
        })?;
    }
    hand_over(&context, "upperdir", layers.upper)?;
    hand_over(&context, "workdir", layers.work)?;
    for (key, value) in words {
        match value {
            Some(value) => m::fsconfig_set_string(&context, *key, *value)?,
            None => m::fsconfig_set_flag(&context, *key)?,
        }
    }
    if flags.read_only {
        m::fsconfig_set_flag(&context, "ro")?;
    }
    Ok(context)
}

fn by_new_api(target: &Target, flags: &Flags, context: &OwnedFd) -> Result<MountId, Errno> {
    use rustix::mount as m;
    m::fsconfig_create(context)?;
    let mount = m::fsmount(
        context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        kernel::attributes(flags),
    )?;
    let id = mountinfo::mount_of(&mount).map_err(|_| Errno::NOSYS)?;
    kernel::attach(&mount, target)?;
    Ok(id)
}

/// As a descriptor, which Linux 6.13 takes, else by a name for it.
fn hand_over(context: &OwnedFd, key: &str, layer: BorrowedFd<'_>) -> Result<(), Errno> {
    match rustix::mount::fsconfig_set_fd(context, key, layer) {
        Err(Errno::INVAL) => rustix::mount::fsconfig_set_string(context, key, link(layer)),
        outcome => outcome,
    }
}

fn link(layer: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", layer.as_raw_fd())
}

fn by_mount2(
    target: &Target,
    flags: &Flags,
    layers: &Layers<'_>,
    words: &[Word],
) -> Result<MountId, Errno> {
    let lowers: Vec<String> = layers.lowers.iter().map(|fd| link(*fd)).collect();
    let mut data = format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        link(layers.upper),
        link(layers.work)
    );
    for (key, value) in words {
        data.push(',');
        data.push_str(key);
        if let Some(value) = value {
            data.push('=');
            data.push_str(value);
        }
    }
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    let mount_flags = kernel::mount_flags(flags);
    rustix::mount::mount(&*flags.source, target.link(), FSTYPE, mount_flags, &*data)?;
    // What lies there now is what was just put there, unless somebody else is as quick.
    mountinfo::mounted_at(target.path())
        .ok()
        .flatten()
        .filter(|mount| mount.fstype == FSTYPE)
        .map(|mount| mount.id)
        .ok_or(Errno::STALE)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn options_that_exclude_each_other_are_never_said_together() {
        let table = [
            (Marks::Trusted, Redirect::Upper, "on"),
            (Marks::Trusted, Redirect::All, "on"),
            (Marks::Trusted, Redirect::Off, "follow"),
            (Marks::Trusted, Redirect::Ignore, "nofollow"),
            (Marks::User, Redirect::Upper, "nofollow"),
        ];
        for (marks, redirect, said) in table {
            let options = Options {
                redirect,
                volatile: true,
                ..Options::default()
            };
            let words = words(&options, marks, true, true);
            let case = format!("{marks:?} {redirect:?}: {words:?}");
            assert!(words.contains(&("redirect_dir", Some(said))), "{case}");
            assert!(words.contains(&("volatile", None)), "{case}");
            let user = words.contains(&("userxattr", None));
            assert_eq!(user, marks == Marks::User, "{case}");
        }
    }

    /// What kernels before 6.7 are mounted by does the same on this one.
    #[test]
    fn both_ways_make_the_same_mount() {
        let temp = tempfile::tempdir().expect("temporary directory");
        for name in ["top", "low", "up", "work", "mnt"] {
            std::fs::create_dir(temp.path().join(name)).expect("mkdir");
        }
        std::fs::write(temp.path().join("top/both"), "top").expect("write");
        std::fs::write(temp.path().join("low/both"), "low").expect("write");
        let open = |name: &str| mountinfo::open_path(&temp.path().join(name)).expect("open");
        let (top, low, up, work) = (open("top"), open("low"), open("up"), open("work"));
        let layers = Layers {
            lowers: vec![top.as_fd(), low.as_fd()],
            upper: up.as_fd(),
            work: work.as_fd(),
        };
        let words = words(&Options::default(), Marks::Trusted, true, false);
        type Way = fn(&Target, &Flags, &Layers<'_>, &[Word]) -> std::result::Result<MountId, Errno>;
        let by_context: Way =
            |target, flags, layers, words| by_new_api(target, flags, &told(flags, layers, words)?);
        for way in [by_context, by_mount2] {
            let target = Target::open(&temp.path().join("mnt")).expect("target");
            let id = way(&target, &Flags::default(), &layers, &words).expect("mount");
            let seen = std::fs::read(temp.path().join("mnt/both")).expect("read");
            let mount = mountinfo::by_id(id).expect("mountinfo").expect("the mount");
            let key = mountinfo::MountKey::of(&mount);
            assert!(kernel::unmount(&key, true).expect("unmount"));
            assert_eq!(seen, b"top");
            assert_eq!(
                (&*mount.fstype, &*mount.source),
                (FSTYPE.as_ref(), "ovl".as_ref())
            );
        }
    }
}
