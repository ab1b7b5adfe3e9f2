//! `--change` of `ovl commit`: instructions of a Dockerfile that change an image's configuration.

use ovl::image::ConfigChanges;

use super::error::Failure;

/// Gathers instructions (`CMD ["sh"]`, `ENV A=b`, …) into changes.
pub fn parse(instructions: &[String]) -> anyhow::Result<ConfigChanges> {
    let mut changes = ConfigChanges::default();
    for instruction in instructions {
        let (word, rest) = instruction.split_once(' ').unwrap_or((instruction, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(Failure::usage(format!(
                "--change {instruction:?}: want an instruction and its argument"
            )));
        }
        let pair = || match rest.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok((key.to_owned(), unquoted(value).to_owned()))
            }
            _ => Err(Failure::usage(format!(
                "--change {instruction:?}: want KEY=VALUE"
            ))),
        };
        match word.to_ascii_uppercase().as_str() {
            "CMD" => changes.cmd = Some(command(rest, instruction)?),
            "ENTRYPOINT" => changes.entrypoint = Some(command(rest, instruction)?),
            "ENV" => changes.env.push(pair()?),
            "LABEL" => changes.labels.push(pair()?),
            "WORKDIR" => changes.workdir = Some(rest.to_owned()),
            "USER" => changes.user = Some(rest.to_owned()),
            "EXPOSE" => changes.exposed.extend(rest.split_whitespace().map(port)),
            "VOLUME" => changes
                .volumes
                .extend(rest.split_whitespace().map(str::to_owned)),
            "STOPSIGNAL" => changes.stop_signal = Some(rest.to_owned()),
            _ => {
                return Err(Failure::usage(format!(
                    "--change {instruction:?}: no instruction {word}; there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, \
                     STOPSIGNAL, USER, VOLUME and WORKDIR"
                )));
            }
        }
    }
    Ok(changes)
}

/// The words of a JSON list; anything else is a line for the shell.
fn command(text: &str, instruction: &str) -> anyhow::Result<Vec<String>> {
    if !text.starts_with('[') {
        return Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec());
    }
    serde_json::from_str(text).map_err(|error| {
        Failure::usage(format!(
            "--change {instruction:?}: not a list of words: {error}"
        ))
    })
}

fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

fn port(word: &str) -> String {
    if word.contains('/') {
        word.to_owned()
    } else {
        format!("{word}/tcp")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn instructions() {
        let changes = parse(&strings(&[
            r#"CMD ["run", "it"]"#,
            "entrypoint exec server",
            "ENV A=b=c",
            r#"LABEL note="two words""#,
            "EXPOSE 80 53/udp",
            "USER app",
        ]))
        .unwrap();
        assert_eq!(changes.cmd, Some(strings(&["run", "it"])));
        assert_eq!(
            changes.entrypoint,
            Some(strings(&["/bin/sh", "-c", "exec server"]))
        );
        assert_eq!(changes.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(
            changes.labels,
            [("note".to_owned(), "two words".to_owned())]
        );
        assert_eq!(changes.exposed, strings(&["80/tcp", "53/udp"]));
        assert_eq!(changes.user.as_deref(), Some("app"));
    }

    #[test]
    fn mistakes() {
        for instruction in ["", "CMD", "CMD [1]", "ENV A", "ENV =b", "RUN rm -rf /"] {
            let error = parse(&strings(&[instruction])).expect_err(instruction);
            assert_eq!(super::super::error::exit_code(&error), 2, "{instruction}");
        }
    }
}
