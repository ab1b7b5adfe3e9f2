//! The words of the command line: help texts, man pages and completions come from one definition and stay whole.

mod common;

use common::Sandbox;

#[test]
fn help_is_as_recorded() {
    let help = Sandbox::new().run(["--help"]);
    snapbox::assert_data_eq!(help, snapbox::file!["snapshots/help.txt"]);
}

/// Every verb that `--help` lists explains itself, and has a man page.
#[test]
fn every_verb_has_help_and_a_man_page() {
    let sandbox = Sandbox::new();
    let man = sandbox.mkdir("man");
    sandbox.run(["man".as_ref(), man.as_os_str()]);
    let help = sandbox.run(["--help"]);
    let list = help
        .split("Commands:\n")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .expect("a list of commands");
    let verbs: Vec<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|v| !v.is_empty())
        .collect();
    assert!(verbs.len() > 15, "{verbs:?}");
    for verb in verbs {
        let own = sandbox.run([verb, "--help"]);
        assert!(own.contains(&format!("Usage: ovl {verb}")), "{own}");
        let page = std::fs::read_to_string(man.join(format!("ovl-{verb}.1"))).unwrap();
        assert!(
            page.contains(".TH") && page.contains("NAME"),
            "{verb}: {page}"
        );
    }
    assert!(
        !man.join("ovl-man.1").exists(),
        "the hidden verb has no page"
    );
}

#[test]
fn completions_name_the_verbs() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = sandbox.run(["completion", shell]);
        assert!(
            script.contains("import") && script.contains("umount"),
            "{shell}"
        );
    }
    sandbox.fail(2, ["completion", "tcsh"]);
}

#[test]
fn version_is_the_crates() {
    let sandbox = Sandbox::new();
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        sandbox
            .run(["version"])
            .starts_with(&format!("ovl {version} "))
    );
    assert_eq!(sandbox.run(["--version"]), format!("ovl {version}\n"));
}
