//! What the `-o` words mean for a mount.

use super::options::{IdRange, Io, Options, RedirectDir, Switch, XattrPermissions};
use super::{Lower, MountSpec, UpperSpec};
use crate::fuse::{IoMode, IoUring};
use crate::layer::Permissions;
use crate::overlay::{self, IdMap, Redirect, Xattrs};

fn ranges(words: &[IdRange]) -> Vec<overlay::IdRange> {
    let range = |r: &IdRange| overlay::IdRange {
        inside: r.inside,
        outside: r.outside,
        len: r.len,
    };
    words.iter().map(range).collect()
}

impl From<Io> for IoMode {
    fn from(word: Io) -> Self {
        match word {
            Io::Cached => Self::Cached,
            Io::Passthrough => Self::Passthrough { required: true },
            Io::Auto => Self::Auto,
        }
    }
}

impl Options {
    /// Changes `spec` as the words say; what they leave unsaid stays. `ro` makes the mount read-only, which
    /// an upper may still be shown in.
    ///
    /// `index=off` and `xino=off` change nothing: hard links and inode numbers stay right.
    pub fn apply(&self, spec: &mut MountSpec) {
        if !self.lowers.is_empty() {
            spec.lowers = self.lowers.iter().cloned().map(Lower::Dir).collect();
        }
        if let Some(upper) = &self.upper {
            spec.upper = Some(UpperSpec {
                upper: upper.clone(),
                work: None,
                create: false,
            });
        }
        if let (Some(work), Some(upper)) = (&self.work, &mut spec.upper) {
            upper.work = Some(work.clone());
        }

        let engine = &mut spec.overlay;
        engine.volatile |= self.volatile;
        engine.no_fsync |= self.no_fsync;
        engine.metacopy = self.metacopy.unwrap_or(engine.metacopy);
        engine.ino32 |= self.ino32;
        engine.static_nlink |= self.static_nlink;
        if self.noxattrs {
            engine.xattrs = Xattrs::Nothing;
        } else if self.noacl {
            engine.xattrs = Xattrs::NoAcl;
        }
        spec.fuse.acl &= engine.xattrs == Xattrs::All;
        if self.userxattr {
            engine.userxattr = Some(true);
        }
        if let Some(word) = self.redirect_dir {
            engine.redirect = match word {
                RedirectDir::On | RedirectDir::Follow => Redirect::All,
                RedirectDir::Off => Redirect::Off,
                RedirectDir::NoFollow => Redirect::Ignore,
            };
        }
        engine.permissions = match self.xattr_permissions {
            XattrPermissions::Off => Permissions::Inode,
            XattrPermissions::Security => Permissions::SecurityXattr,
            XattrPermissions::User => Permissions::UserXattr,
        };
        let root = self.squash_to_root.then_some(0);
        engine.ids = IdMap {
            uids: ranges(&self.uid_mapping),
            gids: ranges(&self.gid_mapping),
            squash_uid: self.squash_to_uid.or(root),
            squash_gid: self.squash_to_gid.or(root),
        };

        if let Some(timeout) = self.timeout {
            spec.fuse.entry_ttl = timeout;
            spec.fuse.attr_ttl = timeout;
            spec.fuse.negative_ttl = timeout;
        }
        if let Some(writeback) = self.writeback {
            spec.fuse.writeback = writeback;
        }
        if let Some(word) = self.io_uring {
            spec.fuse.io_uring = match word {
                Switch::On => IoUring::On,
                Switch::Off => IoUring::Off,
                Switch::Auto => IoUring::Auto,
            };
        }
        if let Some(word) = self.io {
            spec.fuse.io = word.into();
        }
        spec.merge = self.merge.unwrap_or(spec.merge);

        let flags = &mut spec.flags;
        if let Some(name) = &self.fsname {
            flags.source.clone_from(name);
        }
        flags.read_only |= self.read_only;
        for (word, flag) in [
            (self.suid, &mut flags.suid),
            (self.dev, &mut flags.dev),
            (self.exec, &mut flags.exec),
            (self.atime, &mut flags.atime),
            (self.allow_other, &mut flags.allow_other),
        ] {
            *flag = word.unwrap_or(*flag);
        }
    }
}
