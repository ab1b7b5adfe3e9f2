//! Any order of opening, mapping, changing and closing one file, from several hands: on the mount it must look as on a
//! plain file, without an error that the plain file does not give.
//!
//! `OVL_PASSTHROUGH_SEQUENCES` sets how many sequences; a failing one prints its seed and steps.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::data::{Mapping, same_attributes};
use super::{both, on_each, pattern};

const SIZE: usize = 20_000;
const STEPS: usize = 60;

/// xorshift64*: small, and the same on every machine.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Flags of open(2).
    Open(i32),
    Close(usize),
    /// To be written, where the file is open so.
    Map(usize),
    Unmap(usize),
    Poke(usize, usize, u8),
    Peek(usize, usize),
    Read(usize, usize, usize),
    Write(usize, usize, usize, u8),
    Cut(usize, usize),
    CutByName(usize),
    Stat,
    Sync(usize),
    Rename,
    Link,
    DropCaches,
}

const MODES: [i32; 8] = [
    libc::O_RDONLY,
    libc::O_RDONLY,
    libc::O_RDWR,
    libc::O_RDWR,
    libc::O_WRONLY,
    libc::O_WRONLY | libc::O_APPEND,
    libc::O_RDWR | libc::O_TRUNC,
    libc::O_WRONLY | libc::O_TRUNC,
];

fn choose(rng: &mut Rng, files: usize, maps: usize) -> Step {
    let mut any = |n: usize| rng.below(n.max(1));
    let (file, map) = (any(files), any(maps));
    let (at, len, byte) = (any(SIZE), any(SIZE / 2), any(256) as u8);
    match any(100) {
        0..25 => Step::Open(MODES[any(MODES.len())]),
        25..45 => Step::Close(file),
        45..52 => Step::Map(file),
        52..57 => Step::Unmap(map),
        57..63 => Step::Poke(map, at, byte),
        63..67 => Step::Peek(map, at),
        67..76 => Step::Read(file, at, len),
        76..86 => Step::Write(file, at, len, byte),
        86..88 => Step::Cut(file, at),
        88..89 => Step::CutByName(at),
        89..94 => Step::Stat,
        94..96 => Step::Sync(file),
        96..97 => Step::Rename,
        97..98 => Step::Link,
        98 => Step::DropCaches,
        _ => Step::Open(libc::O_RDWR),
    }
}

struct Mapped {
    map: Mapping,
    writable: bool,
}

/// One of the two places.
struct Place {
    path: PathBuf,
    files: Vec<(File, i32)>,
    maps: Vec<Mapped>,
}

type Said = Result<Vec<u8>, Option<i32>>;

impl Place {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            files: Vec::new(),
            maps: Vec::new(),
        }
    }

    fn do_step(&mut self, step: Step) -> Said {
        let none = Ok(Vec::new());
        let told = |e: std::io::Error| e.raw_os_error();
        match step {
            Step::Open(flags) => {
                let access = flags & libc::O_ACCMODE;
                let file = fs::OpenOptions::new()
                    .read(access != libc::O_WRONLY)
                    .write(access != libc::O_RDONLY)
                    .custom_flags(flags & !libc::O_ACCMODE)
                    .open(&self.path)
                    .map_err(told)?;
                self.files.push((file, flags));
                none
            }
            Step::Close(file) if file < self.files.len() => {
                self.files.remove(file);
                none
            }
            Step::Map(file) if file < self.files.len() => {
                let (file, flags) = &self.files[file];
                let access = flags & libc::O_ACCMODE;
                if access != libc::O_WRONLY {
                    let writable = access == libc::O_RDWR;
                    let map = Mapping::new(file, SIZE, writable);
                    self.maps.push(Mapped { map, writable });
                }
                none
            }
            Step::Unmap(map) if map < self.maps.len() => {
                self.maps.remove(map);
                none
            }
            // Behind the end of the file there is nothing that could be touched.
            Step::Poke(map, at, byte) if self.reaches(map, at) => {
                if self.maps[map].writable {
                    self.maps[map].map.write(at, byte);
                }
                none
            }
            Step::Peek(map, at) if self.reaches(map, at) => Ok(vec![self.maps[map].map.read(at)]),
            Step::Read(file, at, len) if file < self.files.len() => {
                let mut bytes = vec![0; len];
                let got = self.files[file].0.read_at(&mut bytes, at as u64);
                bytes.truncate(got.map_err(told)?);
                Ok(bytes)
            }
            Step::Write(file, at, len, byte) if file < self.files.len() => {
                let bytes = pattern(len, usize::from(byte));
                self.files[file]
                    .0
                    .write_all_at(&bytes, at as u64)
                    .map_err(told)?;
                none
            }
            Step::Cut(file, len) if file < self.files.len() => {
                self.files[file].0.set_len(len as u64).map_err(told)?;
                none
            }
            Step::CutByName(len) => {
                let path = CString::new(self.path.as_os_str().as_bytes()).unwrap();
                // SAFETY: a path that ends with a NUL, which lives until then.
                match unsafe { libc::truncate(path.as_ptr(), len as libc::off_t) } {
                    0 => none,
                    _ => Err(told(std::io::Error::last_os_error())),
                }
            }
            Step::Stat => Ok(self.size().to_ne_bytes().to_vec()),
            Step::Sync(file) if file < self.files.len() => {
                self.files[file].0.sync_all().map_err(told)?;
                none
            }
            Step::Rename => {
                let new = self.path.with_file_name(match self.path.ends_with("one") {
                    true => "two",
                    false => "one",
                });
                fs::rename(&self.path, &new).map_err(told)?;
                self.path = new;
                none
            }
            Step::Link => {
                let new = self.path.with_file_name("linked");
                let _ = fs::remove_file(&new);
                fs::hard_link(&self.path, &new).map_err(told)?;
                Ok(fs::read(&new).map_err(told)?)
            }
            Step::DropCaches => {
                fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                none
            }
            _ => none,
        }
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.path).unwrap().len()
    }

    fn reaches(&self, map: usize, at: usize) -> bool {
        map < self.maps.len() && (at as u64) < self.size()
    }
}

