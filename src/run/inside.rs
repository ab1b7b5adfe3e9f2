//! What a container finds inside: mount points, working directory, its command. All of them are words of an image or of a
//! person about a root full of symlinks; each is resolved by descriptor before anything acts on it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::error::{Error, Result};
use super::rootfs::{Made, Make, Place, Rootfs, clean};

/// Mounted by the runtime whatever the image has there.
const ALWAYS_MOUNTED: [&str; 3] = ["/proc", "/dev", "/sys"];

/// Where a path leads.
#[derive(Debug)]
pub enum Target {
    /// To something of the root.
    Root(Place),
    /// Into something that will be mounted over the root, where only the runtime can look.
    Mounted(PathBuf),
}

impl Target {
    pub fn path(&self) -> &Path {
        match self {
            Self::Root(place) => &place.path,
            Self::Mounted(path) => path,
        }
    }
}

/// A root being made ready.
pub struct Inside<'a> {
    pub rootfs: &'a Rootfs,
    /// Destinations of mounts.
    mounted: Vec<PathBuf>,
    /// Mount points that were not there, in the order they were made.
    pub made: Vec<Made>,
}

impl<'a> Inside<'a> {
    /// Checks that what is always mounted has a directory of the root to be mounted on, and makes those that lack.
    pub fn new(rootfs: &'a Rootfs) -> Result<Self> {
        let mut inside = Self {
            rootfs,
            mounted: Vec::new(),
            made: Vec::new(),
        };
        for path in ALWAYS_MOUNTED {
            let found = rootfs.place(OsStr::new(path), Make::Nothing, &mut Vec::new())?;
            let fits = found.path == Path::new(path) && (found.object.is_none() || found.is_dir());
            if !fits {
                return Err(Error::Image(format!(
                    "{path} of the image is not a directory: a container cannot start"
                )));
            }
            rootfs.place(OsStr::new(path), Make::Directory, &mut inside.made)?;
            inside.mounted.push(path.into());
        }
        Ok(inside)
    }

