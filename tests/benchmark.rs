//! The benchmark itself, run in small: what it measures, keeps, prints and draws, and what it leaves behind.

#[path = "../benches/main.rs"]
mod benchmark;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Not a test by itself: the benchmark, as the tests below start it, with words that the harness does not understand.
#[test]
#[ignore = "started by the other tests"]
fn harness() {
    if std::env::var_os("OVL_BENCH_WORDS").is_some() {
        benchmark::main().unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// The benchmark with these words, its temporary files in `place`.
fn bench(place: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "harness", "--ignored", "--nocapture"])
        .env("OVL_BENCH_WORDS", words.join("\n"))
        .env("TMPDIR", place)
        .stdin(Stdio::null());
    command
}

/// Runs it; gives what it said, on both outputs.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn row<'a>(results: &'a Value, id: &str) -> &'a Value {
    let rows = results["rows"].as_array().unwrap();
    let found = rows.iter().find(|row| row["id"] == id);
    found.unwrap_or_else(|| panic!("no row {id} in {results}"))
}

/// Whatever has been left of a run in `place`: files, loop devices, processes.
fn left_in(place: &Path) -> Vec<String> {
    let name = place.to_str().unwrap();
    let mut left: Vec<String> = fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    for entry in fs::read_dir("/sys/block").unwrap() {
        let file = entry.unwrap().path().join("loop/backing_file");
        left.extend(
            fs::read_to_string(file)
                .into_iter()
                .filter(|path| path.contains(name)),
        );
    }
    for entry in fs::read_dir("/proc").unwrap() {
        let words = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        left.extend(Some(words).filter(|words| words.contains(name)));
    }
    left
}

