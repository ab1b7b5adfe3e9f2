//! A load of files as fsstress makes it, but with books: names, links, directories, and every byte of every file.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::{Load, Outcome, Rng, at};

/// Names known at most, and bytes of a file.
const NAMES: usize = 80;
const LONGEST: usize = 200_000;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Entry {
    Dir,
    /// Which file: several names can have one.
    File(u64),
    Symlink(PathBuf),
}

type Names = BTreeMap<PathBuf, Entry>;
/// By number of the file.
type Bytes = HashMap<u64, Vec<u8>>;

pub struct Files {
    rng: Rng,
    names: Names,
    bytes: Bytes,
    next: u64,
    /// Paths that the operation under way is about.
    doubt: Vec<PathBuf>,
    /// Files whose bytes may still be on their way to the daemon.
    unsynced: BTreeSet<u64>,
}

impl Files {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            names: BTreeMap::new(),
            bytes: HashMap::new(),
            next: 0,
            doubt: Vec::new(),
            unsynced: BTreeSet::new(),
        }
    }

    fn some(&mut self, wanted: impl Fn(&Entry) -> bool) -> Option<PathBuf> {
        let all: Vec<_> = (self.names.iter())
            .filter(|(_, entry)| wanted(entry))
            .collect();
        let n = self.rng.below(all.len().max(1));
        all.get(n).map(|(path, _)| (*path).clone())
    }

    fn fresh(&mut self) -> PathBuf {
        let dir = self.some(|entry| *entry == Entry::Dir).unwrap_or_default();
        // Half of the time at the top, so that the tree stays flat enough.
        let dir = if self.rng.below(2) == 0 {
            PathBuf::new()
        } else {
            dir
        };
        dir.join(format!("n{}", self.rng.below(60)))
    }

    fn file(&mut self) -> Option<(PathBuf, u64)> {
        let path = self.some(|entry| matches!(entry, Entry::File(_)))?;
        match self.names[&path] {
            Entry::File(id) => Some((path, id)),
            _ => None,
        }
    }

    fn forget_name(&mut self, path: &Path) {
        if let Some(Entry::File(id)) = self.names.remove(path)
            && !self.names.values().any(|entry| *entry == Entry::File(id))
        {
            self.bytes.remove(&id);
            self.unsynced.remove(&id);
        }
    }

    fn create(&mut self, root: &Path) -> Outcome {
        let path = self.fresh();
        if self.names.contains_key(&path) || self.names.len() >= NAMES {
            return self.unlink(root);
        }
        self.doubt = vec![path.clone()];
        let len = self.rng.below(LONGEST) >> self.rng.below(8);
        let bytes = self.rng.bytes(len);
        let full = root.join(&path);
        at("create", fs::write(&full, &bytes))?;
        at("fsync", File::open(&full).and_then(|file| file.sync_all()))?;
        self.next += 1;
        self.names.insert(path, Entry::File(self.next));
        self.bytes.insert(self.next, bytes);
        Ok(())
    }

    fn write(&mut self, root: &Path) -> Outcome {
        let Some((path, id)) = self.file() else {
            return self.create(root);
        };
        self.unsynced.insert(id);
        let len = 1 + (self.rng.below(40_000) >> self.rng.below(12));
        let bytes = self.rng.bytes(len);
        let was = self.bytes[&id].len();
        let offset = match self.rng.below(4) {
            0 => was,
            _ => self.rng.below(was + 5000),
        };
        if offset + len > LONGEST {
            return self.truncate(root);
        }
        let file = OpenOptions::new().write(true).open(root.join(&path));
        let file = at("open", file)?;
        at("write", file.write_all_at(&bytes, offset as u64))?;
        let known = self.bytes.get_mut(&id).expect("a known file");
        known.resize(known.len().max(offset + len), 0);
        known[offset..offset + len].copy_from_slice(&bytes);
        if self.rng.below(2) == 0 {
            at("fsync", file.sync_all())?;
            self.unsynced.remove(&id);
        }
        Ok(())
    }

    fn truncate(&mut self, root: &Path) -> Outcome {
        let Some((path, id)) = self.file() else {
            return self.create(root);
        };
        self.unsynced.insert(id);
        let len = self.rng.below(self.bytes[&id].len() + 3000);
        let file = OpenOptions::new().write(true).open(root.join(&path));
        at("truncate", file.and_then(|file| file.set_len(len as u64)))?;
        self.bytes
            .get_mut(&id)
            .expect("a known file")
            .resize(len, 0);
        Ok(())
    }

    fn unlink(&mut self, root: &Path) -> Outcome {
        let Some(path) = self.some(|entry| *entry != Entry::Dir) else {
            return Ok(());
        };
        self.doubt = vec![path.clone()];
        at("unlink", fs::remove_file(root.join(&path)))?;
        self.forget_name(&path);
        Ok(())
    }

    fn rename(&mut self, root: &Path) -> Outcome {
        let Some(from) = self.some(|_| true) else {
            return Ok(());
        };
        let to = self.fresh();
        let is_dir = self.names[&from] == Entry::Dir;
        let in_the_way = self
            .names
            .get(&to)
            .is_some_and(|entry| is_dir || *entry == Entry::Dir);
        if in_the_way || to.starts_with(&from) || from.starts_with(&to) {
            return Ok(());
        }
        if let (Some(Entry::File(a)), Some(Entry::File(b))) =
            (self.names.get(&from), self.names.get(&to))
            && a == b
        {
            return Ok(());
        }
        self.doubt = vec![from.clone(), to.clone()];
        at("rename", fs::rename(root.join(&from), root.join(&to)))?;
        self.forget_name(&to);
        let moved: Vec<_> = (self.names.keys())
            .filter(|p| p.starts_with(&from))
            .cloned()
            .collect();
        for old in moved {
            let entry = self.names.remove(&old).expect("listed");
            let rest = old.strip_prefix(&from).expect("filtered");
            let new = if rest == Path::new("") {
                to.clone()
            } else {
                to.join(rest)
            };
            self.names.insert(new, entry);
        }
        Ok(())
    }

    fn link(&mut self, root: &Path) -> Outcome {
        let (Some((path, id)), to) = (self.file(), self.fresh()) else {
            return Ok(());
        };
        if self.names.contains_key(&to) || self.names.len() >= NAMES {
            return Ok(());
        }
        self.doubt = vec![to.clone()];
        at("link", fs::hard_link(root.join(path), root.join(&to)))?;
        self.names.insert(to, Entry::File(id));
        Ok(())
    }

    fn make(&mut self, root: &Path, dir: bool) -> Outcome {
        let path = self.fresh();
        if self.names.contains_key(&path) || self.names.len() >= NAMES {
            return self.remove_dir(root);
        }
        self.doubt = vec![path.clone()];
        let entry = if dir {
            at("mkdir", fs::create_dir(root.join(&path)))?;
            Entry::Dir
        } else {
            let target = PathBuf::from(format!("to/{}", self.rng.below(1000)));
            at("symlink", symlink(&target, root.join(&path)))?;
            Entry::Symlink(target)
        };
        self.names.insert(path, entry);
        Ok(())
    }

    fn remove_dir(&mut self, root: &Path) -> Outcome {
        let Some(path) = self.some(|entry| *entry == Entry::Dir) else {
            return Ok(());
        };
        self.doubt = vec![path.clone()];
        let below: Vec<_> = (self.names.keys())
            .filter(|p| p.starts_with(&path))
            .cloned()
            .collect();
        if below.len() > 8 {
            let refused = fs::remove_dir(root.join(&path));
            return match refused.map_err(|e| e.raw_os_error()) {
                Err(Some(libc::ENOTEMPTY)) => Ok(()),
                other => Err(format!("rmdir of a full directory: {other:?}")),
            };
        }
        at("remove", fs::remove_dir_all(root.join(&path)))?;
        below.iter().for_each(|path| self.forget_name(path));
        Ok(())
    }

    fn read(&mut self, root: &Path) -> Outcome {
        let Some((path, id)) = self.file() else {
            return Ok(());
        };
        let found = at("read", fs::read(root.join(&path)))?;
        if found != self.bytes[&id] {
            return Err(format!("{}: other bytes", path.display()));
        }
        Ok(())
    }

    /// What is there. Files by number, in the order they are met.
    fn look(root: &Path) -> Outcome<(Names, Bytes)> {
        let (mut names, mut bytes) = (Names::new(), Bytes::new());
        let mut ahead = vec![PathBuf::new()];
        while let Some(dir) = ahead.pop() {
            for entry in at("list", fs::read_dir(root.join(&dir)))? {
                let path = dir.join(at("list", entry)?.file_name());
                let full = root.join(&path);
                let meta = at("stat", fs::symlink_metadata(&full))?;
                let entry = if meta.is_dir() {
                    ahead.push(path.clone());
                    Entry::Dir
                } else if meta.is_symlink() {
                    Entry::Symlink(at("readlink", fs::read_link(&full))?)
                } else {
                    if let hash_map::Entry::Vacant(new) = bytes.entry(meta.ino()) {
                        new.insert(at("read", fs::read(&full))?);
                    }
                    Entry::File(meta.ino())
                };
                names.insert(path, entry);
            }
        }
        Ok((names, bytes))
    }

    fn compare(
        &self,
        root: &Path,
        excused: impl Fn(&Path) -> bool,
        torn: &BTreeSet<u64>,
    ) -> Outcome {
        let (names, bytes) = Self::look(root)?;
        let mut numbers: HashMap<u64, u64> = HashMap::new();
        let both: BTreeSet<_> = names.keys().chain(self.names.keys()).collect();
        for path in both {
            if excused(path) {
                continue;
            }
            let wrong = |what: String| Err(format!("{}: {what}", path.display()));
            match (self.names.get(path), names.get(path)) {
                (Some(Entry::File(known)), Some(Entry::File(found))) => {
                    // The same file under the same names.
                    if *numbers.entry(*known).or_insert(*found) != *found {
                        return wrong("no longer the same file as its other names".into());
                    }
                    if !torn.contains(known) && self.bytes[known] != bytes[found] {
                        let (a, b) = (&self.bytes[known], &bytes[found]);
                        let first = a.iter().zip(b).position(|(a, b)| a != b);
                        return wrong(format!(
                            "{} bytes, not {}; the first that differs: {first:?}",
                            b.len(),
                            a.len()
                        ));
                    }
                }
                (known, found) if known == found => {}
                (known, found) => return wrong(format!("{found:?}, not {known:?}")),
            }
        }
        Ok(())
    }
}

