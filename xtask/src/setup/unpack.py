"""Checks one wheel's SHA-256 and unpacks chosen files of it.

Standard input: {"wheel", "sha256", "into", "keep": [[prefix, target], ...], "drop": [pattern, ...]}.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import stat
import sys
import zipfile


def digest(path):
    total = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def target(name, order):
    """Where an entry goes below the target folder, or None if it is left out."""
    # A file that `keep` names in full stays, whatever the patterns say.
    whole = any(name == prefix for prefix, _ in order["keep"])
    dropped = any(fnmatch.fnmatchcase(name, pattern) for pattern in order["drop"])
    if name.endswith("/") or (dropped and not whole):
        return None
    for prefix, replacement in order["keep"]:
        if name.startswith(prefix):
            return replacement + name[len(prefix) :]
    return None


def unpack(archive, entry, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        if os.path.lexists(path):
            os.remove(path)
        os.symlink(archive.read(entry).decode(), path)
        return
    with archive.open(entry) as source, open(path, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    if mode & 0o111:
        os.chmod(path, 0o755)


def main():
    order = json.load(sys.stdin)
    found = digest(order["wheel"])
    if found != order["sha256"]:
        sys.exit("%s: sha256 is %s, expected %s" % (order["wheel"], found, order["sha256"]))
    root = os.path.realpath(order["into"])
    with zipfile.ZipFile(order["wheel"]) as archive:
        for entry in archive.infolist():
            place = target(entry.filename, order)
            if place is None:
                continue
            path = os.path.normpath(os.path.join(root, place))
            if not path.startswith(root + os.sep):
                sys.exit("%s leads out of the folder: %s" % (order["wheel"], entry.filename))
            unpack(archive, entry, path)


main()
