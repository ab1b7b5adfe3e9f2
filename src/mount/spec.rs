//! What is to be mounted: understanding LOWER, and the checks before anything is touched.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::error::{Error, Result};

/// One lower as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lower {
    Dir(PathBuf),
    /// A reference to an image of the store: all its layers, topmost first.
    Image(String),
}

/// Understands the word LOWER, topmost first: `dir:` and then directories joined by `:`; `image:` and a reference;
/// without prefix the directories if they are there, else a reference. `\` takes the meaning from the character behind
/// it, so `\:` is a colon of a name.
pub fn parse_lowers(word: &OsStr) -> Result<Vec<Lower>> {
    let bytes = word.as_bytes();
    if let Some(reference) = bytes.strip_prefix(b"image:") {
        return Ok(vec![Lower::Image(reference_text(reference)?)]);
    }
    if let Some(list) = bytes.strip_prefix(b"dir:") {
        return Ok(as_dirs(split_dirs(list)?));
    }
    if bytes.is_empty() {
        return Err(Error::Usage("LOWER is empty".into()));
    }
    // A name with a colon in it, written without an escape.
    if Path::new(word).is_dir() {
        return Ok(vec![Lower::Dir(word.into())]);
    }
    let dirs = split_dirs(bytes)?;
    // `debian:demo` is a reference, unless there are directories of these names.
    let is_path =
        |dir: &PathBuf| dir.is_absolute() || dir.starts_with(".") || dir.starts_with("..");
    if dirs.iter().any(is_path) || dirs.iter().all(|dir| dir.exists()) {
        return Ok(as_dirs(dirs));
    }
    match reference_text(bytes) {
        Ok(reference) => Ok(vec![Lower::Image(reference)]),
        Err(_) => Err(Error::NoSuchLower {
            lower: word.to_string_lossy().into_owned(),
        }),
    }
}

fn as_dirs(dirs: Vec<PathBuf>) -> Vec<Lower> {
    dirs.into_iter().map(Lower::Dir).collect()
}

fn reference_text(bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(Error::Usage(format!(
            "not an image reference: {:?}",
            String::from_utf8_lossy(bytes)
        ))),
    }
}

/// Splits at `:`, honouring `\`. An empty part means nothing and is an error.
pub(super) fn split_dirs(list: &[u8]) -> Result<Vec<PathBuf>> {
    let mut dirs = vec![Vec::new()];
    let mut bytes = list.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, dirs.last_mut()) {
            (b':', _) => dirs.push(Vec::new()),
            // A backslash at the very end stands for itself.
            (b'\\', Some(dir)) => dir.push(*bytes.next().unwrap_or(&b'\\')),
            (byte, Some(dir)) => dir.push(byte),
            (_, None) => {}
        }
    }
    if dirs.iter().any(Vec::is_empty) {
        return Err(Error::Usage(format!(
            "an empty directory name in {:?}",
            String::from_utf8_lossy(list)
        )));
    }
    Ok(dirs
        .into_iter()
        .map(|dir| OsString::from_vec(dir).into())
        .collect())
}

/// Where changes go, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpperSpec {
    pub upper: PathBuf,
    /// `None`: `.NAME.ovl-work` beside the upper.
    pub work: Option<PathBuf>,
    /// Make the upper directory if its parent is there.
    pub create: bool,
}

/// Directories found to be fit for a mount: absolute, without symlinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedUpper {
    pub upper: PathBuf,
    pub work: PathBuf,
    /// The upper was made just now.
    pub fresh: bool,
}

pub fn check_lower(dir: &Path) -> Result<PathBuf> {
    existing_dir("lower directory", dir, "")
}

fn existing_dir(what: &'static str, path: &Path, hint: &'static str) -> Result<PathBuf> {
    let missing = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::Missing {
            what,
            path: path.to_owned(),
            hint,
        },
        io::ErrorKind::NotADirectory => Error::NotDirectory {
            what,
            path: path.to_owned(),
        },
        _ => Error::io(what, path, e),
    };
    let real = fs::canonicalize(path).map_err(missing)?;
    if !fs::metadata(&real).map_err(missing)?.is_dir() {
        return Err(Error::NotDirectory {
            what,
            path: path.to_owned(),
        });
    }
    Ok(real)
}

