"""Archives by Python's tarfile: three formats, each with each set of features, entries shuffled by a seed.

make.py DIRECTORY COUNT: writes DIRECTORY/python-*.tar, COUNT of each format.
"""
import io
import random
import sys
import tarfile

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def file(name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mtime = 1_000_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def kind(name, type, **fields):
    return file(name, type=type, **fields)


def features(format, rng):
    """Entries that this format can hold; each is a list, so that what belongs together stays in order."""
    data = bytes(rng.randrange(256) for _ in range(rng.choice([0, 1, 511, 512, 513, 3000])))
    yield [file("plain/a", data), file("plain/b", data, mode=0o4711, uid=1000, gid=1001)]
    yield [kind("dir", tarfile.DIRTYPE, mode=0o1777), file("dir/in", data)]
    yield [file("link/target", b"t"), kind("link/later", tarfile.LNKTYPE, linkname="link/target")]
    yield [kind("link/earlier", tarfile.LNKTYPE, linkname="link/after"), file("link/after", b"after")]
    yield [kind("symlink", tarfile.SYMTYPE, linkname="../../outside", mode=0o777)]
    yield [kind("null", tarfile.CHRTYPE, devmajor=1, devminor=3), kind("loop", tarfile.BLKTYPE, devmajor=7, devminor=300)]
    yield [kind("fifo", tarfile.FIFOTYPE, mode=0o622)]
    yield [file("twice", b"first"), file("twice", b"second")]
    yield [file("turns", b"file"), kind("turns", tarfile.DIRTYPE), file("turns/in", b"x")]
    yield [kind("falls", tarfile.DIRTYPE), file("falls/in", b"x"), file("falls", b"now a file")]
    yield [kind("again", tarfile.DIRTYPE, mode=0o700), kind("again", tarfile.DIRTYPE, mode=0o711, uid=5)]
    yield [file("deep/without/parents", b"x")]
    yield [kind("./dotted/", tarfile.DIRTYPE), file("./dotted/./in", b"x"), file("/absolute", b"x")]
    yield [file("epoch", mtime=0)]
    if format != "ustar":
        yield [file("negative", mtime=-1), file("far", mtime=1 << 33), file("large-id", uid=1 << 21, gid=4_294_967_295)]
        yield [file("n" * 101, data), file("p/" * 150 + "x", data), file("l" * 255)]
        yield [kind("long-link", tarfile.SYMTYPE, linkname="t" * 300, mode=0o777)]
        yield [file("latin1-\udce4", data), file("utf8-\u00e4", data)]
    if format == "pax":
        yield [file("fraction", mtime=1.5), file("negative-fraction", mtime=-1.5)]
        pax = {"SCHILY.xattr.user.note": "value\nwith=lines", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02"}
        yield [file("xattrs", b"x", pax_headers=pax)]
        acl = {"SCHILY.acl.access": "user::rw-,user:7:r--,group::r--,mask::r--,other::---"}
        yield [file("acl", b"x", pax_headers=acl)]
        yield [file("unknown-keys", b"x", pax_headers={"VENDOR.key": "v", "comment": "c", "atime": "1.25"})]
        yield [file("by-pax", b"x", pax_headers={"path": "renamed-by-pax", "uid": "77", "mtime": "77.125"})]


def main():
    out, count = sys.argv[1], int(sys.argv[2])
    for format, number in FORMATS.items():
        for seed in range(count):
            rng = random.Random(f"{format} {seed}")
            groups = list(features(format, rng))
            rng.shuffle(groups)
            # The first archive of a format has everything, the others some of it.
            groups = groups if seed == 0 else groups[: rng.randint(1, len(groups))]
            headers = {"comment": f"seed {seed}", "VENDOR.x": "y"} if format == "pax" and seed % 3 == 1 else {}
            archive = io.BytesIO()
            options = {"format": number, "pax_headers": headers, "encoding": "utf-8", "errors": "surrogateescape"}
            with tarfile.open(fileobj=archive, mode="w", **options) as tar:
                for info, data in (entry for group in groups for entry in group):
                    tar.addfile(info, io.BytesIO(data))
            raw = archive.getvalue().rstrip(b"\0")
            raw += b"\0" * (-len(raw) % 512)
            # Ends of archives: two blocks, a whole record, more than that, one block, none.
            raw += b"\0" * [1024, 10240, 20480 + 512, 512, 0][seed % 5]
            if seed % 5 < 3 and seed % 2:
                raw += b"what follows the end is kept, too"
            with open(f"{out}/python-{format}-{seed:02}.tar", "wb") as file:
                file.write(raw)


main()
