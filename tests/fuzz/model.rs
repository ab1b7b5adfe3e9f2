//! What a plain directory would answer: a tree in memory, one value per inode, for the engine to be compared with.

use std::collections::BTreeMap;

use ovl::meta::FileKind;
use rustix::io::Errno;

/// Names that occur. The last two are marks of another world, and names like others here.
pub const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", ".wh.a", ".wh..wh.x"];

/// Place of an inode in the model.
pub type Id = usize;

pub const ROOT: Id = 0;

pub struct Inode {
    pub kind: FileKind,
    pub perm: u32,
    pub data: Vec<u8>,
    pub xattrs: BTreeMap<&'static str, Vec<u8>>,
    pub entries: BTreeMap<String, Id>,
    pub names: u32,
    /// Of a directory; what removed ones had.
    pub parent: Id,
}

pub struct Model {
    pub inodes: Vec<Inode>,
}

/// The errors that are right, none of them if it must work. Where several apply, which comes first is the kernel's to say,
/// who checks most of them before it asks.
pub type Errors = Vec<Errno>;

impl Model {
    pub fn new() -> Self {
        let mut model = Self { inodes: Vec::new() };
        model.add(FileKind::Directory, 0o755, Vec::new());
        model.inodes[ROOT].names = 1;
        model
    }

    fn add(&mut self, kind: FileKind, perm: u32, data: Vec<u8>) -> Id {
        self.inodes.push(Inode {
            kind,
            perm,
            data,
            xattrs: BTreeMap::new(),
            entries: BTreeMap::new(),
            names: 0,
            parent: ROOT,
        });
        self.inodes.len() - 1
    }

    pub fn child(&self, dir: Id, name: &str) -> Option<Id> {
        self.inodes[dir].entries.get(name).copied()
    }

    pub fn is_dir(&self, id: Id) -> bool {
        self.inodes[id].kind.is_dir()
    }

    /// Live directories, with their paths.
    pub fn directories(&self) -> Vec<(String, Id)> {
        self.walk()
            .into_iter()
            .filter(|(_, id)| self.is_dir(*id))
            .collect()
    }

    /// Everything that has a name, by path; the root's is empty.
    pub fn walk(&self) -> Vec<(String, Id)> {
        let mut all = vec![(String::new(), ROOT)];
        let mut next = 0;
        while next < all.len() {
            let (path, id) = all[next].clone();
            next += 1;
            let below = self.inodes[id].entries.iter();
            all.extend(below.map(|(name, id)| (format!("{path}/{name}"), *id)));
        }
        all
    }

    fn attach(&mut self, dir: Id, name: &str, id: Id) {
        let old = self.inodes[dir].entries.insert(name.to_owned(), id);
        assert!(old.is_none(), "the model gives a name twice");
        self.inodes[id].names += 1;
        if self.is_dir(id) {
            self.inodes[id].parent = dir;
        }
    }

    fn detach(&mut self, dir: Id, name: &str) -> Id {
        let id = self.inodes[dir].entries.remove(name).expect("checked");
        self.inodes[id].names -= 1;
        id
    }

    fn free(&self, dir: Id, name: &str) -> Errors {
        let mut errors = Errors::new();
        if self.inodes[dir].names == 0 {
            errors.push(Errno::NOENT);
        }
        if self.child(dir, name).is_some() {
            errors.push(Errno::EXIST);
        }
        errors
    }

    pub fn make(
        &mut self,
        dir: Id,
        name: &str,
        kind: FileKind,
        perm: u32,
        data: &[u8],
    ) -> Result<Id, Errors> {
        let errors = self.free(dir, name);
        if !errors.is_empty() {
            return Err(errors);
        }
        let id = self.add(kind, perm, data.to_vec());
        self.attach(dir, name, id);
        Ok(id)
    }

    pub fn link(&mut self, id: Id, dir: Id, name: &str) -> Result<(), Errors> {
        let mut errors = self.free(dir, name);
        if self.is_dir(id) {
            errors.push(Errno::PERM);
        }
        if self.inodes[id].names == 0 {
            errors.push(Errno::NOENT);
        }
        if errors.is_empty() {
            self.attach(dir, name, id);
            return Ok(());
        }
        Err(errors)
    }

