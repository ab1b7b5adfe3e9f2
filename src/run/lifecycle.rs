//! A container from its first record to its last: made, run, looked after, put away.
//!
//! The process that runs a container holds the container's lock until it has put everything away. It can be killed at any
//! point: the record is written before the first mount, everything that is made lies in the container's two directories,
//! and [`tidy`] does what it would have done.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::WaitOptions;

use super::attach::{self, Streams};
use super::error::{Error, Result};
use super::record::{Container, Containers, Held, State, new_id};
use super::request::Request;
use super::rootfs::Rootfs;
use super::runtime::Runtime;
use super::setup::{self, Bundle};
use super::{names, userns};
use crate::meta::Timestamp;
use crate::mount::{self, EscapedPath, How, Process};
use crate::sys::{self, Fork};

/// How a call of [`run`] ended.
#[derive(Debug)]
pub enum Outcome {
    Ended {
        /// The command's exit code, or 128 and the signal that ended it.
        code: i32,
        /// Where kept overlays are.
        kept: Vec<PathBuf>,
    },
    /// It runs in the background.
    Detached { id: String },
}

/// Makes a container and runs it to its end, or, detached, to its start. Needs a process without threads.
pub fn run(containers: &Containers, request: &Request) -> Result<Outcome> {
    if let Some(name) = &request.name {
        names::check(name)?;
    }
    let command = request
        .config
        .command(request.entrypoint.as_deref(), &request.command)?;
    let rootless = !rustix::process::geteuid().is_root();
    userns::enter()?;
    // What is made for the container has the modes it is made with.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    attach::hold_signals().map_err(|e| Error::io("holding signals", Path::new("/"), e))?;
    containers.prepare()?;
    let runtime = Runtime::find(request.runtime.as_deref(), &containers.runtime_root())?;
    let me = Process::current().map_err(|e| Error::io("looking at", Path::new("/proc/self"), e))?;
    let (container, held) = containers.create(|known| {
        let id = new_id()?;
        let taken = |name: &str| known.iter().any(|c| c.name == name);
        let name = match &request.name {
            Some(name) if taken(name) => {
                return Err(Error::Conflict(format!(
                    "there is a container {name} already; ovl rm {name} takes it away"
                )));
            }
            Some(name) => name.clone(),
            None => names::invent(&id, taken),
        };
        Ok(Container {
            id,
            name,
            image: request.image.clone(),
            image_id: request.image_id.to_string(),
            command,
            created: Timestamp::now().secs,
            finished: None,
            exit_code: None,
            remove: request.remove,
            tty: request.tty,
            rootless,
            monitor: me,
            init: None,
            runtime: EscapedPath(runtime.path().to_owned()),
            without_cgroups: !runtime.has_cgroups(),
            stop_signal: request.config.stop_signal.clone(),
            labels: request.config.harmless_labels(),
            mount: None,
            kept: Vec::new(),
        })
    })?;
    let running = Running {
        containers,
        request,
        runtime,
        container,
        held,
    };
    if request.detach {
        return running.detach();
    }
    let streams = Streams::choose(request.interactive, request.tty);
    running.finish(streams, &mut None)
}

/// A container in the hands of this process.
struct Running<'a> {
    containers: &'a Containers,
    request: &'a Request,
    runtime: Runtime,
    container: Container,
    held: Held,
}

