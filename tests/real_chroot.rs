//! Real programs at work in a chroot on the mounted five-layer image: dpkg, apt, git, python3, gcc. Then the difference, a
//! commit, and the new image against what the mount showed.

mod common;
mod real_support;

use std::path::Path;

use common::{Sandbox, images, require_mounting};
use real_support::{Tree, assert_same, chroot, tree};

/// A package with what packages have: a configuration file, links, a set-id file, a script that runs, and 300 files.
const MAKE_PACKAGE: &str = "
    mkdir -p /build/pkg/DEBIAN /build/pkg/etc /build/pkg/usr/lib/ovl-test/many /build/pkg/usr/bin
    cd /build/pkg
    printf 'Package: ovl-test\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: Nobody <nobody@example.org>\\nDescription: test\\n' > DEBIAN/control
    echo /etc/ovl-test.conf > DEBIAN/conffiles
    printf '#!/bin/sh\\nset -e\\necho configured > /var/lib/ovl-test.state\\n' > DEBIAN/postinst
    chmod 755 DEBIAN/postinst
    echo setting=1 > etc/ovl-test.conf
    printf '#!/bin/sh\\ncat /etc/ovl-test.conf\\n' > usr/bin/ovl-test
    chmod 4755 usr/bin/ovl-test
    ln usr/bin/ovl-test usr/bin/ovl-test-hard
    ln -s ovl-test usr/bin/ovl-test-soft
    i=0; while [ $i -lt 300 ]; do echo file $i > usr/lib/ovl-test/many/$i; i=$((i + 1)); done
    dpkg-deb --root-owner-group --build /build/pkg /build/ovl-test.deb
";