/// The kernel frees a loop device a little after its last mount is gone.
fn assert_nothing_left(place: &Path) {
    let begun = Instant::now();
    while !left_in(place).is_empty() {
        let left = left_in(place);
        assert!(begun.elapsed() < Duration::from_secs(20), "left: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every group of rows on two systems, then a part of it again with a system that is missing and a program that fails:
/// what is measured again replaces what was kept, all else stays, and the page tells which is which.
#[test]
fn a_run_and_then_a_part_of_it() {
    let home = tempfile::Builder::new()
        .prefix("ovl-test-")
        .tempdir()
        .unwrap();
    let [out, place, programs] = ["out", "place", "programs"].map(|name| home.path().join(name));
    for dir in [&place, &programs] {
        fs::create_dir(dir).unwrap();
    }
    let out_word = out.to_str().unwrap();
    let groups = "data,metadata,changes,programs,memory,mount";
    let words = [
        "--mode",
        "smoke",
        "--only",
        groups,
        "--systems",
        "ovl",
        "--out",
        out_word,
    ];
    let (ended_well, said) = run(&mut bench(&place, &words));
    assert!(ended_well, "{said}");
    assert_nothing_left(&place);

    let kept = out.join("benchmarks/smoke.json");
    let mut results = json(&kept);
    assert_eq!(results["failures"], serde_json::json!([]), "{said}");
    let rows = results["rows"].as_array().unwrap();
    assert!(rows.len() > 40, "{} rows", rows.len());
    for row in rows {
        for system in ["ext4", "ovl"] {
            let value = row["values"][system][0].as_f64();
            assert!(value.is_some_and(|value| value > 0.0), "{row}");
        }
    }
    assert!(results["walks"]["ovl"]["idle"].as_u64().unwrap() > 1 << 20);
    assert_eq!(results["mounts"].as_array().unwrap().len(), 2);
    let page = fs::read_to_string(out.join("benchmarks.md")).unwrap();
    for group in groups.split(',') {
        assert!(
            page.contains(&format!("](benchmarks/{group}.svg)")),
            "{group}: {page}"
        );
        let svg = out.join(format!("benchmarks/{group}.svg"));
        let parser = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";
        let (is_xml, said) = run(Command::new("python3").args(["-c", parser]).arg(&svg));
        assert!(is_xml, "{}: {said}", svg.display());
    }
    assert!(page.contains("| SQLite transactions |") && page.contains("## Real programs"));

    // As if it had been measured long ago.
    for row in results["rows"].as_array_mut().unwrap() {
        row["stamp"]["commit"] = "before".into();
    }
    for (_, stamp) in results["stamps"].as_object_mut().unwrap() {
        stamp["commit"] = "before".into();
    }
    fs::write(&kept, results.to_string()).unwrap();
    std::os::unix::fs::symlink("/bin/false", programs.join("sqlite3")).unwrap();
    let path = std::env::var("PATH").unwrap();
    let words = [
        "--mode",
        "smoke",
        "--only",
        "stat,sqlite,mount",
        "--systems",
        "ovl,fo2",
        "--peer",
        "/no/such/program",
        "--repetitions",
        "2",
        "--out",
        out_word,
    ];
    let (ended_well, said) =
        run(bench(&place, &words).env("PATH", format!("{}:{path}", programs.display())));
    assert!(ended_well, "{said}");
    assert_nothing_left(&place);

    let joined = json(&kept);
    let of = |id: &str| row(&joined, id)["stamp"]["commit"].as_str().unwrap();
    assert_ne!(of("stat.warm"), "before");
    assert_eq!(
        row(&joined, "stat.cold")["values"]["ovl"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    assert_eq!((of("find.warm"), of("dbench")), ("before", "before"));
    assert_ne!(joined["stamps"]["mount"]["commit"], "before");
    assert_eq!(joined["stamps"]["memory"]["commit"], "before");
    let ids = |results: &Value| -> Vec<String> {
        let rows = results["rows"].as_array().unwrap();
        rows.iter().map(|row| row["id"].to_string()).collect()
    };
    assert_eq!(ids(&joined), ids(&results), "the order of the page");
    let page = fs::read_to_string(out.join("benchmarks.md")).unwrap();
    assert!(page.contains("Measured at commit before"), "{page}");
    assert!(
        page.contains("; stat, cold; stat, warm at commit "),
        "{page}"
    );
    assert!(
        page.contains("fuse-overlayfs 2.x: "),
        "the missing system is named: {page}"
    );
    assert!(
        page.contains("- sqlite, ovl, directory, repetition 1: "),
        "{page}"
    );
    assert!(page.contains("- sqlite, ext4, repetition 2: "), "{page}");
    assert!(!page.contains(home.path().to_str().unwrap()), "{page}");
}

/// An interrupted benchmark leaves nothing mounted, running, attached or written.
#[test]
fn an_interrupt_leaves_nothing() {
    let place = tempfile::Builder::new()
        .prefix("ovl-test-")
        .tempdir()
        .unwrap();
    let words = ["--mode", "smoke", "--only", "mount", "--systems", "ovl"];
    let mut child = bench(place.path(), &words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Until ovl has been asked for something in there: the file system is mounted then.
    let begun = Instant::now();
    while !left_in(place.path())
        .iter()
        .any(|what| what.contains("/ovl --root "))
    {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "ovl is never run"
        );
        assert!(child.try_wait().unwrap().is_none(), "it ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    let is_loop = |what: &String| what.ends_with("(deleted)\n");
    assert!(
        left_in(place.path()).iter().any(is_loop),
        "a loop device is in use"
    );
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_nothing_left(place.path());
}

/// What cannot be measured, or cannot stand beside what is kept, is refused before anything is done.
#[test]
fn senseless_words_are_refused_at_once() {
    let home = tempfile::Builder::new()
        .prefix("ovl-test-")
        .tempdir()
        .unwrap();
    let out = home.path().join("out");
    let kept = out.join("benchmarks/quick.json");
    fs::create_dir_all(out.join("benchmarks")).unwrap();
    let mut results = json(Path::new("docs/benchmarks/quick.json"));
    results["sizes"]["opens"] = 7.into();
    fs::write(&kept, results.to_string()).unwrap();
    let before = fs::read(&kept).unwrap();
    let out = out.to_str().unwrap();
    for (words, wanted) in [
        (&["--only", "nonsense"][..], "no such row or group"),
        (
            &["--systems", "ext5"],
            "no such system; there are ext4, kernel",
        ),
        (&["--repetitions", "0"], "measures nothing"),
        (
            &["--mode", "quick", "--systems", "ovl", "--out", out],
            "too, which would be lost",
        ),
        (
            &["--mode", "quick", "--only", "stat", "--out", out],
            "other amounts of work",
        ),
    ] {
        let (ended_well, said) = run(&mut bench(home.path(), words));
        assert!(!ended_well && said.contains(wanted), "{words:?}: {said}");
    }
    assert_eq!(fs::read(&kept).unwrap(), before);
}

/// The page and the plots come from the kept results alone: the ones in the repository belong together. If they do not:
/// `cargo bench --bench ovl -- --render docs/benchmarks/quick.json --out docs`.
#[test]
fn the_page_in_the_repository_is_that_of_its_results() {
    let home = tempfile::Builder::new()
        .prefix("ovl-test-")
        .tempdir()
        .unwrap();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = fs::read_to_string(docs.join("benchmarks.md")).unwrap();
    let results = match page.contains("`docs/benchmarks/full.json`") {
        true => "benchmarks/full.json",
        false => "benchmarks/quick.json",
    };
    let results = docs.join(results);
    let words = [
        "--render",
        results.to_str().unwrap(),
        "--out",
        home.path().to_str().unwrap(),
    ];
    let (ended_well, said) = run(&mut bench(home.path(), &words));
    assert!(ended_well, "{said}");
    assert_eq!(
        fs::read_to_string(home.path().join("benchmarks.md")).unwrap(),
        page
    );
    for entry in fs::read_dir(home.path().join("benchmarks")).unwrap() {
        let name = entry.unwrap().file_name();
        let [new, kept] =
            [home.path(), &docs].map(|at| fs::read(at.join("benchmarks").join(&name)));
        assert!(
            new.unwrap() == kept.unwrap(),
            "{name:?} is not drawn from the results"
        );
    }
}
