//! What is measured on: the lower tree (a Debian root, many small files, files to be changed, a big directory, a crate, one
//! big file), trees for walks and mounts, an archive to unpack, a repository to clone, a package to install. All of it inside the arena.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::arena::Arena;
use super::command::{command, output, run};
use super::session::{Lower, ovl};
use super::settings::Sizes;
use super::stats::Random;

/// Names inside the lower tree.
pub const DEBIAN: &str = "debian";
pub const CHANGES: &str = "changes";
pub const BIG: &str = "big/data";
pub const BIG_DIRECTORY: &str = "many";
pub const CRATE: &str = "crate";

const FILES_PER_DIRECTORY: usize = 100;
/// Small files are 64 B to this.
const SMALL: usize = 6 << 10;

pub struct Corpus {
    pub lower: Lower,
    /// Small files of the lower tree, in random order, relative to it.
    pub small: Vec<String>,
    /// Directory of empty files.
    pub walk: Lower,
    /// Images whose mount is timed, with their number of files.
    pub mounted: Vec<(Lower, usize)>,
    /// The tar of a Debian root, or a part of one.
    pub archive: PathBuf,
    /// A git repository, packed.
    pub repository: PathBuf,
    /// A Debian package of small files.
    pub package: PathBuf,
}

impl Corpus {
    /// The trees that are walked and mounted are made if they are `wanted`: that takes a while.
    pub fn new(arena: &Arena, sizes: &Sizes, wanted: bool) -> Result<Self> {
        let at = |name: &str| arena.path().join(name);
        let mut random = Random::new(1);
        let lower = Lower {
            dir: at("lower"),
            image: "bench:lower",
        };
        let archive = debian(&lower.dir, &at("root.tar"), &sizes.unpack)?;
        let mut small = small_files(&lower.dir, "small", sizes.small_files, &mut random)?;
        random.shuffle(&mut small);
        small_files(&lower.dir, CHANGES, sizes.lower_changes, &mut random)?;
        big_file(&lower.dir.join(BIG), sizes.big_file, &mut random)?;
        big_directory(&lower.dir.join(BIG_DIRECTORY), sizes.big_directory)?;
        rust_crate(&lower.dir.join(CRATE), sizes.crate_modules)?;
        let package = package(&at("package"), sizes.package_files, &mut random)?;
        let repository = repository(&at("repository"), sizes.clone_files, &mut random)?;

        let walk = Lower {
            dir: at("walk"),
            image: "bench:walk",
        };
        let mut mounted = vec![
            (
                Lower {
                    dir: at("few"),
                    image: "bench:few",
                },
                1000,
            ),
            (walk.clone(), sizes.walk_files),
            (
                Lower {
                    dir: at("huge"),
                    image: "bench:huge",
                },
                sizes.huge_files,
            ),
        ];
        mounted.retain(|(_, files)| wanted && *files > 0);
        for (tree, files) in &mounted {
            empty_files(&tree.dir, *files)?;
            import(arena, tree)?;
        }
        import(arena, &lower)?;
        arena.settle()?;
        Ok(Self {
            lower,
            small,
            walk,
            mounted,
            archive,
            repository,
            package,
        })
    }
}

/// Unpacks the Debian root of the test images, and makes the archive to be unpacked later.
fn debian(lower: &Path, archive: &Path, parts: &[String]) -> Result<PathBuf> {
    let images = test_images("base")?;
    let root = lower.join(DEBIAN);
    fs::create_dir_all(&root)?;
    run(command("tar", ["-xpf"])
        .arg(images.join("base.tar"))
        .arg("-C")
        .arg(&root))?;
    let all = [".".to_owned()];
    let members = if parts.is_empty() { &all } else { parts };
    run(command("tar", ["-cf"])
        .arg(archive)
        .arg("-C")
        .arg(&root)
        .args(members))?;
    Ok(archive.to_owned())
}

/// Directory of the project's own test images, made if need be.
pub fn test_images(set: &str) -> Result<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/images.sh");
    Ok(output(&mut command(script, [set]))?.trim().into())
}

/// `count` files of words, in directories of a hundred. Gives their paths relative to `root`.
fn small_files(root: &Path, name: &str, count: usize, random: &mut Random) -> Result<Vec<String>> {
    let mut paths = Vec::with_capacity(count);
    for number in 0..count {
        let dir = format!("{name}/d{:03}", number / FILES_PER_DIRECTORY);
        if number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir_all(root.join(&dir))?;
        }
        let path = format!("{dir}/f{number:05}");
        fs::write(root.join(&path), text(64 + random.below(SMALL), random))?;
        paths.push(path);
    }
    Ok(paths)
}