/// Checks upper and work directory against each other and the (already checked) lowers; makes what may be made.
pub fn check_upper(spec: &UpperSpec, lowers: &[PathBuf]) -> Result<CheckedUpper> {
    let mut made = None;
    if spec.create && fs::symlink_metadata(&spec.upper).is_err() {
        // Before it is made: an upper inside a lower would change that lower.
        let planned = std::path::absolute(&spec.upper)
            .map_err(|e| Error::io("upper directory", &spec.upper, e))?;
        if let (Some(parent), Some(name)) = (planned.parent(), planned.file_name()) {
            let planned = existing_dir("parent of the upper directory", parent, ": make it first")?
                .join(name);
            for lower in lowers {
                apart(&planned, lower)?;
            }
        }
        make_dir(&spec.upper, 0o755).map_err(|source| Error::UpperNotWritable {
            path: spec.upper.clone(),
            source,
        })?;
        made = Some(spec.upper.clone());
    }
    match (check_existing_upper(spec, lowers), made) {
        (Ok(checked), made) => Ok(CheckedUpper {
            fresh: made.is_some(),
            ..checked
        }),
        (Err(error), made) => {
            if let Some(made) = made {
                // Only an empty directory goes, which it is unless somebody else has been quick.
                let _ = fs::remove_dir(made);
            }
            Err(error)
        }
    }
}

fn check_existing_upper(spec: &UpperSpec, lowers: &[PathBuf]) -> Result<CheckedUpper> {
    let upper = existing_dir("upper directory", &spec.upper, ": make it first")?;
    writable(&upper)?;
    for lower in lowers {
        apart(&upper, lower)?;
    }
    let wanted = match &spec.work {
        Some(work) => {
            std::path::absolute(work).map_err(|e| Error::io("work directory", work, e))?
        }
        None => default_work(&upper)?,
    };
    // Before it is made: a work directory inside a lower would change that lower.
    let parent = wanted.parent().unwrap_or(Path::new("/"));
    let parent = existing_dir("parent of the work directory", parent, "")?;
    let planned = match wanted.file_name() {
        Some(name) => parent.join(name),
        None => parent,
    };
    for dir in lowers.iter().chain([&upper]) {
        apart(&planned, dir)?;
    }
    if let Err(e) = make_dir(&planned, 0o700)
        && e.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(Error::io("making the work directory", &planned, e));
    }
    let work = existing_dir("work directory", &planned, "")?;
    for dir in lowers.iter().chain([&upper]) {
        apart(&work, dir)?;
    }
    let dev = |path: &Path| {
        fs::metadata(path)
            .map(|m| m.dev())
            .map_err(|e| Error::io("checking", path, e))
    };
    if dev(&work)? != dev(&upper)? {
        return Err(Error::WorkElsewhere { work, upper });
    }
    Ok(CheckedUpper {
        upper,
        work,
        fresh: false,
    })
}

/// `/a/up` works in `/a/.up.ovl-work`: on the same file system unless something is mounted on `/a/up`.
fn default_work(upper: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (upper.parent(), upper.file_name()) else {
        return Err(Error::Usage(
            "the root directory cannot be the upper without a work directory given with --work"
                .into(),
        ));
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".ovl-work");
    Ok(parent.join(hidden))
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)
}

fn writable(upper: &Path) -> Result<()> {
    let need = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, upper, need, AtFlags::EACCESS).map_err(|errno| {
        Error::UpperNotWritable {
            path: upper.to_owned(),
            source: errno.into(),
        }
    })
}

