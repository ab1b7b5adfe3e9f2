//! Containers that are there: listed, entered, looked into, taken away.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::attach::{self, Streams};
use super::error::{Error, Result};
use super::inside::Inside;
use super::lifecycle::{kill, still_runs, tidy, unmount_all};
use super::record::{Container, Containers, Held, State, new_id, remove_all};
use super::request::ExecRequest;
use super::rootfs::Rootfs;
use super::runtime::Runtime;
use super::setup::Bundle;
use super::spec::process;
use super::{user, userns};
use crate::mount::Process;

/// All containers, the newest first, after what was left lying about has been put away.
pub fn list(containers: &Containers) -> Result<Vec<Container>> {
    if containers.ids()?.is_empty() {
        return Ok(Vec::new());
    }
    userns::enter()?;
    tidy(containers)?;
    containers.all()
}

/// The container that `words` (a name or the beginning of an ID) mean.
pub fn find(containers: &Containers, words: &str) -> Result<Container> {
    containers
        .find(words)?
        .ok_or_else(|| Error::NotFound(words.to_owned()))
}

/// Takes a container away, with everything it changed. One that runs only by `force`. Gives its name.
pub fn remove(containers: &Containers, words: &str, force: bool) -> Result<String> {
    let container = find(containers, words)?;
    let name = container.name.clone();
    let held = match hold(containers, &container)? {
        Some(held) if container.state() == State::Exited || !still_runs(&container) => held,
        held if force => {
            // Of a container that nobody looks after we have the lock ourselves.
            drop(held);
            match kill(containers, &container)? {
                Some(held) => held,
                None => return Ok(name),
            }
        }
        _ => {
            return Err(Error::Conflict(format!(
                "container {name} is running: end it first, or use -f"
            )));
        }
    };
    if containers.read(&container.id)?.is_none() {
        // It was one to go by itself, and has.
        let left = containers.dir(&container.id);
        return remove_all(&left).map(|()| name);
    }
    userns::enter()?;
    if container.state() != State::Exited {
        let runtime = Runtime::known(
            &container.runtime.0,
            container.without_cgroups,
            &containers.runtime_root(),
        )?;
        runtime.delete(&container.id)?;
    }
    unmount_all(containers, &container.id)?;
    containers.delete(&container.id, held)?;
    Ok(name)
}

/// The container's lock. One that has ended can be in the hands of somebody who lists containers, for a moment.
fn hold(containers: &Containers, container: &Container) -> Result<Option<Held>> {
    for _ in 0..HOLD_TRIES {
        match containers.hold(&container.id)? {
            None if container.state() == State::Exited => std::thread::sleep(HOLD_PAUSE),
            held => return Ok(held),
        }
    }
    containers.hold(&container.id)
}

const HOLD_TRIES: u32 = 50;
const HOLD_PAUSE: Duration = Duration::from_millis(10);

/// Runs a command in a running container; its exit code.
pub fn exec(containers: &Containers, request: &ExecRequest) -> Result<i32> {
    let container = find(containers, &request.container)?;
    let init = match &container.init {
        Some(init) if container.state() == State::Running && still_runs(&container) => init,
        _ => {
            return Err(Error::Conflict(format!(
                "container {} is not running",
                container.name
            )));
        }
    };
    userns::join(insider(&container).unwrap_or(init))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let runtime = Runtime::known(
        &container.runtime.0,
        container.without_cgroups,
        &containers.runtime_root(),
    )?;
    let bundle = containers.bundle(&container.id);
    let id = new_id()?;
    let files = [
        bundle.join(format!("exec-{id}.json")),
        bundle.join(format!("exec-{id}.log")),
        bundle.join(format!("exec-{id}.pid")),
    ];
    let outcome = exec_with(&runtime, &container, request, &bundle, &files);
    for file in &files {
        let _ = fs::remove_file(file);
    }
    outcome
}

