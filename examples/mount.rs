//! Mounts through the library, without the command line: `mount RUN LOWER UPPER MOUNTPOINT [WORD…]`.
//! UPPER may be empty. Words: `foreground`, `create`, `open`, `no-writeback`, `volatile`.

use std::path::Path;
use std::process::ExitCode;

use ovl::mount::{self, Flags, MountSpec, RunDir, UpperSpec};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [run, lower, upper, mount_point, words @ ..] = &args[..] else {
        eprintln!("mount RUN LOWER UPPER MOUNTPOINT [WORD…]");
        return ExitCode::from(2);
    };
    match mounted(run, lower, upper, mount_point, words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn mounted(run: &str, lower: &str, upper: &str, mount_point: &str, words: &[String]) -> mount::Result<()> {
    let has = |word: &str| words.iter().any(|w| w == word);
    let spec = MountSpec {
        lowers: mount::parse_lowers(lower.as_ref())?,
        upper: (!upper.is_empty()).then(|| UpperSpec { upper: upper.into(), work: None, create: has("create") }),
        mount_point: mount_point.into(),
        store_root: Path::new(run).join("store"),
        resolve_image: mount::exact_name,
        run_dir: RunDir::at(Path::new(run)).map_err(|e| mount::Error::Usage(e.to_string()))?,
        flags: Flags::default(),
        fuse: ovl::fuse::Config {
            writeback: !has("no-writeback"),
            no_open: !has("open"),
            ..ovl::fuse::Config::default()
        },
        overlay: ovl::overlay::Options { volatile: has("volatile"), ..ovl::overlay::Options::default() },
        foreground: has("foreground"),
        log_file: None,
    };
    mount::run(&spec, |record| println!("{}", record.id))
}