impl Running<'_> {
    fn finish(mut self, streams: Streams, started: &mut Option<Started>) -> Result<Outcome> {
        let mut outcome = self.run(streams, started);
        let kept = self
            .container
            .kept
            .iter()
            .map(|kept| kept.0.clone())
            .collect();
        // A container that never started is nothing to look at.
        let never_started = self.container.init.is_none() && outcome.is_err();
        let (code, remove) = (
            outcome.as_ref().ok().copied(),
            self.request.remove || never_started,
        );
        let put_away = self.put_away(code, remove);
        if outcome.is_ok()
            && let Err(error) = put_away
        {
            outcome = Err(error);
        }
        Ok(Outcome::Ended {
            code: outcome?,
            kept,
        })
    }

    /// Mounts, starts, waits. What is made on the way is for [`Self::put_away`].
    fn run(&mut self, streams: Streams, started: &mut Option<Started>) -> Result<i32> {
        self.container.mount = Some(setup::mount_root(
            self.containers,
            self.request,
            &self.container.id,
        )?);
        let bundle = setup::bundle(
            self.containers,
            self.request,
            &mut self.container,
            &self.runtime,
        )?;
        self.containers.write(&self.container, &self.held)?;
        let outcome = self.supervise(&bundle.dir, streams, started);
        if let Ok(rootfs) = Rootfs::open(&Bundle::rootfs(&bundle.dir)) {
            rootfs.unmake(bundle.made);
        }
        outcome
    }

    fn supervise(
        &mut self,
        bundle: &Path,
        streams: Streams,
        started: &mut Option<Started>,
    ) -> Result<i32> {
        let log = bundle.join("runtime.log");
        let pid_file = bundle.join("pid");
        let mut command = self.runtime.command("run", &log);
        command.arg("--bundle").arg(bundle);
        command
            .arg("--pid-file")
            .arg(&pid_file)
            .arg(&self.container.id);
        let fail = |e| Error::io("running", self.runtime.path(), e);
        let attached = attach::attach(&mut command, streams).map_err(fail)?;
        let mut child = self.runtime.spawn(&mut command)?;
        // The command holds copies of a terminal's other side.
        drop(command);
        let (container, containers, held) = (&mut self.container, self.containers, &self.held);
        let status = attach::supervise(&mut child, attached, &pid_file, |pid| {
            // One that has ended already was there all the same.
            let unknown = Process {
                pid,
                start: 0,
                namespace: container.monitor.namespace.clone(),
            };
            container.init = Some(Process::of(pid).unwrap_or(unknown));
            if let Err(error) = containers.write(container, held) {
                tracing::warn!(%error, "the container is not listed as running");
            }
            if let Some(started) = started.take() {
                started.tell(&[]);
            }
        })
        .map_err(fail)?;
        let code = attach::code(status);
        match self.runtime.complaint(&log) {
            Some(error) if code != 0 => Err(error),
            _ => Ok(code),
        }
    }

    fn put_away(mut self, code: Option<i32>, remove: bool) -> Result<()> {
        // A runtime that was killed has left its container running.
        if self.runtime.knows(&self.container.id) {
            self.runtime.delete(&self.container.id)?;
        }
        unmount_all(self.containers, &self.container.id)?;
        if remove {
            return self.containers.delete(&self.container.id, self.held);
        }
        self.containers.delete_bundle(&self.container.id)?;
        self.container.exit_code = code;
        self.container.finished = Some(Timestamp::now().secs);
        self.containers.write(&self.container, &self.held)
    }

    /// Goes on in the background; returns once the command runs or will not.
    fn detach(mut self) -> Result<Outcome> {
        let id = self.container.id.clone();
        let log = self.containers.log(&id);
        let fail = |e: std::io::Error| Error::io("going into the background, logging to", &log, e);
        let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::CLOEXEC;
        let log_file =
            rustix::fs::open(&log, flags, Mode::RUSR | Mode::WUSR).map_err(|e| fail(e.into()))?;
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (reader, writer) = pipe.map_err(|e| fail(e.into()))?;
        if let Fork::Parent { child } = sys::fork().map_err(|e| fail(e.into()))? {
            drop((writer, log_file));
            let mut said = Vec::new();
            fs::File::from(reader)
                .read_to_end(&mut said)
                .map_err(fail)?;
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
            return Started::heard(&said).map(|()| Outcome::Detached { id });
        }
        drop(reader);
        let _ = rustix::process::setsid();
        match sys::fork() {
            Ok(Fork::Child) => {}
            Ok(Fork::Parent { .. }) => std::process::exit(0),
            Err(_) => std::process::exit(1),
        }
        let mut started = Some(Started(writer));
        let outcome = self
            .in_background(&log_file)
            .and_then(|streams| self.finish(streams, &mut started));
        match (outcome, started) {
            (Ok(_), None) => std::process::exit(0),
            // It ended before its start was seen.
            (Ok(_), Some(started)) => started.tell(&[]),
            (Err(error), Some(started)) => {
                started.tell(format!("{}\n{error}", error.run_exit_code()).as_bytes());
            }
            // Into the container's log.
            (Err(error), None) => tracing::error!("{error}"),
        }
        std::process::exit(0)
    }

    /// Lets go of the caller's descriptors, and is the one to look after the container.
    fn in_background(&mut self, log: &OwnedFd) -> Result<Streams> {
        let fail = |e: std::io::Error| Error::io("opening", Path::new("/dev/null"), e);
        let null = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(fail)?;
        for (fd, target) in [(null.as_fd(), 0), (log.as_fd(), 1), (log.as_fd(), 2)] {
            sys::replace_stdio(fd, target).map_err(|e| fail(e.into()))?;
        }
        self.container.monitor = Process::current().map_err(fail)?;
        self.containers.write(&self.container, &self.held)?;
        if self.request.tty {
            return Ok(Streams::NewTerminal { stdin: false });
        }
        let log = log.try_clone().map_err(fail)?;
        Ok(Streams::Log(log.into()))
    }
}