fn exec_with(
    runtime: &Runtime,
    container: &Container,
    request: &ExecRequest,
    bundle: &Path,
    [file, log, pid_file]: &[std::path::PathBuf; 3],
) -> Result<i32> {
    let text = exec_process(bundle, request)?;
    fs::write(file, text).map_err(|e| Error::io("writing", file, e))?;
    let mut command = runtime.command("exec", log);
    command.arg("--process").arg(file);
    command.arg("--pid-file").arg(pid_file);
    if request.tty {
        command.arg("--tty");
    }
    command.arg(&container.id);
    let fail = |e| Error::io("running", runtime.path(), e);
    let streams = Streams::choose(request.interactive, request.tty);
    let attached = attach::attach(&mut command, streams).map_err(fail)?;
    let mut child = runtime.spawn(&mut command)?;
    drop(command);
    let status = attach::supervise(&mut child, attached, pid_file, |_| ()).map_err(fail)?;
    let code = attach::code(status);
    match runtime.complaint(log) {
        Some(error) if code != 0 => Err(error),
        _ => Ok(code),
    }
}

/// The `process` of a command: the container's own, but for what is asked for.
fn exec_process(bundle: &Path, request: &ExecRequest) -> Result<Vec<u8>> {
    let path = Bundle::config(bundle);
    let fail = |e: io::Error| Error::io("reading", &path, e);
    let text = fs::read(&path).map_err(fail)?;
    let config: Value = serde_json::from_slice(&text).map_err(|e| fail(e.into()))?;
    let own = &config["process"];
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    let mut defaults = words(&own["env"]);
    let id = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(0)
    };
    let user = match &request.user {
        Some(word) => {
            let rootfs = Rootfs::open(&Bundle::rootfs(bundle))?;
            let user = user::look_up(&rootfs, word)?;
            defaults.push(format!("HOME={}", user.home));
            user
        }
        None => {
            let own = &own["user"];
            let groups = own["additionalGids"].as_array().into_iter().flatten();
            user::User {
                uid: id(&own["uid"]),
                gid: id(&own["gid"]),
                groups: groups.map(id).collect(),
                home: String::new(),
            }
        }
    };
    if request.tty {
        defaults.push("TERM=xterm".into());
    }
    let env = super::ImageConfig::default().environment(&defaults, &request.env)?;
    let cwd = match &request.workdir {
        Some(dir) if !dir.starts_with('/') => {
            return Err(Error::Usage(format!(
                "working directory {dir} is not absolute"
            )));
        }
        Some(dir) => dir.as_str(),
        None => own["cwd"].as_str().unwrap_or("/"),
    };
    let mounts = config["mounts"].as_array().into_iter().flatten();
    let mounts = mounts.filter_map(|mount| mount["destination"].as_str());
    let rootfs = Rootfs::open(&Bundle::rootfs(bundle))?;
    let inside = Inside::of_running(&rootfs, mounts);
    inside.check_not_in_proc("working directory", cwd)?;
    if let Some(command) = request.command.first() {
        inside.check_command(command, &env, cwd)?;
    }
    let process = process(&request.command, &env, cwd, &user, request.tty);
    serde_json::to_vec(&process).map_err(|e| fail(e.into()))
}

/// For looking at what a container changed: makes this process, if its user is not root, root where that user's containers
/// are, and have their mounts in sight if they run. It needs to have one thread.
pub fn enter_for(container: &Container) -> Result<()> {
    match insider(container) {
        Some(process) if container.state() == State::Running => userns::join(process),
        _ => userns::enter(),
    }
}

/// A living process that sees the mounts the runtime saw.
fn insider(container: &Container) -> Option<&Process> {
    let daemon = container.mount.as_ref().map(|mount| &mount.daemon);
    let known = [Some(&container.monitor), daemon];
    known
        .into_iter()
        .flatten()
        .find(|process| process.is_alive() == Some(true))
}