/// Text that compresses about as source code does.
fn text(bytes: usize, random: &mut Random) -> String {
    const WORDS: [&str; 16] = [
        "let", "mount", "(", ")", "layer", "=>", "return", "node", ";\n", "match", "entry", "if",
        "{\n", "}\n", "u64", "name",
    ];
    let mut text = String::with_capacity(bytes + 24);
    while text.len() < bytes {
        let bits = random.next();
        text.push_str(WORDS[(bits & 15) as usize]);
        text.push(' ');
        if bits & 0x30 == 0 {
            text.push_str(&format!("{:x}", bits >> 32));
        }
    }
    text.truncate(bytes);
    text
}

fn big_file(path: &Path, bytes: u64, random: &mut Random) -> Result<()> {
    fs::create_dir_all(path.parent().context("inside the lower tree")?)?;
    let mut file = File::create_new(path)?;
    let mut block = vec![0; 1 << 20];
    for _ in 0..bytes >> 20 {
        random.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}

fn empty_files(root: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let dir = root.join(format!("d{:04}", number / FILES_PER_DIRECTORY));
        if number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir_all(&dir)?;
        }
        File::create_new(dir.join(format!("f{number:07}")))?;
    }
    Ok(())
}

fn repository(at: &Path, files: usize, random: &mut Random) -> Result<PathBuf> {
    small_files(at, "src", files, random)?;
    let git = |words: &[&str]| {
        let mut git = git();
        git.args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]);
        run(git.arg("-C").arg(at).args(words))
    };
    git(&["init", "-q"])?;
    git(&["add", "."])?;
    git(&["commit", "-q", "-m", "all"])?;
    git(&["repack", "-q", "-a", "-d"])?;
    Ok(at.to_owned())
}

/// git without this machine's settings.
pub fn git() -> Command {
    let mut git = command("git", [""; 0]);
    git.env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null");
    git
}

fn big_directory(at: &Path, count: usize) -> Result<()> {
    fs::create_dir_all(at)?;
    for number in 0..count {
        File::create_new(at.join(format!("entry-{number:06}")))?;
    }
    Ok(())
}

/// A crate without dependencies: a program over so many modules, each used.
fn rust_crate(at: &Path, modules: usize) -> Result<()> {
    let src = at.join("src");
    fs::create_dir_all(&src)?;
    fs::write(
        at.join("Cargo.toml"),
        "[package]\nname = \"benchmark\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[workspace]\n",
    )?;
    let mut main = String::new();
    let mut sum = String::from("fn main() {\n    let mut sum = 0u64;\n");
    for number in 0..modules {
        let module = format!(
            "/// Adds what is in a map of words.\npub fn work(seed: u64) -> u64 {{\n    \
            let mut map = std::collections::BTreeMap::new();\n    \
            for n in 0..seed + {number} {{\n        map.insert(format!(\"word {{n}}\"), n);\n    }}\n    \
            map.iter().map(|(word, n)| word.len() as u64 + n).sum()\n}}\n"
        );
        fs::write(src.join(format!("m{number:03}.rs")), module)?;
        main += &format!("mod m{number:03};\n");
        sum += &format!("    sum += m{number:03}::work({number});\n");
    }
    sum += "    assert!(sum < u64::MAX);\n}\n";
    Ok(fs::write(src.join("main.rs"), main + &sum)?)
}

/// A Debian package of so many small files, without scripts, not compressed: unpacking is what is measured.
fn package(at: &Path, files: usize, random: &mut Random) -> Result<PathBuf> {
    small_files(&at.join("tree/usr/share"), "ovl-benchmark", files, random)?;
    let control = at.join("tree/DEBIAN");
    fs::create_dir(&control)?;
    fs::write(
        control.join("control"),
        "Package: ovl-benchmark\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\n\
        Description: small files to be installed\n",
    )?;
    let to = at.join("package.deb");
    run(
        command("dpkg-deb", ["--build", "--root-owner-group", "-Znone"])
            .arg(at.join("tree"))
            .arg(&to),
    )?;
    Ok(to)
}

/// Imports a tree as a root file system of one layer.
pub fn import(arena: &Arena, tree: &Lower) -> Result<()> {
    let mut tar = command("tar", ["-cf", "-", "-C"])
        .arg(&tree.dir)
        .arg(".")
        .stdout(Stdio::piped())
        .spawn()?;
    let pipe = tar.stdout.take().context("the pipe just made")?;
    run(ovl(arena, ["import", "--quiet", "--tag", tree.image, "-"]).stdin(pipe))?;
    anyhow::ensure!(
        tar.wait()?.success(),
        "tar of {} failed",
        tree.dir.display()
    );
    Ok(())
}