impl Load for Files {
    fn name(&self) -> &'static str {
        "files"
    }

    fn prepare(&mut self, dir: &Path) -> Outcome {
        for _ in 0..300 {
            self.work(dir)?;
        }
        self.synced();
        Ok(())
    }

    fn work(&mut self, dir: &Path) -> Outcome {
        match self.rng.below(24) {
            0..=3 => self.create(dir)?,
            4..=9 => self.write(dir)?,
            10 => self.truncate(dir)?,
            11 | 12 => self.unlink(dir)?,
            13..=15 => self.rename(dir)?,
            16 => self.link(dir)?,
            17 => self.make(dir, true)?,
            18 => self.make(dir, false)?,
            19 => self.remove_dir(dir)?,
            _ => self.read(dir)?,
        }
        self.doubt.clear();
        Ok(())
    }

    fn check(&mut self, dir: &Path) -> Outcome {
        self.compare(dir, |_| false, &BTreeSet::new())
    }

    fn recover(&mut self, dir: &Path) -> Outcome {
        let doubt = std::mem::take(&mut self.doubt);
        let excused = |path: &Path| doubt.iter().any(|doubt| path.starts_with(doubt));
        self.compare(dir, excused, &self.unsynced)?;
        let (names, bytes) = Self::look(dir)?;
        self.next = bytes.keys().copied().max().unwrap_or(0).max(self.next);
        (self.names, self.bytes) = (names, bytes);
        self.synced();
        Ok(())
    }

    fn synced(&mut self) {
        self.unsynced.clear();
    }
}
