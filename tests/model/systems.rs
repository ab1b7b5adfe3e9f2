//! The three systems under comparison and how each is mounted.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::mode_support::{KERNEL, Mode};
use crate::{Hands, under};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Ovl,
    Kernel,
    Nobody,
}

pub struct System {
    pub name: &'static str,
    base: PathBuf,
    /// Where operations go.
    pub root: PathBuf,
    pub by: By,
    /// How ovl serves it.
    mode: Mode,
    mounted: bool,
    /// Open files; closed before any unmount.
    pub hands: Hands,
}

fn run(command: &mut Command) {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

impl System {
    pub fn new(name: &'static str, base: &Path, by: By, mode: Mode) -> Self {
        let root = under(base, name, "root");
        std::fs::create_dir(&root).unwrap();
        if by != By::Nobody {
            std::fs::create_dir(under(base, name, "upper")).unwrap();
            std::fs::create_dir(under(base, name, "work")).unwrap();
        }
        if by != By::Nobody {
            // A fresh upper's root is of now; the plain copy's is the lower's.
            let like = std::fs::metadata(base.join("lower2"))
                .and_then(|m| m.modified())
                .unwrap();
            std::fs::File::open(under(base, name, "upper"))
                .and_then(|d| d.set_modified(like))
                .unwrap();
        }
        Self {
            name,
            base: base.to_path_buf(),
            root,
            by,
            mode,
            mounted: false,
            hands: Vec::new(),
        }
    }

    fn ovl(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ovl"));
        command.env("OVL_ROOT", under(&self.base, self.name, "store"));
        command.env("OVL_RUN", under(&self.base, self.name, "run"));
        command
    }

    /// Is it the kernel's overlayfs, whoever mounted it?
    pub fn is_kernels(&self) -> bool {
        self.by == By::Kernel || self.by == By::Ovl && self.mode == KERNEL
    }

    pub fn mount(&mut self) {
        let lowers = format!("{0}/lower2:{0}/lower1", self.base.display());
        let upper = under(&self.base, self.name, "upper");
        let work = under(&self.base, self.name, "work");
        match self.by {
            By::Nobody => return,
            By::Ovl => {
                let mut command = self.ovl();
                command
                    .arg("mount")
                    .args(self.mode.words)
                    .arg("--workdir")
                    .arg(&work)
                    .arg(&lowers)
                    .arg(&upper)
                    .arg(&self.root);
                run(&mut command);
            }
            By::Kernel => {
                let options = format!(
                    "lowerdir={lowers},upperdir={},workdir={},redirect_dir=on,index=on,xino=on",
                    upper.display(),
                    work.display()
                );
                let mut command = Command::new("mount");
                command
                    .args(["-t", "overlay", "overlay", "-o", &options])
                    .arg(&self.root);
                // The last mount's end may take a moment.
                let done = (0..100).any(|_| {
                    let done = command.output().expect("mount runs").status.success();
                    if !done {
                        std::thread::sleep(std::time::Duration::from_millis(100));
                    }
                    done
                });
                if !done {
                    run(&mut command);
                }
            }
        }
        self.mounted = true;
    }

    pub fn unmount(&mut self) {
        self.hands.clear();
        if !self.mounted {
            return;
        }
        match self.by {
            By::Ovl => run(self.ovl().arg("umount").arg(&self.root)),
            // A process that another thread is just starting holds copies of our files until exec closes them.
            _ => {
                let done = (0..50).any(|_| {
                    let done = Command::new("umount")
                        .arg(&self.root)
                        .output()
                        .unwrap()
                        .status
                        .success();
                    if !done {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    done
                });
                assert!(
                    done,
                    "umount {}: still busy after a second",
                    self.root.display()
                );
            }
        }
        self.mounted = false;
    }

    pub fn remount(&mut self, by: By) {
        self.unmount();
        self.by = by;
        self.mount();
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.mounted {
            self.hands.clear();
            let _ = Command::new("umount").arg("-l").arg(&self.root).status();
        }
    }
}
