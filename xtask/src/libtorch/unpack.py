"""Unpacks parts of a wheel: unpack.py WHEEL TARGET PART=PLACE ... (a part ending in / is a folder)."""

import os
import shutil
import sys
import zipfile

wheel, target, *rules = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for rule in rules:
        part, place = rule.split("=")
        if part.endswith("/"):
            names = [n for n in archive.namelist() if n.startswith(part) and not n.endswith("/")]
        else:
            names = [n for n in archive.namelist() if n == part]
        if not names:
            sys.exit(f"`{part}` is not in the wheel")
        for name in names:
            path = os.path.join(target, place + name[len(part) :])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with archive.open(name) as read, open(path, "wb") as write:
                shutil.copyfileobj(read, write, 1 << 20)
