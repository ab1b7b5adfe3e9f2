//! From an image and words to a bundle: the mounts, the files the container is given, `config.json`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::inside::{Inside, Target, text};
use super::record::{Container, Containers};
use super::request::Request;
use super::rootfs::{Made, Make, Rootfs, private_dir};
use super::runtime::Runtime;
use super::spec::{Bind, Net, Spec};
use super::volume::{Access, Volume};
use super::{user, userns};
use crate::mount::{self, Flags, Lower, Merge, MountSpec, UpperSpec};
use crate::{fuse, overlay};

/// A bundle ready to be run, and what to take away again.
pub struct Bundle {
    pub dir: PathBuf,
    pub made: Vec<Made>,
}

impl Bundle {
    pub fn config(dir: &Path) -> PathBuf {
        dir.join("config.json")
    }

    pub fn rootfs(dir: &Path) -> PathBuf {
        dir.join("rootfs")
    }
}

/// What every mount of a container has in common.
fn mount_spec(
    containers: &Containers,
    request: &Request,
    lower: Lower,
    upper: &Path,
    on: &Path,
) -> MountSpec {
    let name = upper.file_name().unwrap_or_default().to_string_lossy();
    MountSpec {
        lowers: vec![lower],
        upper: Some(UpperSpec {
            upper: upper.to_owned(),
            work: Some(upper.with_file_name(format!("{name}.work"))),
            create: true,
        }),
        mount_point: on.to_owned(),
        store_root: request.store_root.clone(),
        resolve_image: request.resolve_image,
        run_dir: containers.run_dir().clone(),
        flags: Flags {
            // A device node of an image, or one made in the container, opens no device.
            dev: false,
            ..Flags::default()
        },
        merge: request.merge,
        fuse: fuse::Config::from_environment(),
        overlay: overlay::Options {
            // Nobody will look at it after a crash, nor after its end.
            volatile: request.remove,
            no_fsync: request.remove,
            ..overlay::Options::default()
        },
        foreground: false,
        log_file: None,
    }
}

/// Mounts the image's root. The mount must be of the image whose configuration was read.
pub fn mount_root(containers: &Containers, request: &Request, id: &str) -> Result<mount::Record> {
    let dir = containers.bundle(id);
    private_dir(&dir)?;
    let rootfs = Bundle::rootfs(&dir);
    private_dir(&rootfs)?;
    let upper = containers.dir(id).join("upper");
    let lower = Lower::Image(request.image.clone());
    let record = mounted(&mount_spec(containers, request, lower, &upper, &rootfs))?;
    let manifest = request.manifest.to_string();
    let same = record.lowers.iter().all(
        |lower| matches!(lower, mount::RecordedLower::Image { manifest: found, .. } if *found == manifest),
    );
    if !same {
        return Err(Error::Conflict(format!(
            "{} became the name of another image just now; try again",
            request.image
        )));
    }
    Ok(record)
}

fn mounted(spec: &MountSpec) -> Result<mount::Record> {
    let mut made = None;
    mount::run(spec, |record| made = Some(record.clone()))?;
    made.ok_or_else(|| {
        Error::io(
            "mounting on",
            &spec.mount_point,
            io::Error::other("no record of the mount"),
        )
    })
}

/// A bundle being made.
struct Setup<'a> {
    containers: &'a Containers,
    request: &'a Request,
    container: &'a mut Container,
    dir: PathBuf,
    binds: Vec<Bind>,
    overlays: usize,
}

/// Fills the bundle of a container whose root is mounted.
pub fn bundle(
    containers: &Containers,
    request: &Request,
    container: &mut Container,
    runtime: &Runtime,
) -> Result<Bundle> {
    let dir = containers.bundle(&container.id);
    let rootfs = Rootfs::open(&Bundle::rootfs(&dir))?;
    let mut inside = Inside::new(&rootfs)?;
    let mut setup = Setup {
        containers,
        request,
        container,
        dir: dir.clone(),
        binds: Vec::new(),
        overlays: 0,
    };
    let outcome = setup.fill(&mut inside, runtime);
    let made = inside.made;
    if let Err(error) = outcome {
        rootfs.unmake(made);
        return Err(error);
    }
    Ok(Bundle { dir, made })
}

