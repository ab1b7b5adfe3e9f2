//! T34: lower and upper may be other people's to write to while we serve. So nothing in them is ever reached by a path of more
//! than the name itself, from a directory that is open, and no symlink is followed. Checked on the daemon's system calls.

mod mount_support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use mount_support::{Site, wait_until};

/// One line of the trace: name of the call, its strings, and all of its text.
struct Call<'a> {
    name: &'a str,
    strings: Vec<String>,
    text: &'a str,
}

fn parse(line: &str) -> Option<Call<'_>> {
    let text = line.split_once(' ')?.1.trim_start();
    let (name, rest) = text.split_once('(')?;
    if name.contains(['<', '+', '-', ' ']) {
        return None;
    }
    let mut strings = Vec::new();
    let mut inside: Option<String> = None;
    let mut letters = rest.chars();
    while let Some(letter) = letters.next() {
        match (&mut inside, letter) {
            (Some(string), '\\') => string.extend(letters.next()),
            (Some(_), '"') => strings.extend(inside.take()),
            (Some(string), letter) => string.push(letter),
            (None, '"') => inside = Some(String::new()),
            (None, _) => {}
        }
    }
    Some(Call {
        name,
        strings,
        text,
    })
}

/// An open object by its descriptor, perhaps with one name behind it.
fn by_descriptor(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/proc/self/fd/")?;
    let (number, name) = rest.split_once('/').unwrap_or((rest, ""));
    (number.parse::<u32>().is_ok() && !name.contains('/')).then_some(name)
}