#[test]
fn any_order_looks_as_on_a_plain_file() {
    let sequences = std::env::var("OVL_PASSTHROUGH_SEQUENCES").map_or(60, |n| {
        n.parse().expect("OVL_PASSTHROUGH_SEQUENCES is a number")
    });
    on_each(
        |site| {
            for seed in 0..sequences {
                let dir = site.path(&format!("lower/{seed}"));
                fs::create_dir(&dir).unwrap();
                fs::write(dir.join("one"), pattern(SIZE, seed as usize)).unwrap();
            }
        },
        |site, _| {
            for seed in 0..sequences {
                let plain = site.path(&format!("plain/{seed}"));
                fs::create_dir_all(&plain).unwrap();
                fs::write(plain.join("one"), pattern(SIZE, seed as usize)).unwrap();
                let shown = site.path(&format!("mnt/{seed}"));
                let upper = site.path(&format!("upper/{seed}"));
                // Every other one is of the upper from the beginning.
                if seed % 2 == 1 {
                    fs::remove_file(shown.join("one")).unwrap();
                    fs::write(shown.join("one"), pattern(SIZE, seed as usize)).unwrap();
                }
                sequence(seed, &shown, &plain, &upper);
            }
        },
    );
}

fn sequence(seed: u64, shown: &Path, plain: &Path, upper: &Path) {
    let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9) | 1 << 40);
    let mut places = [shown, plain].map(|dir| Place::new(dir.join("one")));
    let mut steps = Vec::new();
    for _ in 0..STEPS {
        let step = choose(&mut rng, places[0].files.len(), places[0].maps.len());
        steps.push(step);
        let [said, expected] = places.each_mut().map(|place| place.do_step(step));
        assert!(
            said == expected,
            "seed {seed}, answers differ after {steps:?}"
        );
        let bytes = places
            .each_ref()
            .map(|place| fs::read(&place.path).unwrap());
        assert!(
            bytes[0] == bytes[1],
            "seed {seed}, bytes differ after {steps:?}"
        );
        let kept = upper.join(places[0].path.file_name().unwrap());
        if kept.exists() {
            same_attributes(&places[0].path, &kept);
        }
    }
}

/// Many who open and close the same files, of which some are just being copied up: everybody finds what is their own.
#[test]
fn opens_and_closes_race() {
    on_each(
        |site| {
            for name in ["a", "b"] {
                fs::write(site.path("lower").join(name), vec![b'.'; 8 * 4096]).unwrap();
            }
        },
        |site, _| {
            let mnt = site.path("mnt");
            let ended = AtomicBool::new(false);
            for round in 0..6 {
                let names = ["a".to_owned(), "b".to_owned(), format!("new{round}")];
                fs::write(mnt.join(&names[2]), vec![b'.'; 8 * 4096]).unwrap();
                if round > 0 {
                    for name in &names[..2] {
                        // What was copied up comes from the lower once more.
                        let fresh = format!("lower{round}-{name}");
                        fs::rename(mnt.join(name), mnt.join(fresh)).unwrap();
                        fs::write(mnt.join(name), vec![b'.'; 8 * 4096]).unwrap();
                    }
                }
                ended.store(false, Ordering::Relaxed);
                std::thread::scope(|scope| {
                    for client in 0..6_u64 {
                        let (mnt, names, ended) = (&mnt, &names, &ended);
                        scope.spawn(move || {
                            let mut rng = Rng(client + 7 + round * 100);
                            let mut count = 0_u64;
                            while !ended.load(Ordering::Relaxed) {
                                let path = mnt.join(&names[rng.below(3)]);
                                if client % 3 == 0 {
                                    let file = File::open(&path).unwrap();
                                    let mut bytes = [0; 100];
                                    file.read_exact_at(&mut bytes, client).unwrap();
                                    continue;
                                }
                                let file = both().open(&path).unwrap();
                                let at = client * 4096 + 200 + count % 3000;
                                count += 1;
                                file.write_all_at(&count.to_ne_bytes(), at).unwrap();
                                let other = File::open(&path).unwrap();
                                drop(file);
                                let mut found = [0; 8];
                                other.read_exact_at(&mut found, at).unwrap();
                                assert_eq!(u64::from_ne_bytes(found), count);
                            }
                        });
                    }
                    std::thread::sleep(Duration::from_millis(300));
                    ended.store(true, Ordering::Relaxed);
                });
            }
        },
    );
}
