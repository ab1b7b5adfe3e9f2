//! dpkg and apt in a chroot: a package of our own is built and installed in version after version, over the one before.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Load, Outcome, Rng, at, run};

pub struct Packages {
    rng: Rng,
    version: u64,
    files: BTreeMap<String, Vec<u8>>,
}

const BUILD: &str = "
    rm -rf /soak && mkdir -p /soak/pkg/DEBIAN /soak/pkg/etc && cp -r \"$1/new\" /soak/pkg/opt-soak
    mkdir -p /soak/pkg/opt && mv /soak/pkg/opt-soak /soak/pkg/opt/soak
    cd /soak/pkg
    printf 'Package: soak\\nVersion: %s\\nArchitecture: all\\nMaintainer: Nobody <nobody@example.org>\\nDescription: test\\n' \"$2\" > DEBIAN/control
    printf '#!/bin/sh\\nset -e\\necho configured > /var/lib/soak.state\\n' > DEBIAN/postinst
    chmod 755 DEBIAN/postinst
    dpkg-deb --root-owner-group --build /soak/pkg /soak/soak.deb > /dev/null
    dpkg -i /soak/soak.deb > /dev/null
    [ \"$(cat /var/lib/soak.state)\" = configured ]
    apt-get check > /dev/null
";

impl Packages {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            version: 0,
            files: BTreeMap::new(),
        }
    }

    /// The mount's root, and the load's directory seen from it.
    fn chroot(dir: &Path, script: &str, version: u64) -> Outcome<String> {
        let root = dir.parent().ok_or("a directory in a mount")?;
        let inside = Path::new("/").join(dir.file_name().ok_or("a name")?);
        let mut command = Command::new("chroot");
        command
            .arg(root)
            .args(["/bin/sh", "-euc", script, "sh"])
            .arg(inside)
            .arg(version.to_string())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    }

    fn install(&mut self, dir: &Path) -> Outcome {
        let mut files = BTreeMap::new();
        let new = dir.join("new");
        if new.exists() {
            at("remove", fs::remove_dir_all(&new))?;
        }
        at("mkdir", fs::create_dir(&new))?;
        for _ in 0..20 {
            let name = format!("f{}", self.rng.below(60));
            let len = self.rng.below(30_000) >> self.rng.below(8);
            let bytes = self.rng.bytes(len);
            at("write", fs::write(new.join(&name), &bytes))?;
            files.insert(name, bytes);
        }
        let version = self.version + 1;
        Self::chroot(dir, BUILD, version)?;
        (self.version, self.files) = (version, files);
        Ok(())
    }
}

impl Load for Packages {
    fn name(&self) -> &'static str {
        "packages"
    }

    fn prepare(&mut self, dir: &Path) -> Outcome {
        self.install(dir)
    }

    fn work(&mut self, dir: &Path) -> Outcome {
        self.install(dir)
    }

    fn check(&mut self, dir: &Path) -> Outcome {
        let root = dir.parent().ok_or("a directory in a mount")?;
        let mut found = BTreeMap::new();
        for entry in at("list", fs::read_dir(root.join("opt/soak")))? {
            let entry = at("list", entry)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            found.insert(name, at("read", fs::read(entry.path()))?);
        }
        if found != self.files {
            let names: Vec<_> = found.keys().collect();
            return Err(format!("version {}: other files: {names:?}", self.version));
        }
        let script =
            "dpkg-query -W -f '${Status} ${Version}' soak && dpkg --verify soak && dpkg --audit";
        let said = Self::chroot(dir, script, 0)?;
        let expected = format!("install ok installed {}", self.version);
        if said != expected {
            return Err(format!("{said}, not {expected}"));
        }
        Ok(())
    }

    fn recover(&mut self, dir: &Path) -> Outcome {
        // An installation cut short leaves copies of the old files beside the new (`.dpkg-tmp`) that dpkg does not know of later,
        // and it may refuse to go on but from the beginning: the package goes, with all it has, and comes again.
        let script =
            "dpkg --purge --force-all soak || true; rm -rf /opt/soak; apt-get check > /dev/null";
        Self::chroot(dir, script, 0)?;
        self.version += 1;
        self.install(dir)?;
        self.check(dir)
    }
}