/// What is wrong with the call, if anything is.
fn judge(call: &Call<'_>, trees: &[String]) -> Option<&'static str> {
    let has = |word: &str| call.text.contains(word);
    if call.strings.iter().any(|s| trees.iter().any(|tree| s.starts_with(tree)))
        // What a symlink says is data.
        && call.name != "symlinkat"
    {
        return Some("a path into the trees");
    }
    let single = |name: &String| !name.contains('/') && !name.is_empty();
    let from_a_directory = !has("AT_FDCWD");
    let path = call.strings.first().cloned().unwrap_or_default();
    match call.name {
        "openat2" => {
            let beneath = has("RESOLVE_BENEATH");
            let no_symlinks = has("RESOLVE_NO_SYMLINKS") || has("O_NOFOLLOW") && single(&path);
            (!(from_a_directory && beneath && no_symlinks)).then_some("may leave its tree")
        }
        "openat" | "open" | "fchmodat" if by_descriptor(&path) == Some("") => None,
        // Each thread's own.
        "openat" if path == "/dev/fuse" => None,
        "openat" => {
            let stays = has("O_NOFOLLOW") || has("O_EXCL") || path == "." || path == "..";
            (!(from_a_directory && single(&path) && stays)).then_some("may follow a symlink")
        }
        "statx" | "newfstatat" | "fchownat" | "utimensat" | "name_to_handle_at" | "fchmodat2" => {
            let itself = path.is_empty() && has("AT_EMPTY_PATH") && from_a_directory;
            let one = single(&path) && from_a_directory && has("AT_SYMLINK_NOFOLLOW");
            let handle = call.name == "name_to_handle_at" && from_a_directory;
            (!(itself || one || handle || by_descriptor(&path) == Some("")))
                .then_some("may follow a symlink")
        }
        // These never follow the last name.
        "unlinkat" | "mkdirat" | "mknodat" | "renameat" | "renameat2" | "readlinkat" => {
            let fine = call
                .strings
                .iter()
                .all(|s| single(s) || call.name == "readlinkat" && s.is_empty());
            // A link's target is printed too.
            let fine = fine || call.name == "readlinkat" && path.is_empty();
            (!(fine && from_a_directory)).then_some("more than one name")
        }
        "symlinkat" => {
            let name = call.strings.get(1).cloned().unwrap_or_default();
            (!(single(&name) && from_a_directory)).then_some("more than one name")
        }
        "linkat" => {
            let to = call.strings.get(1).cloned().unwrap_or_default();
            let from =
                by_descriptor(&path) == Some("") || single(&path) && !has("AT_SYMLINK_FOLLOW");
            (!(from && single(&to))).then_some("may follow a symlink")
        }
        "getxattr" | "setxattr" | "removexattr" | "listxattr" | "chmod" => {
            (by_descriptor(&path) != Some("")).then_some("not by descriptor")
        }
        "lgetxattr" | "lsetxattr" | "lremovexattr" | "llistxattr" => by_descriptor(&path)
            .is_none()
            .then_some("not by descriptor"),
        // By path, but nothing in the trees, or it would have been told above.
        "access" | "faccessat" | "faccessat2" | "readlink" | "open" | "stat" | "lstat"
        | "unlink" | "rename" | "umount2" | "execve" | "statfs" | "mkdir" => {
            let elsewhere = path.starts_with('/');
            (!elsewhere).then_some("relative to the working directory")
        }
        _ => Some("a call by path that this test does not know"),
    }
}

/// Everything a mount is used for.
fn use_all(mnt: &Path) {
    let at = |name: &str| mnt.join(name);
    for entry in walkdir::WalkDir::new(mnt) {
        let entry = entry.unwrap();
        let _ = rustix::fs::llistxattr(entry.path(), &mut [0; 256][..]);
        if entry.file_type().is_file() {
            fs::read(entry.path()).unwrap();
        }
    }
    assert_eq!(
        fs::read_link(at("sub/link")).unwrap(),
        Path::new("/etc/passwd")
    );
    fs::write(at("hello"), "changed").unwrap();
    fs::write(at("sub/deep/file"), "changed").unwrap();
    fs::write(at("new"), "made").unwrap();
    fs::create_dir(at("made")).unwrap();
    fs::rename(at("sub/deep"), at("made/moved")).unwrap();
    fs::rename(at("new"), at("made/new")).unwrap();
    fs::hard_link(at("twice"), at("thrice")).unwrap();
    fs::write(at("again"), "changed").unwrap();
    symlink("/etc/shadow", at("made/link")).unwrap();
    fs::rename(at("sub/link"), at("sub/link2")).unwrap();
    fs::set_permissions(at("sub/inner"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(at("owned"), Some(5), Some(6)).unwrap();
    std::os::unix::fs::lchown(at("sub/link2"), Some(5), Some(6)).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(at("attributes"), "user.a", b"1", flags).unwrap();
    rustix::fs::removexattr(at("attributes"), "user.a").unwrap();
    let file = fs::File::options().write(true).open(at("times")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    file.set_len(1).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::write(at("gone"), "back").unwrap();
    fs::remove_dir_all(at("emptied")).unwrap();
    fs::create_dir(at("emptied")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, mode, 0).unwrap();
    let with = rustix::fs::RenameFlags::EXCHANGE;
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, at("times"), cwd, at("owned"), with).unwrap();
    fs::copy(at("hello"), at("copied")).unwrap();
    for _ in walkdir::WalkDir::new(mnt) {}
}

#[test]
fn t34_everything_goes_by_descriptor_and_one_name() {
    let site = Site::new();
    let lower = site.path("lower");
    fs::create_dir_all(lower.join("sub/deep")).unwrap();
    fs::create_dir_all(lower.join("emptied/inner")).unwrap();
    for name in [
        "sub/deep/file",
        "twice",
        "owned",
        "attributes",
        "times",
        "gone",
        "emptied/inner/f",
    ] {
        fs::write(lower.join(name), "from below").unwrap();
    }
    fs::hard_link(lower.join("twice"), lower.join("again")).unwrap();
    symlink("/etc/passwd", lower.join("sub/link")).unwrap();
    let trace = site.path("trace");
    let mut daemon = Command::new("strace")
        .args(["-f", "-qq", "-s", "5000", "-e", "trace=%file", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_ovl"))
        .args(["mount", "--foreground"])
        .args([site.path("lower"), site.path("upper"), site.path("mnt")])
        .env("OVL_RUN", site.path("run"))
        .env("OVL_ROOT", site.path("store"))
        .stdin(Stdio::null())
        .spawn()
        .unwrap_or_else(|e| panic!("this test needs the program strace: {e}"));
    assert!(wait_until(Duration::from_secs(60), || site
        .record()
        .is_some()));
    // The record is written before the first request is served.
    let start = fs::read_to_string(&trace).unwrap().lines().count();
    use_all(&site.path("mnt"));
    let served = fs::read_to_string(&trace).unwrap();
    rustix::mount::unmount(site.path("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(daemon.wait().unwrap().success());

    let trees: Vec<String> = ["lower", "upper", ".upper.ovl-work", "mnt"]
        .map(|name| site.path(name).display().to_string())
        .to_vec();
    let mut judged = 0;
    let mut wrong = Vec::new();
    for line in served.lines().skip(start) {
        let Some(call) = parse(line) else { continue };
        judged += 1;
        if let Some(why) = judge(&call, &trees) {
            wrong.push(format!("{why}: {line}"));
        }
    }
    assert!(judged > 300, "only {judged} calls were seen");
    wrong.sort();
    assert!(
        wrong.is_empty(),
        "{} of {judged}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let seen = |name: &str| served.lines().any(|line| line.contains(name));
    for name in [
        "openat2(",
        "renameat2(",
        "linkat(",
        "unlinkat(",
        "symlinkat(",
        "mknodat(",
        "fchownat(",
    ] {
        assert!(seen(name), "{name} is not in the trace");
    }
}

/// The judge knows what is wrong.
#[test]
fn t34_the_judge_sees_what_is_wrong() {
    let trees = ["/tmp/x/lower".to_owned()];
    for (line, wrong) in [
        (
            r#"1 openat2(5, "a/b", {flags=O_RDONLY|O_NOFOLLOW, resolve=RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS}, 24) = 3"#,
            false,
        ),
        (
            r#"1 openat2(5, "a", {flags=O_PATH|O_NOFOLLOW, resolve=RESOLVE_BENEATH}, 24) = 3"#,
            false,
        ),
        (
            r#"1 openat2(5, "a/b", {flags=O_PATH|O_NOFOLLOW, resolve=RESOLVE_BENEATH}, 24) = 3"#,
            true,
        ),
        (
            r#"1 openat2(5, "a", {flags=O_PATH, resolve=0}, 24) = 3"#,
            true,
        ),
        (
            r#"1 openat(AT_FDCWD, "/tmp/x/lower/a", O_RDONLY|O_NOFOLLOW) = 3"#,
            true,
        ),
        (
            r#"1 openat(AT_FDCWD, "/proc/self/fd/7", O_RDONLY) = 3"#,
            false,
        ),
        (
            r#"1 openat(AT_FDCWD, "/proc/self/fd/7/a/b", O_RDONLY) = 3"#,
            true,
        ),
        (r#"1 openat(7, "a", O_RDONLY) = 3"#, true),
        (r#"1 unlinkat(7, "a\"b", 0) = 0"#, false),
        (r#"1 unlinkat(7, "a/b", 0) = 0"#, true),
        (r#"1 unlinkat(AT_FDCWD, "a", 0) = 0"#, true),
        (
            r#"1 fchmodat(AT_FDCWD, "/proc/self/fd/7", 0600) = 0"#,
            false,
        ),
        (r#"1 fchmodat(7, "a", 0600) = 0"#, true),
        (r#"1 chmod("/proc/self/fd/7", 0600) = 0"#, false),
        (r#"1 chmod("/tmp/elsewhere", 0600) = 0"#, true),
        (
            r#"1 lgetxattr("/proc/self/fd/7/a", "user.b", 0, 0) = 0"#,
            false,
        ),
        (
            r#"1 getxattr("/proc/self/fd/7/a", "user.b", 0, 0) = 0"#,
            true,
        ),
        (r#"1 symlinkat("/tmp/x/lower/a", 7, "b") = 0"#, false),
        (
            r#"1 linkat(AT_FDCWD, "/proc/self/fd/7", 8, "a", AT_SYMLINK_FOLLOW) = 0"#,
            false,
        ),
        (r#"1 linkat(7, "b", 8, "a", AT_SYMLINK_FOLLOW) = 0"#, true),
        (
            r#"1 statx(7, "a", AT_STATX_SYNC_AS_STAT, STATX_ALL, 0) = 0"#,
            true,
        ),
        (r#"1 truncate("/tmp/elsewhere", 0) = 0"#, true),
    ] {
        let call = parse(line).expect("a call");
        assert_eq!(judge(&call, &trees).is_some(), wrong, "{line}");
    }
}
