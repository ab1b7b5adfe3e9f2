//! A mount in every setting of the transport.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ovl::fuse::{Config, IoMode, IoUring, ReadDirPlus};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::mount_support::Site;
use crate::{mode_support, uring_support};

/// Runs `check` on a mount of a site of its own in each of them; afterwards the mount must come down without force.
pub fn on_each_setting(check: impl Fn(&Site, &Path)) {
    let default = Config::default();
    let passthrough = match mode_support::PASSTHROUGH.is_here() {
        true => IoMode::Passthrough { required: true },
        // Once more what there is.
        false => IoMode::Cached,
    };
    let settings = [
        ("default", default.clone()),
        (
            "write-through",
            Config {
                writeback: false,
                ..default.clone()
            },
        ),
        (
            "open",
            Config {
                no_open: false,
                readdirplus: ReadDirPlus::Adaptive,
                ..default.clone()
            },
        ),
        (
            "open, write-through, nothing cached",
            Config {
                no_open: false,
                writeback: false,
                readdirplus: ReadDirPlus::Never,
                entry_ttl: std::time::Duration::ZERO,
                attr_ttl: std::time::Duration::ZERO,
                negative_ttl: std::time::Duration::ZERO,
                ..default.clone()
            },
        ),
        // Where the kernel has none, these are the first and the third once more.
        (
            "io_uring",
            Config {
                io_uring: IoUring::Auto,
                ..default.clone()
            },
        ),
        (
            "io_uring, open, write-through",
            Config {
                no_open: false,
                writeback: false,
                readdirplus: ReadDirPlus::Adaptive,
                io_uring: IoUring::Auto,
                ..default.clone()
            },
        ),
        (
            "passthrough",
            Config {
                io: passthrough,
                ..default.clone()
            },
        ),
        (
            "io_uring, passthrough, nothing cached",
            Config {
                io: passthrough,
                io_uring: IoUring::Auto,
                readdirplus: ReadDirPlus::Adaptive,
                entry_ttl: std::time::Duration::ZERO,
                attr_ttl: std::time::Duration::ZERO,
                negative_ttl: std::time::Duration::ZERO,
                ..default
            },
        ),
    ];
    uring_support::permit_io_uring();
    for (name, config) in settings {
        println!("setting: {name}");
        let site = Site::new();
        // Other users must be able to get here.
        fs::set_permissions(site.path("."), fs::Permissions::from_mode(0o755)).expect("chmod");
        let server = site.serve(config);
        check(&site, &site.path("mnt"));
        // A process that another test is just starting holds copies of our files until exec closes them.
        let mut done = rustix::mount::unmount(site.path("mnt"), UnmountFlags::empty());
        for _ in 0..50 {
            if done != Err(Errno::BUSY) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            done = rustix::mount::unmount(site.path("mnt"), UnmountFlags::empty());
        }
        done.expect("umount");
        server.join().expect("no panic").expect("a clean end");
    }
}
