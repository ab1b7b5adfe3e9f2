//! The files of the disk as a value, what changes them, and what is left of changes that were not synced.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

pub const ROOT: u64 = 1;
/// What a disk writes at once, bytes.
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
pub enum Node {
    Dir(BTreeMap<OsString, u64>),
    File(Vec<u8>),
}

/// Everything on the disk.
#[derive(Clone, Debug)]
pub struct Tree {
    pub nodes: BTreeMap<u64, (u32, Node)>,
    pub next: u64,
}

/// One change, or a sync.
#[derive(Clone, Debug)]
pub enum Op {
    Make {
        dir: u64,
        name: OsString,
        ino: u64,
        mode: u32,
        is_dir: bool,
    },
    Remove {
        dir: u64,
        name: OsString,
    },
    Rename {
        from: (u64, OsString),
        to: (u64, OsString),
    },
    Write {
        ino: u64,
        at: u64,
        data: Vec<u8>,
    },
    Truncate {
        ino: u64,
        len: u64,
    },
    Mode {
        ino: u64,
        mode: u32,
    },
    Sync(u64),
}

impl Op {
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::Sync(_))
    }

    /// The files and directories whose sync makes this last.
    fn places(&self) -> [Option<u64>; 2] {
        match self {
            Self::Make { dir, .. } | Self::Remove { dir, .. } => [Some(*dir), None],
            Self::Rename { from, to } => [Some(from.0), Some(to.0)],
            Self::Write { ino, .. } | Self::Truncate { ino, .. } => [Some(*ino), None],
            Self::Mode { .. } | Self::Sync(_) => [None, None],
        }
    }
}

impl Tree {
    pub fn new() -> Self {
        let root = (0o755, Node::Dir(BTreeMap::new()));
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
        }
    }

    pub fn dir(&mut self, ino: u64) -> Option<&mut BTreeMap<OsString, u64>> {
        match self.nodes.get_mut(&ino) {
            Some((_, Node::Dir(entries))) => Some(entries),
            _ => None,
        }
    }

    pub fn file(&mut self, ino: u64) -> Option<&mut Vec<u8>> {
        match self.nodes.get_mut(&ino) {
            Some((_, Node::File(data))) => Some(data),
            _ => None,
        }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Make {
                dir,
                name,
                ino,
                mode,
                is_dir,
            } => {
                let node = if *is_dir {
                    Node::Dir(BTreeMap::new())
                } else {
                    Node::File(Vec::new())
                };
                self.nodes.entry(*ino).or_insert((*mode, node));
                self.next = self.next.max(ino + 1);
                if let Some(entries) = self.dir(*dir) {
                    entries.insert(name.clone(), *ino);
                }
            }
            // The file itself stays for those who have it open.
            Op::Remove { dir, name } => {
                if let Some(entries) = self.dir(*dir) {
                    entries.remove(name);
                }
            }
            Op::Rename { from, to } => {
                let moved = self.dir(from.0).and_then(|entries| entries.remove(&from.1));
                if let (Some(ino), Some(entries)) = (moved, self.dir(to.0)) {
                    entries.insert(to.1.clone(), ino);
                }
            }
            Op::Write { ino, at, data } => self.write(*ino, *at, data),
            Op::Truncate { ino, len } => {
                if let Some(file) = self.file(*ino) {
                    file.resize(*len as usize, 0);
                }
            }
            Op::Mode { ino, mode } => {
                if let Some(node) = self.nodes.get_mut(ino) {
                    node.0 = *mode;
                }
            }
            Op::Sync(_) => {}
        }
    }

    pub fn write(&mut self, ino: u64, at: u64, data: &[u8]) {
        // Written to a file whose making was lost: nobody will see it.
        if let Some(file) = self.file(ino) {
            let end = at as usize + data.len();
            if file.len() < end {
                file.resize(end, 0);
            }
            file[at as usize..end].copy_from_slice(data);
        }
    }

    /// What a power cut behind `log` leaves.
    pub fn after_cut(&self, log: &[Op], luck: &mut Luck) -> Self {
        let mut last_sync: BTreeMap<u64, usize> = BTreeMap::new();
        for (index, op) in log.iter().enumerate() {
            if let Op::Sync(ino) = op {
                last_sync.insert(*ino, index);
            }
        }
        let mut left = self.clone();
        for (index, op) in log.iter().enumerate() {
            let lasts = |place: &Option<u64>| {
                place.is_none_or(|ino| last_sync.get(&ino).is_some_and(|sync| *sync > index))
            };
            if let Op::Make {
                ino, mode, is_dir, ..
            } = op
            {
                // There, if perhaps without a name: what was synced into it must not be lost with a later rename.
                let node = if *is_dir {
                    Node::Dir(BTreeMap::new())
                } else {
                    Node::File(Vec::new())
                };
                left.nodes.entry(*ino).or_insert((*mode, node));
            }
            if op.places().iter().all(lasts) {
                left.apply(op);
                continue;
            }
            match (luck.fate(), op) {
                (Fate::Whole, op) => left.apply(op),
                (Fate::Torn, Op::Write { ino, at, data }) => {
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if luck.coin() {
                            left.write(*ino, at + (number * SECTOR) as u64, sector);
                        }
                    }
                }
                (Fate::Torn | Fate::Lost, _) => {}
            }
        }
        left
    }

    /// Writes what is below the root to a real directory.
    pub fn materialize(&self, to: &Path) {
        self.materialize_dir(ROOT, to);
    }

    fn materialize_dir(&self, ino: u64, to: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let Some((mode, Node::Dir(entries))) = self.nodes.get(&ino) else {
            return;
        };
        std::fs::create_dir_all(to).unwrap();
        for (name, ino) in entries {
            let path = to.join(name);
            match self.nodes.get(ino) {
                Some((mode, Node::File(data))) => {
                    std::fs::write(&path, data).unwrap();
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))
                        .unwrap();
                }
                Some((_, Node::Dir(_))) => self.materialize_dir(*ino, &path),
                None => {}
            }
        }
        std::fs::set_permissions(to, std::fs::Permissions::from_mode(*mode)).unwrap();
    }
}

enum Fate {
    Whole,
    Torn,
    Lost,
}

/// What happens to changes that were not synced.
pub enum Luck {
    /// All of them are lost.
    None,
    /// All of them are there.
    All,
    /// Each by itself.
    Random(Rng),
}

impl Luck {
    fn fate(&mut self) -> Fate {
        match self {
            Self::None => Fate::Lost,
            Self::All => Fate::Whole,
            Self::Random(rng) => match rng.below(5) {
                0 | 1 => Fate::Whole,
                2 => Fate::Torn,
                _ => Fate::Lost,
            },
        }
    }

    fn coin(&mut self) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Random(rng) => rng.below(2) == 0,
        }
    }
}

/// Numbers that are the same every time (Knuth's MMIX constants).
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}