    /// The root of a container that runs, with these mounts.
    pub fn of_running<'p>(rootfs: &'a Rootfs, mounts: impl Iterator<Item = &'p str>) -> Self {
        Self {
            rootfs,
            mounted: mounts.map(PathBuf::from).collect(),
            made: Vec::new(),
        }
    }

    fn is_mounted(&self, path: &Path) -> bool {
        self.mounted.iter().any(|mount| path.starts_with(mount))
    }

    /// Where `words` lead, without making anything. Below /proc nothing is what it seems: refused.
    fn look(&self, what: &str, words: &str) -> Result<Target> {
        let refuse_proc = |path: &Path| {
            if path.starts_with("/proc") && path != Path::new("/proc") {
                return Err(Error::Image(format!("{what} {words} leads into /proc")));
            }
            Ok(())
        };
        let spelled = clean(words);
        refuse_proc(&spelled)?;
        if self.is_mounted(&spelled) {
            return Ok(Target::Mounted(spelled));
        }
        let place = self
            .rootfs
            .place(OsStr::new(words), Make::Nothing, &mut Vec::new())?;
        refuse_proc(&place.path)?;
        Ok(if self.is_mounted(&place.path) {
            Target::Mounted(place.path)
        } else {
            Target::Root(place)
        })
    }

    /// Refuses what leads into /proc, where the runtime, looking from inside, could find a descriptor of its own
    /// (CVE-2024-21626). /proc itself is harmless.
    pub fn check_not_in_proc(&self, what: &str, words: &str) -> Result<()> {
        self.look(what, words).map(drop)
    }

    /// Refuses what leads into a mount, where it could become anything.
    pub fn check_in_root(&self, what: &str, words: &str) -> Result<()> {
        match self.look(what, words)? {
            Target::Root(_) => Ok(()),
            Target::Mounted(path) => Err(Error::Image(format!(
                "{what} {words} leads to {}",
                path.display()
            ))),
        }
    }

    /// A mount point, made if it is not there. Not for `/` and `/proc`.
    pub fn mount_point(&mut self, what: &str, words: &str, make: Make) -> Result<Target> {
        let mut target = self.look(what, words)?;
        if matches!(target.path().to_str(), Some("/" | "/proc")) {
            return Err(Error::Image(format!(
                "{what} {words} leads to {}, which nothing may be mounted over",
                target.path().display()
            )));
        }
        if let Target::Root(place) = &target
            && place.object.is_none()
        {
            // Of a path that has been looked at: what is made lies where it was said to lie.
            let path = place.path.clone();
            let made = self.rootfs.place(path.as_os_str(), make, &mut self.made)?;
            target = Target::Root(made);
        }
        if let Target::Root(place) = &target
            && place.is_dir() != (make == Make::Directory)
        {
            let (is, wants) = if place.is_dir() {
                ("a directory", "a file")
            } else {
                ("not a directory", "a directory")
            };
            return Err(Error::Usage(format!(
                "{what} {words} is {is} in the image, and {wants} is to be mounted there"
            )));
        }
        self.mounted.push(target.path().to_owned());
        Ok(target)
    }

    /// Has something been mounted at this very path already?
    pub fn has_mount_at(&self, words: &str) -> Result<bool> {
        let target = self.look("volume", words)?;
        Ok(self.mounted.iter().any(|mount| mount == target.path()))
    }

    /// The working directory, made for good if it is not there.
    pub fn working_directory(&self, words: &str) -> Result<String> {
        let what = "working directory";
        if !words.starts_with('/') {
            return Err(Error::Usage(format!("{what} {words} is not absolute")));
        }
        let target = self.look(what, words)?;
        if let Target::Root(place) = &target {
            let place = match &place.object {
                Some(_) => place,
                None => {
                    &self
                        .rootfs
                        .place(place.path.as_os_str(), Make::Directory, &mut Vec::new())?
                }
            };
            if !place.is_dir() {
                return Err(Error::NotExecutable(format!(
                    "{what} {words} is not a directory"
                )));
            }
        }
        text(target.path())
    }

    /// Finds out before the start whether there is such a command, as far as can be told from here.
    pub fn check_command(&self, command: &str, env: &[String], cwd: &str) -> Result<()> {
        let candidates: Vec<PathBuf> = if command.contains('/') {
            vec![Path::new(cwd).join(command)]
        } else {
            let path = env.iter().find_map(|word| word.strip_prefix("PATH="));
            path.unwrap_or_default()
                .split(':')
                .filter(|dir| !dir.is_empty())
                .map(|dir| Path::new(cwd).join(dir).join(command))
                .collect()
        };
        let mut unfit = None;
        for candidate in candidates {
            let Some(words) = candidate.to_str() else {
                return Ok(());
            };
            if self.is_mounted(&clean(words)) {
                return Ok(());
            }
            let Ok(place) =
                self.rootfs
                    .place(candidate.as_os_str(), Make::Nothing, &mut Vec::new())
            else {
                continue;
            };
            if self.is_mounted(&place.path) {
                return Ok(());
            }
            match &place.object {
                None => {}
                Some((_, stat))
                    if place.kind() == Some(FileType::RegularFile) && stat.st_mode & 0o111 != 0 =>
                {
                    return Ok(());
                }
                Some(_) => unfit = Some((candidate, place.is_dir())),
            }
        }
        Err(match unfit {
            Some((path, true)) => {
                Error::NotExecutable(format!("{} is a directory", path.display()))
            }
            Some((path, false)) => {
                Error::NotExecutable(format!("{} may not be executed", path.display()))
            }
            None if command.contains('/') => {
                Error::NoSuchCommand(format!("no {command} in the container"))
            }
            None => Error::NoSuchCommand(format!("no {command} in the container's PATH")),
        })
    }
}