/// Neither is the other, or inside it. Both without symlinks.
fn apart(one: &Path, other: &Path) -> Result<()> {
    for (inner, outer) in [(one, other), (other, one)] {
        if inner.starts_with(outer) {
            return Err(Error::Nested {
                inner: inner.to_owned(),
                outer: outer.to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs(names: &[&str]) -> Vec<Lower> {
        names.iter().map(|n| Lower::Dir(n.into())).collect()
    }

    #[test]
    fn lowers() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| temp.path().join(name).to_str().expect("text").to_owned();
        for name in ["a", "b", "with:colon"] {
            fs::create_dir(temp.path().join(name)).expect("mkdir");
        }
        let (a, b, colon) = (at("a"), at("b"), at("with:colon"));
        let escaped = colon.replace(':', r"\:");
        let image = |r: &str| vec![Lower::Image(r.into())];
        let table = [
            (a.clone(), dirs(&[&a])),
            (format!("{a}:{b}"), dirs(&[&a, &b])),
            (format!("dir:{a}:{b}"), dirs(&[&a, &b])),
            (colon.clone(), dirs(&[&colon])),
            (format!("{a}:{escaped}"), dirs(&[&a, &colon])),
            ("debian:demo".into(), image("debian:demo")),
            ("alpine".into(), image("alpine")),
            ("reg.example:5000/x:1".into(), image("reg.example:5000/x:1")),
            ("image:/tmp".into(), image("/tmp")),
            // What looks like a path is one, there or not.
            ("/none/here:/there".into(), dirs(&["/none/here", "/there"])),
            ("./none".into(), dirs(&["./none"])),
            ("dir:none".into(), dirs(&["none"])),
        ];
        for (word, lowers) in table {
            assert_eq!(
                parse_lowers(OsStr::new(&word)).expect(&word),
                lowers,
                "{word}"
            );
        }
        for word in [
            "", ":", "/a:", ":/a", "/a::/b", "dir:", "image:", "dir:a::b",
        ] {
            let error = parse_lowers(OsStr::new(word)).expect_err(word);
            assert_eq!(error.exit_code(), 2, "{word}: {error}");
        }
        let error = parse_lowers(OsStr::from_bytes(b"\xff")).expect_err("no text");
        assert_eq!(error.exit_code(), 4, "{error}");
    }

    #[test]
    fn uppers() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let root = fs::canonicalize(temp.path()).expect("real path");
        for name in ["low/sub", "up/sub", "else"] {
            fs::create_dir_all(root.join(name)).expect("mkdir");
        }
        fs::write(root.join("file"), "").expect("write");
        let lowers = [root.join("low")];
        let spec = |upper: &str, work: Option<&str>| UpperSpec {
            upper: root.join(upper),
            work: work.map(|w| root.join(w)),
            create: false,
        };
        // (upper, work, exit code, part of the message)
        let table = [
            ("none", None, 4, "does not exist"),
            ("file", None, 2, "not a directory"),
            ("low", None, 2, "inside"),
            ("low/sub", None, 2, "inside"),
            ("", None, 2, "inside"),
            ("up", Some("up"), 2, "inside"),
            ("up", Some("up/sub"), 2, "inside"),
            ("up", Some("up/new"), 2, "inside"),
            ("up/sub", Some("up"), 2, "inside"),
            ("up", Some("low/work"), 2, "inside"),
            ("up", Some("none/work"), 4, "does not exist"),
            ("up", Some("file"), 2, "not a directory"),
        ];
        for (upper, work, code, words) in table {
            let case = format!("{upper:?} {work:?}");
            let error = check_upper(&spec(upper, work), &lowers).expect_err(&case);
            assert_eq!(error.exit_code(), code, "{case}: {error}");
            let text = error.to_string();
            assert!(
                text.contains(words) && !text.contains('\n'),
                "{case}: {text}"
            );
        }
        assert!(
            !root.join("low/work").exists(),
            "a refused work directory was made"
        );
        let elsewhere = UpperSpec {
            upper: root.join("up"),
            work: Some("/dev/shm/ovl-work-elsewhere".into()),
            create: false,
        };
        let error = check_upper(&elsewhere, &lowers).expect_err("another file system");
        assert_eq!(error.exit_code(), 2, "{error}");
        let _ = fs::remove_dir("/dev/shm/ovl-work-elsewhere");

        let good = check_upper(&spec("up", None), &lowers).expect("default work");
        assert_eq!(good.work, root.join(".up.ovl-work"));
        assert!(good.work.is_dir());
        let mut fresh = spec("fresh", Some("else"));
        fresh.create = true;
        let good = check_upper(&fresh, &lowers).expect("made upper");
        assert_eq!(good.upper, root.join("fresh"));
        let mut refused = spec("low/fresh", None);
        refused.create = true;
        check_upper(&refused, &lowers).expect_err("inside a lower");
        assert!(
            !root.join("low/fresh").exists(),
            "a refused upper was left behind"
        );
    }
}
