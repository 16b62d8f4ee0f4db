"""Unpacks parts of a wheel: unpack.py WHEEL TARGET PART=PLACE ...

A part ending in / is a folder; one with * is a pattern, whose files go into the folder PLACE.
"""

import fnmatch
import os
import shutil
import sys
import zipfile

wheel, target, *rules = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for rule in rules:
        part, place = rule.split("=")
        if "*" in part:
            found = {n: place + os.path.basename(n) for n in archive.namelist() if fnmatch.fnmatchcase(n, part)}
        elif part.endswith("/"):
            inside = [n for n in archive.namelist() if n.startswith(part) and not n.endswith("/")]
            found = {n: place + n[len(part) :] for n in inside}
        else:
            found = {n: place for n in archive.namelist() if n == part}
        if not found:
            sys.exit(f"`{part}` is not in the wheel")
        for name, shown in found.items():
            path = os.path.join(target, shown)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(name) as read, open(path, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