impl Setup<'_> {
    fn fill(&mut self, inside: &mut Inside<'_>, runtime: &Runtime) -> Result<()> {
        let request = self.request;
        let config = &request.config;
        let word = request.user.as_deref().or(config.user.as_deref());
        user::check_files(inside)?;
        let mut user = user::look_up(inside.rootfs, word.unwrap_or_default())?;
        if !userns::has_user(user.uid) || !userns::has_group(user.gid) {
            return Err(Error::Image(format!(
                "user {}:{} does not exist here: give yours a range of ids in /etc/subuid and /etc/subgid, and install uidmap",
                user.uid, user.gid
            )));
        }
        if !userns::may_set_groups() {
            user.groups.clear();
        }
        let hostname = self.hostname();
        self.volumes(inside)?;
        self.image_volumes(inside)?;
        self.network_files(inside, &hostname)?;

        let mut defaults = vec![
            format!("HOME={}", user.home),
            format!("HOSTNAME={hostname}"),
        ];
        if request.tty {
            defaults.push("TERM=xterm".into());
        }
        let env = config.environment(&defaults, &request.env)?;
        let asked = request.workdir.as_deref().or(config.working_dir.as_deref());
        let cwd = inside.working_directory(asked.filter(|dir| !dir.is_empty()).unwrap_or("/"))?;
        if let Some(command) = self.container.command.first() {
            inside.check_command(command, &env, &cwd)?;
        }
        let spec = Spec {
            id: &self.container.id,
            rootfs: &Bundle::rootfs(&self.dir),
            hostname: &hostname,
            args: &self.container.command,
            env: &env,
            cwd: &cwd,
            user: &user,
            tty: request.tty,
            read_only: request.read_only,
            net: request.net,
            binds: &self.binds,
            stop_signal: config.stop_signal.as_deref(),
            cgroups: runtime.has_cgroups(),
            in_user_namespace: userns::inside(),
            tty_group: userns::has_group(5),
        };
        let text = serde_json::to_vec_pretty(&spec.to_json())
            .map_err(|e| Error::io("writing", &self.dir, io::Error::from(e)))?;
        self.write("config.json", &text).map(drop)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::write(&path, bytes).map_err(|e| Error::io("writing", &path, e))?;
        Ok(path)
    }

    /// On the host's network a program that asks for its own name must find it.
    fn hostname(&self) -> String {
        if self.request.net == Net::Host
            && let Ok(name) = fs::read_to_string("/proc/sys/kernel/hostname")
        {
            return name.trim().to_owned();
        }
        self.container.id.clone()
    }

    fn bind(&mut self, source: &Path, target: &Target, read_only: bool) -> Result<()> {
        self.binds.push(Bind {
            source: text(source)?,
            destination: text(target.path())?,
            read_only,
        });
        Ok(())
    }

    /// What `-v` asks for, those inside others after them.
    fn volumes(&mut self, inside: &mut Inside<'_>) -> Result<()> {
        let mut volumes: Vec<&Volume> = self.request.volumes.iter().collect();
        volumes.sort_by_key(|volume| {
            super::rootfs::clean(&volume.destination)
                .components()
                .count()
        });
        for volume in volumes {
            let source = fs::canonicalize(&volume.source)
                .map_err(|e| Error::io("looking for -v", &volume.source, e))?;
            let is_dir = source.is_dir();
            if inside.has_mount_at(&volume.destination)? {
                return Err(Error::Usage(format!(
                    "-v: two volumes for {}",
                    volume.destination
                )));
            }
            let make = if is_dir { Make::Directory } else { Make::File };
            let target = inside.mount_point("-v", &volume.destination, make)?;
            let source = match volume.access {
                Access::Overlay if !is_dir => {
                    return Err(Error::Usage(format!(
                        "-v {}: only directories can be overlaid",
                        volume.source.display()
                    )));
                }
                Access::Overlay => self.overlay(&source, self.request.keep)?,
                _ => source,
            };
            self.bind(&source, &target, volume.access == Access::Read)?;
        }
        Ok(())
    }

    /// The image's VOLUMEs: directories of the container's own, beginning as what the image has there, kept out of its
    /// changes.
    fn image_volumes(&mut self, inside: &mut Inside<'_>) -> Result<()> {
        let mut paths: Vec<&String> = self
            .request
            .config
            .volumes
            .iter()
            .flat_map(|v| v.keys())
            .collect();
        paths.sort_by_key(|path| super::rootfs::clean(path).components().count());
        for path in paths {
            if inside.has_mount_at(path)? {
                continue;
            }
            let target = inside.mount_point("VOLUME", path, Make::Directory)?;
            let Target::Root(place) = &target else {
                continue;
            };
            let host_path = match place.path.strip_prefix("/") {
                Ok(below) => inside.rootfs.host_path().join(below),
                Err(_) => continue,
            };
            let source = self.overlay(&host_path, false)?;
            self.bind(&source, &target, false)?;
        }
        Ok(())
    }

    /// A mount over a directory, with an upper of its own; where it is mounted.
    fn overlay(&mut self, lower: &Path, keep: bool) -> Result<PathBuf> {
        let number = self.overlays;
        self.overlays += 1;
        let id = &self.container.id;
        let upper = if keep {
            let kept = self.containers.kept(id, number)?;
            self.container.kept.push(mount::EscapedPath(kept.clone()));
            kept
        } else {
            let volumes = self.containers.dir(id).join("volumes");
            private_dir(&volumes)?;
            volumes.join(number.to_string())
        };
        let on = self.dir.join(format!("volume-{number}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&on)
            .map_err(|e| Error::io("making", &on, e))?;
        let mut spec = mount_spec(
            self.containers,
            self.request,
            Lower::Dir(lower.to_owned()),
            &upper,
            &on,
        );
        // The kernel stacks overlays two deep only.
        if spec.merge == Merge::Kernel {
            spec.merge = Merge::Auto;
        }
        spec.overlay.volatile &= !keep;
        spec.overlay.no_fsync &= !keep;
        mounted(&spec)?;
        Ok(on)
    }

    /// /etc/hosts, /etc/hostname and /etc/resolv.conf.
    fn network_files(&mut self, inside: &mut Inside<'_>, hostname: &str) -> Result<()> {
        let host = |path: &str| match self.request.net {
            Net::Host => fs::read(path).ok(),
            Net::None => None,
        };
        let hosts = host("/etc/hosts").unwrap_or_else(|| {
            format!("127.0.0.1 localhost {hostname}\n::1 localhost\n").into_bytes()
        });
        for (name, path, bytes) in [
            ("hosts", "/etc/hosts", hosts),
            (
                "hostname",
                "/etc/hostname",
                format!("{hostname}\n").into_bytes(),
            ),
            (
                "resolv.conf",
                "/etc/resolv.conf",
                host("/etc/resolv.conf").unwrap_or_default(),
            ),
        ] {
            // An image that has something else there, or whose symlink leads astray, does without.
            if inside.has_mount_at(path).unwrap_or(true) {
                continue;
            }
            match inside.mount_point("the file", path, Make::File) {
                Ok(target) => {
                    let source = self.write(name, &bytes)?;
                    self.bind(&source, &target, false)?;
                }
                Err(error) => tracing::debug!(%error, "the image keeps its own"),
            }
        }
        Ok(())
    }
}
