"""What Python's tarfile reads out of archives: a second opinion on every entry.

list.py ARCHIVE...: one JSON line for each, a list of its entries. Names, targets and attributes are hexadecimal: they may be any bytes.
"""
import hashlib
import json
import sys
import tarfile

KINDS = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "link", tarfile.SYMTYPE: "symlink", tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo",
}


def raw(text):
    return text.encode("utf-8", "surrogateescape").hex()


def entry(tar, info):
    kind = KINDS[info.type]
    digest = ""
    if kind == "file":
        digest = hashlib.sha256(tar.extractfile(info).read()).hexdigest()
    xattrs = {}
    for key, value in info.pax_headers.items():
        if key.startswith("SCHILY.xattr."):
            xattrs[raw(key[len("SCHILY.xattr."):])] = raw(value)
    return {
        "name": raw(info.name), "link": raw(info.linkname), "kind": kind, "perm": info.mode & 0o7777, "uid": info.uid,
        "gid": info.gid, "mtime": float(info.mtime), "size": info.size if kind == "file" else 0, "sha256": digest,
        "device": [info.devmajor, info.devminor] if kind in ("char", "block") else None, "xattrs": xattrs,
        "acl": any(key.startswith("SCHILY.acl.") for key in info.pax_headers),
    }


for name in sys.argv[1:]:
    with tarfile.open(name, encoding="utf-8", errors="surrogateescape") as tar:
        print(json.dumps([entry(tar, info) for info in tar if info.type in KINDS]))