/// A path for the runtime, whose configuration is text.
pub fn text(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(Error::Usage(format!(
            "{} is not UTF-8, which a runtime's configuration must be",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Image(tempfile::TempDir);

    impl Image {
        fn new() -> Self {
            let image = Self(tempfile::tempdir().expect("temporary directory"));
            for dir in ["proc", "dev", "sys", "bin", "srv/data"] {
                std::fs::create_dir_all(image.path(dir)).expect("mkdir");
            }
            std::fs::write(image.path("file"), "").expect("write");
            image
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn link(&self, target: &str, name: &str) {
            symlink(target, self.path(name)).expect("symlink");
        }

        fn open(&self) -> Rootfs {
            Rootfs::open(self.0.path()).expect("open")
        }

        fn with<T>(&self, act: impl FnOnce(&mut Inside<'_>) -> T) -> T {
            let rootfs = self.open();
            act(&mut Inside::new(&rootfs).expect("a root"))
        }
    }

    /// T28: a volume's path is resolved inside the root; one that leads to the root itself or into /proc is refused.
    #[test]
    fn t28_volumes_stay_inside() {
        let image = Image::new();
        image.link("../../../../srv", "up");
        image.link("/proc/1", "process");
        image.link("/", "slash");
        image.with(|inside| {
            for (words, leads) in [
                ("/up/data", "/srv/data"),
                ("/../../srv/new/../data", "/srv/data"),
                ("/up/new/deep", "/srv/new/deep"),
                ("/dev/extra", "/dev/extra"),
            ] {
                let target = inside.mount_point("volume", words, Make::Directory);
                assert_eq!(target.expect(words).path(), Path::new(leads), "{words}");
            }
            for words in [
                "/../../..",
                "/",
                "/slash",
                "/srv/..",
                "/process",
                "/process/x",
                "/proc",
                "/proc/sys",
                "/up/../proc/1",
                "/file",
                "/file/x",
            ] {
                let refused = inside.mount_point("volume", words, Make::Directory);
                assert!(refused.is_err(), "{words}: {refused:?}");
            }
        });
        assert!(image.path("srv/new/deep").is_dir());
        assert!(!image.path("dev/extra").exists() && !image.path("proc/sys").exists());
    }

    /// T29: a working directory that leads to an open descriptor is refused, and nothing made on its way.
    #[test]
    fn t29_working_directories_do_not_lead_out() {
        let image = Image::new();
        image.link("/proc/self/fd/7", "leak");
        image.link("self/fd", "proc/short");
        image.link("/srv", "ok");
        image.with(|inside| {
            for words in [
                "/proc/self/fd/7",
                "/proc/self/fd/7/../../..",
                "/leak",
                "/leak/..",
                "/proc/short/8",
                "/x/../proc/self",
                "//proc/./self/fd/7",
                "relative",
                "",
            ] {
                // Going back out of /proc by words alone is harmless, and so is /proc itself.
                let outcome = inside.working_directory(words);
                if let Ok(path) = outcome {
                    assert!(!path.starts_with("/proc/"), "{words} is {path}");
                }
            }
            for words in [
                "/proc/self/fd/7",
                "/leak",
                "/proc/short/8",
                "//proc/./self/fd/7",
            ] {
                assert!(inside.working_directory(words).is_err(), "{words}");
            }
            for (words, leads) in [
                ("/", "/"),
                ("/ok/new", "/srv/new"),
                ("/proc", "/proc"),
                ("/dev/shm", "/dev/shm"),
            ] {
                assert_eq!(inside.working_directory(words).expect(words), leads);
            }
            assert!(matches!(
                inside.working_directory("/file"),
                Err(Error::NotExecutable(_))
            ));
        });
        assert!(image.path("srv/new").is_dir());
        assert!(!image.path("proc/self").exists() && !image.path("dev/shm").exists());
    }

    /// T29: /proc, /dev and /sys that are symlinks are not followed.
    #[test]
    fn t29_roots_of_the_runtime_mounts_are_directories() {
        for (name, target) in [("proc", "/srv"), ("dev", "../.."), ("sys", "/file")] {
            let image = Image::new();
            std::fs::remove_dir(image.path(name)).expect("rmdir");
            image.link(target, name);
            let rootfs = image.open();
            assert!(Inside::new(&rootfs).is_err(), "{name}");
        }
        let image = Image::new();
        std::fs::remove_dir(image.path("sys")).expect("rmdir");
        let rootfs = image.open();
        let inside = Inside::new(&rootfs).expect("made");
        assert!(image.path("sys").is_dir());
        rootfs.unmake(inside.made);
        assert!(!image.path("sys").exists());
    }

    #[test]
    fn commands_are_looked_for() {
        use std::os::unix::fs::PermissionsExt;
        let image = Image::new();
        for (name, mode) in [("bin/tool", 0o755), ("bin/data", 0o644)] {
            std::fs::write(image.path(name), "").expect("write");
            std::fs::set_permissions(image.path(name), PermissionsExt::from_mode(mode))
                .expect("chmod");
        }
        image.link("/bin/tool", "srv/tool");
        let env = ["PATH=/nowhere:/srv:/bin".to_owned()];
        image.with(|inside| {
            for (command, code) in [
                ("tool", 0),
                ("/srv/tool", 0),
                ("./tool", 0),
                ("data", 126),
                ("/bin", 126),
                ("/file", 126),
                ("none", 127),
                ("/srv/none", 127),
                ("/proc/self/exe", 0),
            ] {
                let outcome = inside.check_command(command, &env, "/srv");
                let got = outcome.as_ref().err().map_or(0, Error::run_exit_code);
                assert_eq!(got, code, "{command}: {outcome:?}");
            }
            inside
                .mount_point("volume", "/srv", Make::Directory)
                .expect("a mount point");
            inside
                .check_command("/srv/none", &env, "/")
                .expect("who knows");
        });
    }
}