    pub fn unlink(&mut self, dir: Id, name: &str) -> Result<(), Errors> {
        match self.child(dir, name) {
            None => Err(vec![Errno::NOENT]),
            Some(id) if self.is_dir(id) => Err(vec![Errno::ISDIR]),
            Some(_) => {
                self.detach(dir, name);
                Ok(())
            }
        }
    }

    pub fn rmdir(&mut self, dir: Id, name: &str) -> Result<(), Errors> {
        match self.child(dir, name) {
            None => Err(vec![Errno::NOENT]),
            Some(id) if !self.is_dir(id) => Err(vec![Errno::NOTDIR]),
            Some(id) if !self.inodes[id].entries.is_empty() => Err(vec![Errno::NOTEMPTY]),
            Some(_) => {
                self.detach(dir, name);
                Ok(())
            }
        }
    }

    /// Takes a name away with all below it: how a layer hides what another has.
    pub fn hide(&mut self, dir: Id, name: &str) {
        if let Some(id) = self.child(dir, name) {
            self.detach(dir, name);
            let below: Vec<_> = self.inodes[id].entries.keys().cloned().collect();
            below.iter().for_each(|name| self.hide(id, name));
        }
    }

    /// Is `dir` the directory `top` or below it?
    fn is_inside(&self, mut dir: Id, top: Id) -> bool {
        while dir != top && dir != ROOT {
            dir = self.inodes[dir].parent;
        }
        dir == top
    }

    pub fn rename(
        &mut self,
        (from, name): (Id, &str),
        (to, new_name): (Id, &str),
        no_replace: bool,
        exchange: bool,
    ) -> Result<(), Errors> {
        let mut errors = Errors::new();
        let Some(source) = self.child(from, name) else {
            return Err(vec![Errno::NOENT]);
        };
        let target = self.child(to, new_name);
        if self.inodes[to].names == 0 || exchange && target.is_none() {
            errors.push(Errno::NOENT);
        }
        if no_replace && target.is_some() {
            errors.push(Errno::EXIST);
        }
        if self.is_dir(source) && self.is_inside(to, source) {
            errors.push(Errno::INVAL);
        }
        if let Some(target) = target {
            if self.is_dir(target) && self.is_inside(from, target) {
                errors.push(if exchange {
                    Errno::INVAL
                } else {
                    Errno::NOTEMPTY
                });
            }
            if !exchange && source != target {
                match (self.is_dir(source), self.is_dir(target)) {
                    (false, true) => errors.push(Errno::ISDIR),
                    (true, false) => errors.push(Errno::NOTDIR),
                    (true, true) if !self.inodes[target].entries.is_empty() => {
                        errors.push(Errno::NOTEMPTY);
                    }
                    _ => {}
                }
            }
        }
        if target == Some(source) && !errors.contains(&Errno::EXIST) {
            // Two names of one file, or one name twice: both stay.
            return Ok(());
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        self.detach(from, name);
        if let Some(target) = target {
            self.detach(to, new_name);
            if exchange {
                self.attach(from, name, target);
            }
        }
        self.attach(to, new_name, source);
        Ok(())
    }

    /// Of a file whose bytes are asked for or changed.
    pub fn regular(&self, id: Id) -> Errors {
        match self.inodes[id].kind {
            FileKind::Regular => Errors::new(),
            FileKind::Directory => vec![Errno::ISDIR],
            _ => vec![Errno::INVAL],
        }
    }

    pub fn write(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        let data = &mut self.inodes[id].data;
        if data.len() < offset + bytes.len() {
            data.resize(offset + bytes.len(), 0);
        }
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// What is there from `offset`, at most `len` bytes.
    pub fn range(&self, id: Id, offset: usize, len: usize) -> &[u8] {
        let data = &self.inodes[id].data;
        &data[offset.min(data.len())..(offset + len).min(data.len())]
    }
}