/// The pipe to a caller who waits for a container in the background to start. Its one message: nothing for a start, else
/// the exit code and the reason.
struct Started(OwnedFd);

impl Started {
    fn tell(self, words: &[u8]) {
        // A caller that has been killed meanwhile hears nothing.
        let mut pipe = fs::File::from(self.0);
        let _ = pipe.write_all(if words.is_empty() { b"started" } else { words });
    }

    fn heard(said: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(said);
        if text.starts_with("started") {
            return Ok(());
        }
        let (code, message) = text
            .split_once('\n')
            .unwrap_or(("125", "the process in the background died"));
        Err(Error::Detached {
            code: code.parse().unwrap_or(125),
            message: message.to_owned(),
        })
    }
}

/// How long the runtime's leavings may keep a mount busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmounts everything of a container's bundle, the root last; what is in use all the same is detached.
pub fn unmount_all(containers: &Containers, id: &str) -> Result<()> {
    let run_dir = containers.run_dir();
    let bundle = containers.bundle(id);
    let records =
        mount::list(run_dir).map_err(|e| Error::io("reading the mounts in", run_dir.path(), e))?;
    // A volume of the image's holds the root.
    let root = Bundle::rootfs(&bundle);
    let mut ours: Vec<&mount::Record> = records
        .iter()
        .filter(|record| record.mount_point.0.starts_with(&bundle))
        .collect();
    ours.sort_by_key(|record| record.mount_point.0 == root);
    let by_id = ours.into_iter().map(|record| PathBuf::from(&record.id));
    // A daemon that was killed leaves a mount without a record.
    let mut by_path: Vec<PathBuf> = fs::read_dir(&bundle)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    by_path.sort_by_key(|path| *path == root);
    for name in by_id.chain(by_path) {
        unmount(containers, &name)?;
    }
    Ok(())
}

