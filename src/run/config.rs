//! What an image's configuration says of running it (OCI image specification 1.1, config.md), and what the command line
//! puts in its place.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::error::{Error, Result};

/// Labels that programs act on, which no image may set.
const RESERVED_LABELS: [&str; 7] = [
    "ovl.",
    "containerd.io/",
    "io.containerd.",
    "io.kubernetes.",
    "io.katacontainers.",
    "org.criu.",
    "run.oci.",
];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `config` object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub env: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    pub volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    pub stop_signal: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
}

impl ImageConfig {
    /// From the configuration document.
    pub fn parse(document: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            config: Option<ImageConfig>,
        }
        // serde takes a list, too, for a structure.
        if !document.trim_ascii_start().starts_with(b"{") {
            return Err(Error::Image(
                "the image's configuration is no JSON object".into(),
            ));
        }
        let document: Document = serde_json::from_slice(document)
            .map_err(|e| Error::Image(format!("the image's configuration: {e}")))?;
        Ok(document.config.unwrap_or_default())
    }

    /// The image's labels but those that somebody could take for their own.
    pub fn harmless_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels.clone().unwrap_or_default();
        labels.retain(|key, _| {
            let key = key.to_ascii_lowercase();
            !RESERVED_LABELS.iter().any(|prefix| key.starts_with(prefix))
        });
        labels
    }

    /// What is run: the entry point and its words. A new entry point makes the image's words meaningless.
    pub fn command(&self, entrypoint: Option<&[String]>, words: &[String]) -> Result<Vec<String>> {
        let own_words = match (entrypoint, words) {
            (None, []) => self.cmd.as_deref().unwrap_or_default(),
            (_, words) => words,
        };
        let entrypoint = entrypoint.unwrap_or(self.entrypoint.as_deref().unwrap_or_default());
        let command = [entrypoint, own_words].concat();
        if command.first().is_none_or(String::is_empty) {
            return Err(Error::Usage(
                "the image names no command: say which one to run".into(),
            ));
        }
        if command.iter().any(|word| word.contains('\0')) {
            return Err(Error::Image("a word of the command holds a NUL".into()));
        }
        Ok(command)
    }

    /// The environment: `NAME=VALUE`, later ones in place of earlier ones. `extra` is the command line's, where a name
    /// without value takes the caller's.
    pub fn environment(&self, defaults: &[String], extra: &[String]) -> Result<Vec<String>> {
        let mut all: Vec<(String, String)> = Vec::new();
        let mut set = |word: &str| {
            if let Some((name, value)) = word.split_once('=')
                && !name.is_empty()
            {
                all.retain(|(known, _)| known != name);
                all.push((name.to_owned(), value.to_owned()));
            }
        };
        set(DEFAULT_PATH);
        defaults.iter().for_each(|word| set(word));
        for word in self.env.iter().flatten() {
            set(word);
        }
        for word in extra {
            match word.split_once('=') {
                Some(("", _)) => {
                    return Err(Error::Usage(format!("-e {word}: a variable without name")));
                }
                Some(_) => set(word),
                None => {
                    if let Ok(value) = std::env::var(word) {
                        set(&format!("{word}={value}"));
                    }
                }
            }
        }
        if all
            .iter()
            .any(|(name, value)| name.contains('\0') || value.contains('\0'))
        {
            return Err(Error::Image("a variable holds a NUL".into()));
        }
        Ok(all
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn commands_as_docker_puts_them_together() {
        let config = |entrypoint: &[&str], cmd: &[&str]| ImageConfig {
            entrypoint: Some(words(entrypoint)),
            cmd: Some(words(cmd)),
            ..ImageConfig::default()
        };
        let both = config(&["e"], &["c", "d"]);
        for (config, entrypoint, given, expected) in [
            (&both, None, &[][..], &["e", "c", "d"][..]),
            (&both, None, &["x"], &["e", "x"]),
            (&both, Some(&["n"][..]), &[], &["n"]),
            (&both, Some(&["n", "m"]), &["x"], &["n", "m", "x"]),
            (&both, Some(&[]), &["x"], &["x"]),
            (&config(&[], &["c"]), None, &[], &["c"]),
        ] {
            let entrypoint = entrypoint.map(words);
            let command = config.command(entrypoint.as_deref(), &words(given));
            assert_eq!(command.expect("a command"), expected);
        }
        for (config, entrypoint) in [(&config(&[], &[]), None), (&both, Some(words(&[])))] {
            assert!(config.command(entrypoint.as_deref(), &[]).is_err());
        }
    }

    #[test]
    fn environments() {
        let config = ImageConfig::parse(br#"{"config":{"Env":["A=1","B=x=y","broken","=z"]}}"#)
            .expect("a configuration");
        let environment = config
            .environment(
                &words(&["HOSTNAME=h", "A=0"]),
                &words(&["B=2", "C=", "NOT_SET_ANYWHERE"]),
            )
            .expect("an environment");
        assert_eq!(
            environment,
            [DEFAULT_PATH, "HOSTNAME=h", "A=1", "B=2", "C="]
        );
        assert!(config.environment(&[], &words(&["=x"])).is_err());
    }

    /// T30: labels are data; those others act on do not get in.
    #[test]
    fn t30_reserved_labels_are_dropped() {
        let config = ImageConfig::parse(
            br#"{"config":{"Labels":{"containerd.io/snapshot/overlay.upperdir":"/","ovl.name":"x","OVL.x":"y",
            "run.oci.handler":"evil","version":"1","org.opencontainers.image.title":"t"}}}"#,
        )
        .expect("a configuration");
        let labels = config.harmless_labels();
        assert_eq!(
            labels.keys().collect::<Vec<_>>(),
            ["org.opencontainers.image.title", "version"]
        );
    }

    #[test]
    fn odd_documents() {
        for (document, good) in [
            ("{}", true),
            (r#"{"config":null}"#, true),
            (
                r#"{"config":{"Cmd":null,"Volumes":{"/a":{}},"User":""}}"#,
                true,
            ),
            (r#"{"config":{"Cmd":"sh"}}"#, false),
            ("[]", false),
        ] {
            assert_eq!(
                ImageConfig::parse(document.as_bytes()).is_ok(),
                good,
                "{document}"
            );
        }
    }
}
