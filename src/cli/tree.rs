//! `ovl tree`: what is in an image, without mounting it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use ovl::image::rfc3339;
use ovl::meta::{Attr, FileKind};
use ovl::view::{Listed, Node};
use serde::Serialize;

use super::Context;
use super::error::{escape, stdout_error};
use super::output::{self, Colour, Format, Paint};

/// List what is in an image
///
/// Shows the layers merged, as a mount would. Symlinks in PATH are followed inside the image.
#[derive(Args)]
pub struct Tree {
    /// A name or an ID
    #[arg(value_name = "IMAGE")]
    image: OsString,
    /// Where to begin
    #[arg(value_name = "PATH", default_value = "/")]
    path: OsString,
    /// Show so many levels below PATH
    #[arg(short = 'L', long, value_name = "DEPTH", default_value_t = usize::MAX, hide_default_value = true)]
    depth: usize,
    /// Show mode, owner, size and time
    #[arg(short, long)]
    long: bool,
    /// table or json
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    path: String,
    #[serde(rename = "Type")]
    kind: &'static str,
    /// Octal, as chmod takes it.
    mode: String,
    uid: u32,
    gid: u32,
    size: u64,
    modified: String,
    links: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Major and minor number.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
}

impl Tree {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let view = context.view(&self.image, "tree")?;
        let top = view.find(&self.path)?;
        if self.format == Format::Json {
            return output::json_list(|push| {
                push(&row(&top)?)?;
                view.list(&top, self.depth, &mut |listed| push(&row(listed.node)?))
            });
        }
        let paint = Paint::stdout();
        output::raw(|out| {
            let first = output::path(&top.path);
            let mut line = |branches: &str, node: &Node<'_>, name: &str| -> anyhow::Result<()> {
                let name = shown(node, name, paint)?;
                let facts = if self.long {
                    facts(&node.attr)
                } else {
                    String::new()
                };
                writeln!(out, "{facts}{branches}{name}").map_err(stdout_error)
            };
            line("", &top, &first)?;
            view.list(&top, self.depth, &mut |listed| {
                line(&branches(listed.more), listed.node, &last_name(listed))
            })
        })
    }
}

fn last_name(listed: &Listed<'_>) -> String {
    let path = listed.node.path.as_bytes();
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    output::name(OsStr::from_bytes(name))
}

fn branches(more: &[bool]) -> String {
    let Some((here, above)) = more.split_last() else {
        return String::new();
    };
    let mut text: String = above
        .iter()
        .map(|more| if *more { "│   " } else { "    " })
        .collect();
    text.push_str(if *here { "├── " } else { "└── " });
    text
}

/// The name in its colour; a slash after a directory's, the target after a symlink's.
fn shown(node: &Node<'_>, name: &str, paint: Paint) -> anyhow::Result<String> {
    let name = escape(name);
    let colour = match node.attr.kind {
        FileKind::Directory => Colour::Blue,
        FileKind::Symlink => Colour::Cyan,
        FileKind::Regular if node.attr.perm & 0o6000 != 0 => Colour::Red,
        FileKind::Regular if node.attr.perm & 0o111 != 0 => Colour::Green,
        FileKind::Regular => Colour::Plain,
        FileKind::CharDevice | FileKind::BlockDevice => Colour::Yellow,
        FileKind::Fifo | FileKind::Socket => Colour::Magenta,
    };
    let painted = paint.put(colour, &name);
    Ok(match node.attr.kind {
        FileKind::Directory if name != "/" => format!("{painted}/"),
        FileKind::Symlink => {
            let target = escape(&output::name(&node.target()?));
            format!("{painted} -> {target}")
        }
        _ => painted,
    })
}

/// As `ls -l` begins its lines, with numbers for owners: whose names they are only the image knows.
fn facts(attr: &Attr) -> String {
    let owner = format!("{}:{}", attr.uid, attr.gid);
    let size = match device(attr) {
        Some((major, minor)) => format!("{major}, {minor}"),
        None if attr.kind.is_dir() => "-".to_owned(),
        None => attr.size.to_string(),
    };
    let time = super::time::rfc3339(attr.mtime);
    format!("{} {owner:<11} {size:>10} {time}  ", mode(attr))
}

/// `drwxr-xr-t`, as POSIX `ls` writes it.
fn mode(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = attr.perm >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (attr.perm & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn device(attr: &Attr) -> Option<(u32, u32)> {
    let numbers = || (libc::major(attr.rdev), libc::minor(attr.rdev));
    attr.kind.is_device().then(numbers)
}

fn row(node: &Node<'_>) -> anyhow::Result<Row> {
    let attr = &node.attr;
    let target = match attr.kind {
        FileKind::Symlink => Some(output::name(&node.target()?)),
        _ => None,
    };
    let xattrs = node.xattrs()?;
    let xattrs = xattrs
        .iter()
        .map(|(name, value)| (output::name(name), output::name(OsStr::from_bytes(value))));
    Ok(Row {
        path: output::path(&node.path),
        kind: word(attr.kind),
        mode: format!("{:04o}", attr.perm),
        uid: attr.uid,
        gid: attr.gid,
        size: attr.size,
        modified: rfc3339(attr.mtime),
        links: attr.nlink,
        target,
        device: device(attr),
        xattrs: xattrs.collect(),
    })
}

fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ovl::meta::Timestamp;

    #[test]
    fn modes_look_like_those_of_ls() {
        let zero = Timestamp::default();
        for (kind, perm, want) in [
            (FileKind::Directory, 0o1777, "drwxrwxrwt"),
            (FileKind::Regular, 0o4755, "-rwsr-xr-x"),
            (FileKind::Regular, 0o6644, "-rwSr-Sr--"),
            (FileKind::Fifo, 0o1000, "p--------T"),
            (FileKind::Symlink, 0o777, "lrwxrwxrwx"),
        ] {
            let attr = Attr {
                kind,
                perm,
                uid: 0,
                gid: 0,
                size: 0,
                blocks: 0,
                nlink: 1,
                rdev: 0,
                atime: zero,
                mtime: zero,
                ctime: zero,
                blksize: 4096,
            };
            assert_eq!(mode(&attr), want);
        }
    }

    #[test]
    fn branches_show_what_follows() {
        assert_eq!(branches(&[true]), "├── ");
        assert_eq!(branches(&[true, false, false]), "│       └── ");
    }
}
