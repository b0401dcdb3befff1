"""Imports modules from a tree and tells what that loaded.

Arguments: the tree's root, directories below it for sys.path (comma-separated, "." is the root), modules
(comma-separated). Prints the seconds that the imports alone took, and waits for a line: until then nothing but the
imports has asked for anything below the root. Then prints one JSON object: the names of all modules that are loaded
with the file below the root that each came from ("" for others), and the SHA-256 of every file below the root that was
loaded as a module or is mapped.
"""
import sys
import time

root, directories, modules = sys.argv[1].rstrip("/"), sys.argv[2].split(","), sys.argv[3].split(",")
sys.path[:0] = [root if d == "." else root + "/" + d for d in directories]
begin = time.perf_counter()
for name in modules:
    __import__(name)
print(time.perf_counter() - begin, flush=True)
sys.stdin.readline()

import hashlib
import json
import os

imported = dict(sys.modules)


def below(path):
    return path[len(root) + 1 :] if isinstance(path, str) and path.startswith(root + "/") else ""


loaded = {name: below(getattr(module, "__file__", None)) for name, module in imported.items()}
files = set(loaded.values())
files.update(below(getattr(module, "__cached__", None)) for module in imported.values())
with open("/proc/self/maps", "rb") as maps:
    for line in maps:
        fields = os.fsdecode(line).rstrip("\n").split(None, 5)
        if len(fields) == 6:
            files.add(below(fields[5]))
files.discard("")
hashes = {}
for name in sorted(files):
    path = root + "/" + name
    if os.path.exists(path):
        with open(path, "rb") as file:
            hashes[name] = hashlib.sha256(file.read()).hexdigest()
print(json.dumps({"modules": loaded, "files": hashes}))
