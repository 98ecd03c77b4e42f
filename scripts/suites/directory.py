"""One large directory, through the C library's directory streams.

directory.py fill|list|empty DIRECTORY ENTRIES POSITIONS
"""

import ctypes
import errno
import json
import os
import random
import stat
import sys
import time

STEP, DIRECTORY, ENTRIES, POSITIONS = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
SEED = int(os.environ.get("DIRECTORY_SEED", random.randrange(1 << 30)))
DT_REG = 8
libc = ctypes.CDLL(None, use_errno=True)


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("reclen", ctypes.c_uint16),
                ("type", ctypes.c_uint8), ("name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
libc.readdir64.restype = ctypes.POINTER(Dirent)
for name in ("readdir64", "telldir", "rewinddir", "closedir"):
    getattr(libc, name).argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Stream:
    """DIR, with the names that are no dots."""

    def __init__(self, path):
        self.stream = libc.opendir(path.encode())
        if not self.stream:
            raise OSError(ctypes.get_errno(), path)

    def next(self):
        while True:
            ctypes.set_errno(0)
            entry = libc.readdir64(self.stream)
            if not entry:
                if ctypes.get_errno():
                    raise OSError(ctypes.get_errno(), "readdir")
                return None
            if entry.contents.name not in (b".", b".."):
                return entry.contents.name.decode(), entry.contents.type

    def tell(self):
        return libc.telldir(self.stream)

    def seek(self, position):
        libc.seekdir(self.stream, position)

    def close(self):
        libc.closedir(self.stream)


def check(true, what):
    if not true:
        sys.exit(f"DEFECT: {what} (DIRECTORY_SEED={SEED})")


def timed(what, since):
    seconds = time.monotonic() - since
    print(f"{what}: {seconds:.1f} s, {ENTRIES / max(seconds, 1e-9):.0f} entries/s")


def path(name):
    return os.path.join(DIRECTORY, name)


def make(name):
    os.mknod(path(name), stat.S_IFREG | 0o600)


def fill():
    os.mkdir(DIRECTORY)
    begun = time.monotonic()
    for number in range(ENTRIES):
        make(f"stays-{number}")
    timed("created", begun)


def disturb(stop, seed):
    """Another process makes, renames and removes entries until it is killed."""
    generator, here = random.Random(seed), []
    while os.getppid() == stop:
        name = f"comes-{generator.randrange(1 << 40)}"
        make(name)
        here.append(name)
        if len(here) > 500:
            old = here.pop(generator.randrange(len(here)))
            if generator.random() < 0.5:
                os.rename(path(old), path(old + "-moved"))
                old += "-moved"
            os.unlink(path(old))


def list_while_it_changes():
    me = os.getpid()
    child = os.fork()
    if child == 0:
        disturb(me, SEED)
        os._exit(0)
    try:
        for turn in range(2):
            begun, seen, others = time.monotonic(), set(), 0
            stream = Stream(DIRECTORY)
            while entry := stream.next():
                name, kind = entry
                check(kind == DT_REG, f"{name} is of type {kind}")
                if name.startswith("stays-"):
                    check(name not in seen, f"{name} is listed twice")
                    seen.add(name)
                else:
                    others += 1
            stream.close()
            check(len(seen) == ENTRIES, f"{len(seen)} of {ENTRIES} entries are listed")
            timed(f"listed, with {others} that come and go", begun)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    for entry in [entry.name for entry in os.scandir(DIRECTORY)]:
        if entry.startswith("comes-"):
            os.unlink(path(entry))


def seek_back():
    """What follows a position is the same later, but for what was removed."""
    generator = random.Random(SEED)
    stream, names, positions = Stream(DIRECTORY), [], []
    wanted = set(generator.sample(range(ENTRIES), 100))
    while True:
        if len(names) in wanted:
            positions.append((len(names), stream.tell()))
        entry = stream.next()
        if not entry:
            break
        names.append(entry[0])
    check(len(names) == ENTRIES, f"{len(names)} entries")
    check(len(positions) == 100, f"{len(positions)} positions")
    gone = set()
    generator.shuffle(positions)
    for index, position in positions:
        # Behind, at and before the position.
        for other in (index - 3, index, index + 2):
            if 0 <= other < ENTRIES and names[other] not in gone and generator.random() < 0.5:
                os.unlink(path(names[other]))
                gone.add(names[other])
        follows(stream, names, gone, index, position)
    stream.close()
    with open(POSITIONS, "w") as file:
        json.dump([SEED, names, sorted(gone), positions], file)


def follows(stream, names, gone, index, position):
    stream.seek(position)
    expected = [name for name in names[index:index + 20] if name not in gone][:10]
    found = []
    while len(found) < len(expected):
        entry = stream.next()
        check(entry, f"the listing ends after {found} at position {index}")
        # The C library may hold entries that were removed since it read them.
        if entry[0] not in gone:
            found.append(entry[0])
    check(found == expected, f"position {index}: {found}, not {expected}")


def empty():
    with open(POSITIONS) as file:
        _, names, gone, positions = json.load(file)
    gone, stream = set(gone), Stream(DIRECTORY)
    for index, position in positions:
        follows(stream, names, gone, index, position)
    stream.close()
    try:
        os.rmdir(DIRECTORY)
        check(False, "a full directory is removed")
    except OSError as error:
        check(error.errno == errno.ENOTEMPTY, f"rmdir: {error}")
    begun = time.monotonic()
    removed = 0
    stream = Stream(DIRECTORY)
    while entry := stream.next():
        os.unlink(path(entry[0]))
        removed += 1
    stream.close()
    timed("removed while listing", begun)
    check(removed == ENTRIES - len(gone), f"{removed} removed of {ENTRIES - len(gone)}")
    os.rmdir(DIRECTORY)
    os.unlink(POSITIONS)


if STEP == "fill":
    fill()
elif STEP == "list":
    list_while_it_changes()
    seek_back()
else:
    empty()
