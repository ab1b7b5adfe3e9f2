//! Which image of several a machine wants: `OS/ARCH[/VARIANT]`.

use std::fmt;
use std::str::FromStr;

use super::Error;
use super::documents::{ConfigView, Document, PlatformView};
use crate::store::{ImageRecord, Store};

/// The image for `platform` of those that `name` stands for: the one it points to, or another that came under the same
/// index.
///
/// # Errors
/// [`Error::NoPlatform`] if there is none, and those of the store.
pub fn image_for(store: &Store, name: &str, platform: &Platform) -> Result<ImageRecord, Error> {
    let mut records = Vec::new();
    if let Some(manifest) = store.resolve_name(name)? {
        records.extend(store.image(&manifest)?);
    }
    for index in store.name_indexes(name)? {
        let bytes = store.document(&index)?.unwrap_or_default();
        // Besides indexes, a name may have come with statements about images.
        let parsed = Document::parse(&index.to_string(), &bytes, "");
        if let Ok(Document::Index { manifests }) = parsed {
            for descriptor in manifests {
                records.extend(store.image(&descriptor.digest()?)?);
            }
        }
    }
    let mut available = Vec::new();
    for record in records {
        let config = store.document(&record.config)?.unwrap_or_default();
        let view = ConfigView::parse(&record.config.to_string(), &config)?;
        if platform.matches(&view.platform) {
            return Ok(record);
        }
        let other = Platform::from(&view.platform).to_string();
        if !available.contains(&other) {
            available.push(other);
        }
    }
    Err(Error::NoPlatform {
        what: name.to_owned(),
        wanted: platform.to_string(),
        available: available.join(", "),
    })
}

/// A platform asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's processor.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether an image of `view` is for this platform.
    pub(super) fn matches(&self, view: &PlatformView) -> bool {
        // v8 is what arm64 means when it says nothing more.
        let variant = |v: Option<&str>| match v {
            Some("" | "v8") if self.architecture == "arm64" => None,
            Some("") => None,
            other => other.map(str::to_owned),
        };
        let wanted = variant(self.variant.as_deref());
        self.os == view.os
            && self.architecture == view.architecture
            && (self.variant.is_none() || wanted == variant(view.variant.as_deref()))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut parts = text.split('/').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() =>
            {
                Ok(Self {
                    os,
                    architecture,
                    variant: variant.filter(|v| !v.is_empty()),
                })
            }
            _ => Err(Error::Usage(format!(
                "platform {text:?} is not OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64"
            ))),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl From<&PlatformView> for Platform {
    fn from(view: &PlatformView) -> Self {
        let word = |s: &str| {
            if s.is_empty() {
                "unknown".to_owned()
            } else {
                s.to_owned()
            }
        };
        Self {
            os: word(&view.os),
            architecture: word(&view.architecture),
            variant: view.variant.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching() {
        let view = |os: &str, architecture: &str, variant: Option<&str>| PlatformView {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        };
        for (wanted, have, ok) in [
            ("linux/amd64", view("linux", "amd64", None), true),
            ("linux/amd64", view("windows", "amd64", None), false),
            ("linux/arm64", view("linux", "arm64", Some("v8")), true),
            ("linux/arm64/v8", view("linux", "arm64", None), true),
            ("linux/arm/v7", view("linux", "arm", Some("v6")), false),
            ("linux/arm/v7", view("linux", "arm", Some("v7")), true),
        ] {
            assert_eq!(
                wanted.parse::<Platform>().unwrap().matches(&have),
                ok,
                "{wanted} {have:?}"
            );
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