const USE_PACKAGES: &str = "
    dpkg -i /build/ovl-test.deb
    [ \"$(dpkg-query -W -f '${Status} ${Version}' ovl-test)\" = 'install ok installed 1.0' ]
    [ \"$(cat /var/lib/ovl-test.state)\" = configured ]
    [ \"$(ovl-test)\" = setting=1 ]
    [ \"$(ovl-test-hard)$(ovl-test-soft)\" = setting=1setting=1 ]
    [ \"$(stat -c '%h %a' /usr/bin/ovl-test)\" = '2 4755' ]
    [ \"$(cat /usr/lib/ovl-test/many/* | md5sum)\" = \"$(cat /build/pkg/usr/lib/ovl-test/many/* | md5sum)\" ]
    dpkg --verify ovl-test
    # A package of the image goes, with all its files; then nothing is broken.
    apt-get -y remove --purge python3-yaml less
    [ ! -e /usr/bin/less ]
    [ ! -d /usr/lib/python3/dist-packages/yaml ]
    dpkg --audit
    apt-get check
    # And the test's package comes again, newer, and goes.
    sed -i 's/1.0/2.0/' /build/pkg/DEBIAN/control
    rm /build/pkg/usr/lib/ovl-test/many/7
    dpkg-deb --root-owner-group --build /build/pkg /build/ovl-test.deb
    dpkg -i /build/ovl-test.deb
    [ ! -e /usr/lib/ovl-test/many/7 ]
    [ -e /usr/lib/ovl-test/many/8 ]
";

const USE_GIT: &str = "
    git config --global user.name Nobody
    git config --global user.email nobody@example.org
    git init -q -b main /srv/repo
    cd /srv/repo
    cp -r /usr/share/perl5 tree
    git add .
    git commit -q -m one
    git mv tree moved
    git commit -q -m two
    git rm -q -r --cached moved/Debconf
    git commit -q -m three
    git clone -q --no-local /srv/repo /srv/clone
    git -C /srv/clone log --oneline | wc -l | grep -qx 3
    git -C /srv/clone fsck --full --strict
    git -C /srv/clone gc -q
    [ -z \"$(git -C /srv/clone status --porcelain)\" ]
    git -C /srv/clone checkout -q -b side HEAD~1
    git -C /srv/clone commit -q --allow-empty -m four
    git -C /srv/clone merge -q -m merged main
    git -C /srv/clone diff --quiet main
";

const USE_PYTHON: &str = "
    mkdir /srv/py
    cd /srv/py
    printf 'def f(x):\\n    return x * 2\\n' > module.py
    [ \"$(python3 -c 'import module; print(module.f(21))')\" = 42 ]
    ls __pycache__/module.*.pyc
    [ \"$(python3 /opt/app/app.py)\" = 80200 ]
    [ \"$(python3 -c 'import numpy; print(numpy.arange(5).sum())')\" = 10 ]
    rm -r /opt/app/pkg/__pycache__
    [ \"$(python3 /opt/app/app.py)\" = 80200 ]
    ls /opt/app/pkg/__pycache__/m7.*.pyc
    python3 -c \"
import mmap, os, sqlite3
db = sqlite3.connect('test.db'); db.execute('create table t (n)')
for n in range(50):
    with db: db.execute('insert into t values (?)', (n,))
assert db.execute('select sum(n) from t').fetchone() == (1225,)
assert db.execute('pragma integrity_check').fetchone() == ('ok',)
with open('mapped', 'w+b') as f:
    f.truncate(100000); m = mmap.mmap(f.fileno(), 0); m[50000:50005] = b'mmap!'; m.flush(); m.close()
assert open('mapped', 'rb').read()[49999:50006] == b'\\\\0mmap!\\\\0'
\"
";

const USE_COMPILER: &str = "
    mkdir /srv/c
    cd /srv/c
    printf '#include <stdio.h>\\nint answer(void);\\nint main(void) { printf(\"%%d\\\\n\", answer()); return 0; }\\n' > main.c
    printf 'int answer(void) { return 42; }\\n' > answer.c
    printf 'run: main.o answer.o\\n\\tgcc -o $@ $^\\n' > Makefile
    make -s
    [ \"$(./run)\" = 42 ]
    sleep 1.1; sed -i 's/42/43/' answer.c
    make -s
    [ \"$(./run)\" = 43 ]
";

#[test]
fn programs_work_in_the_mounted_image_and_a_commit_keeps_what_they_did() {
    require_mounting();
    let sandbox = Sandbox::new();
    sandbox.run([
        "import".as_ref(),
        images("five").join("v1.docker.tar").as_os_str(),
        "--quiet".as_ref(),
    ]);
    let (mnt, second) = (sandbox.mkdir("mnt"), sandbox.mkdir("second"));
    sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
    for script in [
        MAKE_PACKAGE,
        USE_PACKAGES,
        USE_GIT,
        USE_PYTHON,
        USE_COMPILER,
    ] {
        chroot(&mnt, script);
    }

    let difference = sandbox.run(["diff", "mnt"]);
    for line in [
        "A /usr/bin/ovl-test",
        "D /usr/bin/less",
        "D /usr/lib/python3/dist-packages/yaml",
        "C /var/lib/dpkg/status",
        "A /srv/clone/.git/HEAD",
        "A /srv/c/run",
    ] {
        assert!(
            difference.lines().any(|l| l == line),
            "no {line:?} in {difference}"
        );
    }
    let untouched = difference
        .lines()
        .find(|line| line.contains("dist-packages/numpy/") && !line.contains("pycache"));
    assert_eq!(untouched, None);

    let shown = tree(&mnt);
    sandbox.run(["commit", "mnt", "localhost/five:worked"]);
    assert_same("the mount, after the commit", &tree(&mnt), &shown);
    sandbox.run(["mount", "--read-only", "localhost/five:worked", "second"]);
    assert_same(
        "the committed image",
        &without_root_time(tree(&second)),
        &without_root_time(shown.clone()),
    );
    assert_eq!(
        chroot(&second, "ovl-test; python3 /opt/app/app.py; /srv/c/run"),
        "setting=1\n80200\n43\n"
    );
    sandbox.run(["umount", "second", "mnt"]);

    // The upper is all there is to the mount.
    sandbox.run(["mount", "localhost/five:1", "upper", "mnt"]);
    assert_same("the same upper, mounted again", &tree(&mnt), &shown);
    sandbox.run(["umount", "mnt"]);
}

/// Layers, here as with other programs, say nothing of the root itself, and new entries moved its time.
fn without_root_time(mut tree: Tree) -> Tree {
    tree.get_mut(Path::new("")).unwrap().mtime = (0, 0);
    tree
}