fn unmount(containers: &Containers, name: &Path) -> Result<()> {
    for lazy in [false, true] {
        let how = How {
            lazy,
            timeout: PATIENCE,
        };
        match mount::unmount(containers.run_dir(), name, how) {
            Ok(_) | Err(mount::Error::NotMounted { .. } | mount::Error::Missing { .. }) => {
                return Ok(());
            }
            Err(mount::Error::Busy { .. }) if !lazy => {}
            // Gone from here. Another mount namespace has a copy, with which it will end.
            Err(mount::Error::Busy { .. }) => return Ok(()),
            Err(mount::Error::StillRunning { .. }) if !lazy => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Puts right what a container's process, killed, or the machine, stopped, left behind. Containers that are looked after,
/// or still run by themselves, are left alone.
pub fn tidy(containers: &Containers) -> Result<()> {
    for id in containers.ids()? {
        // One that cannot be put right does not hide the others.
        if let Err(error) = tidy_one(containers, &id) {
            tracing::warn!(container = id, %error, "something of it stays");
        }
    }
    Ok(())
}

fn tidy_one(containers: &Containers, id: &str) -> Result<()> {
    let Ok(Some(held)) = containers.hold_made(id) else {
        return Ok(());
    };
    let Some(container) = containers.read(id)? else {
        // What somebody changed goes only when it is sure to be nobody's.
        if containers.has_record(id) {
            return Ok(());
        }
        // Killed while it was made, or being removed by somebody this moment.
        unmount_all(containers, id)?;
        return containers.delete(id, held);
    };
    if container.state() == State::Exited || still_runs(&container) {
        return Ok(());
    }
    clean(containers, container, held)
}

/// Does the container's first process live, or can that not be told?
pub fn still_runs(container: &Container) -> bool {
    let Some(init) = &container.init else {
        return false;
    };
    init.is_alive() != Some(false)
}

fn clean(containers: &Containers, mut container: Container, held: Held) -> Result<()> {
    let runtime = Runtime::known(
        &container.runtime.0,
        container.without_cgroups,
        &containers.runtime_root(),
    );
    match runtime.and_then(|runtime| runtime.delete(&container.id)) {
        Ok(()) => {}
        Err(error) => {
            tracing::warn!(container = container.name, %error, "the runtime keeps something of it");
        }
    }
    unmount_all(containers, &container.id)?;
    if container.remove {
        return containers.delete(&container.id, held);
    }
    containers.delete_bundle(&container.id)?;
    container.finished = Some(Timestamp::now().secs);
    containers.write(&container, &held)
}

/// Kills a container's first process and waits until nobody looks after it; `None` if it was one to go then, and has.
pub fn kill(containers: &Containers, container: &Container) -> Result<Option<Held>> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        // One that was just being made may have started meanwhile.
        let now = containers.read(&container.id)?;
        if let Some(init) = &now.as_ref().unwrap_or(container).init {
            send(init, libc::SIGKILL)?;
        }
        match containers.hold(&container.id) {
            Ok(None) => {}
            Ok(held) if !still_runs(now.as_ref().unwrap_or(container)) => return Ok(held),
            Ok(_) => {}
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        if std::time::Instant::now() > deadline {
            return Err(Error::Conflict(format!(
                "container {} does not end",
                container.name
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A signal for a container's process, from inside its user namespace if need be: there its user may be any.
fn send(init: &Process, signal: libc::c_int) -> Result<()> {
    let fail = |e: std::io::Error| Error::io("ending", Path::new("the container"), e);
    if rustix::process::geteuid().is_root() {
        return signal_process(init, signal).map_err(fail);
    }
    match sys::fork().map_err(|e| fail(e.into()))? {
        Fork::Child => {
            let sent =
                userns::join_user(init).and_then(|()| signal_process(init, signal).map_err(fail));
            std::process::exit(i32::from(sent.is_err()));
        }
        Fork::Parent { child } => {
            let _ = rustix::process::waitpid(Some(child), WaitOptions::empty());
            Ok(())
        }
    }
}

fn signal_process(process: &Process, signal: libc::c_int) -> std::io::Result<()> {
    match (
        process.open(),
        rustix::process::Signal::from_named_raw(signal),
    ) {
        (Some(handle), Some(signal)) => handle.send(signal),
        // It is gone already.
        _ => Ok(()),
    }
}
