//! Requests as a kernel would put them into a ring, of any bytes: the codec and the engine behind it answer each within its
//! bounds, never panic, and touch nothing outside the mount's own directories.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ovl::fuse::Config;
use ovl::fuse::offline::{Answered, Offline};
use ovl::layer::DirLayer;
use ovl::overlay::{Options, Overlay, Stack, UpperDirs};

/// Requests taken from one input.
const MOST: usize = 40;
/// `enum fuse_opcode` of linux/fuse.h: those whose answer begins with an entry.
const WITH_ENTRY: [u32; 7] = [1, 6, 8, 9, 13, 35, 51];
const FORGET: u32 = 2;
/// Bytes of `struct fuse_entry_out`.
const ENTRY: usize = 128;
const ROOM: usize = 64 << 10;
const NAMES: [&[u8]; 12] = [
    b"file",
    b"dir",
    b"dir/inner",
    b"inner",
    b"link",
    b"new",
    b"..",
    b".",
    b"../canary",
    b"/",
    b"",
    b"user.a",
];

/// The input, eaten up from its beginning.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

pub fn wire(data: &[u8]) {
    let ground = super::scratch();
    let at = |name: &str| ground.path().join(name);
    for dir in ["lower/dir", "upper", "work"] {
        fs::create_dir_all(at(dir)).expect("directories");
    }
    for (name, content) in [
        ("lower/file", &[1; 5000][..]),
        ("lower/dir/inner", b"inner"),
        ("canary", b"untouched"),
    ] {
        fs::write(at(name), content).expect("files");
    }
    std::os::unix::fs::symlink("../../canary", at("lower/link")).expect("a symlink");
    let mut input = Bytes(data);
    let kind = input.byte();
    let upper = (kind & 1 != 0).then(|| UpperDirs {
        upper: at("upper"),
        work: at("work"),
    });
    let lower = DirLayer::open(&at("lower")).expect("a layer");
    let stack = Stack {
        lowers: vec![Arc::new(lower)],
        upper,
    };
    let engine = Arc::new(Overlay::new(stack, &Options::default()).expect("an engine"));
    let config = Config {
        no_open: kind & 2 != 0,
        writeback: kind & 4 != 0,
        ..Config::default()
    };
    let mut kernel = Offline::new(engine, &config);
    let mut nodes: BTreeSet<u64> = [1].into();
    for _ in 0..MOST {
        if input.0.is_empty() {
            break;
        }
        one(&mut kernel, &mut input, &mut nodes);
    }
    assert_eq!(kernel.counters().panics(), 0, "a request ended by a panic");
    // Whatever came before, a well-formed question is answered.
    let root = head(3, 1);
    let answered = kernel.request(&root, &[0; 16], &[]).expect("a header");
    assert!(
        matches!(answered, Answered::Bytes(bytes) if bytes.len() == 104),
        "{answered:?}"
    );
    drop(kernel);
    assert_eq!(fs::read(at("canary")).expect("the canary"), b"untouched");
    let lower = fs::read(at("lower/file")).expect("the lower file");
    assert!(lower == [1; 5000], "a lower file was changed");
    assert_eq!(names(ground.path()), ["canary", "lower", "upper", "work"]);
    assert_eq!(names(&at("lower")), ["dir", "file", "link"]);
}

fn names(dir: &Path) -> Vec<String> {
    let list = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<_> = list
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    names.sort();
    names
}

/// `struct fuse_in_header` of root.
fn head(opcode: u32, node: u64) -> Vec<u8> {
    let mut head = [0_u32, opcode].map(u32::to_ne_bytes).concat();
    head.extend([9_u64, node].map(u64::to_ne_bytes).concat());
    head.extend([0_u32, 0, 1, 0].map(u32::to_ne_bytes).concat());
    head
}

fn one(kernel: &mut Offline, input: &mut Bytes<'_>, nodes: &mut BTreeSet<u64>) {
    let opcode = u32::from(input.byte() % 56);
    let pick = |input: &mut Bytes<'_>| match input.byte() {
        255 => u64::MAX,
        254 => 0,
        n => *nodes
            .iter()
            .nth(usize::from(n) % nodes.len())
            .expect("there is always the root"),
    };
    let node = pick(input);
    let shape = input.byte();
    // Words of eight bytes: small numbers, known nodes, or what the input says.
    let mut words = Vec::new();
    for _ in 0..shape % 14 {
        let word = match input.byte() {
            0..=99 => u64::from(input.byte()),
            100..=139 => pick(input),
            140..=179 => u64::from(input.byte()) | u64::from(input.byte()) << 32,
            180..=199 => u64::MAX >> (input.byte() % 64),
            _ => {
                let mut raw = [0; 8];
                let taken = input.take(8);
                raw[..taken.len()].copy_from_slice(taken);
                u64::from_ne_bytes(raw)
            }
        };
        words.extend(word.to_ne_bytes());
    }
    let mut rest = Vec::new();
    for _ in 0..shape >> 4 & 3 {
        let n = input.byte();
        match NAMES.get(usize::from(n % 16)) {
            Some(name) => rest.extend_from_slice(name),
            None => rest.extend_from_slice(input.take(usize::from(n >> 4))),
        }
        if n & 128 == 0 {
            rest.push(0);
        }
    }
    // As many bytes as a WRITE says that it has.
    if shape & 64 != 0 && words.len() >= 24 {
        words[16..20].copy_from_slice(&(rest.len() as u32).to_ne_bytes());
    }
    if shape & 128 != 0 && words.len() > 4 {
        // SETXATTR: the length of the value, which is what lies behind the name.
        let name = rest.iter().position(|byte| *byte == 0);
        let value = name.map_or(0, |end| rest.len() - end - 1);
        words[..4].copy_from_slice(&(value as u32).to_ne_bytes());
        words[4..8].fill(0);
    }
    let answered = kernel.request(&head(opcode, node), &words, &rest);
    match answered.expect("a header") {
        Answered::Bytes(bytes) => {
            assert!(bytes.len() <= ROOM);
            if WITH_ENTRY.contains(&opcode) {
                assert!(bytes.len() >= ENTRY, "an entry cut short");
                let found = u64::from_ne_bytes(*bytes.first_chunk().expect("a node"));
                if found != 0 {
                    nodes.insert(found);
                }
            }
            if opcode == FORGET && node != 1 {
                nodes.remove(&node);
            }
        }
        Answered::Error(code) => assert!((1..512).contains(&code), "no errno: {code}"),
        Answered::Later => assert_eq!(opcode, 46, "only LSEEK is answered later"),
    }
}
