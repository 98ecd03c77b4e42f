"""One writer: works in its own directory of a mount and logs outside of it.

writer.py KIND DIRECTORY LOG SEED

The log has a line before each operation, `b NUMBER TIME OPERATION`, and one after it,
`d NUMBER TIME ERRNO`. TIME is CLOCK_MONOTONIC in nanoseconds, the same for all processes. An errno
that no operation has to expect is logged as `x NUMBER TIME ERRNO NAME` and ends the writer. SIGTERM ends it
between two operations. Only the daemon dies, or a copy is made of the disk: the log needs no sync.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import signal
import sys
import time

from model import PAGE, contents

# What operations on random names have to run into.
EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL,
            errno.ELOOP, errno.EPERM, errno.ENODATA}
FILE_PAGES = 256
MAP_PAGES = 64
APPEND_BYTES_MAX = 300_000
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
AT_FDCWD = -100
libc = ctypes.CDLL(None, use_errno=True)


def many_names(chance, tag):
    """Everything that changes names and attributes, on few names, so that they meet."""
    places = ["", "", "d0/", "d1/", "d0/d2/"]
    weights = {"put": 22, "mkdir": 6, "rmdir": 3, "symlink": 4, "link": 7, "unlink": 9, "rename": 22,
               "setxattr": 6, "removexattr": 2, "chmod": 4, "utime": 4, "truncate": 5, "punch": 2,
               "unlink_open": 2, "fsync": 1}

    def name():
        return f"{chance.choice(places)}{chance.choice('dffff')}{chance.randrange(6)}"

    for number in range(1 << 40):
        kind = chance.choices(list(weights), weights.values())[0]
        mark = f"{tag}.{number}"
        yield {
            "put": lambda: ["put", name(), chance.choice([0, 90, 1200, 3000, 4096, 9000, 30000]), mark],
            "mkdir": lambda: ["mkdir", f"{chance.choice(['', '', 'd0/'])}d{chance.randrange(3)}",
                              0o700 | chance.randrange(64)],
            "rmdir": lambda: ["rmdir", f"{chance.choice(['', 'd0/'])}d{chance.randrange(3)}"],
            "symlink": lambda: ["symlink", name(), f"nowhere-{mark}"],
            "link": lambda: ["link", name(), name()],
            "unlink": lambda: ["unlink", name()],
            "unlink_open": lambda: ["unlink_open", name()],
            "rename": lambda: ["rename", name(), name(), chance.choice([0, 0, 0, 1, 2])],
            "setxattr": lambda: ["setxattr", name(), f"user.{chance.randrange(3)}",
                                 chance.choice([0, 10, 500, 3000]), mark],
            "removexattr": lambda: ["removexattr", name(), f"user.{chance.randrange(3)}"],
            "chmod": lambda: ["chmod", name(), 0o700 | chance.randrange(64)],
            "utime": lambda: ["utime", name(), chance.randrange(1 << 60)],
            "truncate": lambda: ["truncate", name(), chance.randrange(20000)],
            "punch": lambda: ["punch", name(), PAGE * chance.randrange(3), PAGE * 2],
            "fsync": lambda: ["fsync", chance.choice(["", name()])],
        }[kind]()


def direct_overwrites(chance, tag):
    """O_DIRECT: when write(2) has returned, the daemon has it, whole."""
    for page in range(0, FILE_PAGES, 64):
        yield ["direct", "file", page * PAGE, 64 * PAGE, f"{tag}.first.{page}"]
    yield ["fsync", "file"]
    for number in range(1 << 40):
        draw = chance.random()
        if draw < 0.90:
            pages = chance.choices([1, chance.randrange(2, 33), FILE_PAGES], [85, 13, 2])[0]
            page = chance.randrange(FILE_PAGES - pages + 1)
            yield ["direct", "file", page * PAGE, pages * PAGE, f"{tag}.{number}"]
        elif draw < 0.93:
            yield ["fsync", "file"]
        elif draw < 0.97:
            yield ["punch", "file", chance.randrange(FILE_PAGES) * PAGE, chance.randrange(1, 40) * PAGE]
        else:
            yield ["truncate", "file", chance.randrange(FILE_PAGES) * PAGE]


def appends(chance, tag):
    """A log: records through the page cache, synced, closed or left to the kernel."""
    for turn in range(1 << 40):
        bytes_left = chance.randrange(1, APPEND_BYTES_MAX)
        while bytes_left > 0:
            for _ in range(chance.randrange(1, 12)):
                length = chance.choice([40, 300, 700, 5000, 20000])
                bytes_left -= length
                yield ["append", "log", length, f"{tag}.{turn}.{bytes_left}"]
            yield [chance.choice(["fsync", "flush"]), "log"]
        yield ["flush", "log"]
        yield ["rename", "log", f"log.{turn % 3}", 0]


def replacements(chance, tag):
    """How programs save: a new file, synced or not, renamed over the old one."""
    for number in range(1 << 40):
        name = f"saved.{chance.randrange(8)}"
        yield ["put", "new", chance.choice([200, 2000, 5000, 70000, 400000]), f"{tag}.{number}"]
        if chance.random() < 0.3:
            yield ["fsync", "new"]
        yield ["rename", "new", name, 0]
        if chance.random() < 0.1:
            yield ["fsync", ""]


def mapped(chance, tag):
    """Pages of a shared mapping and msync."""
    yield ["direct", "map", 0, MAP_PAGES * PAGE, f"{tag}.first"]
    for number in range(1 << 40):
        for step in range(chance.randrange(1, 5)):
            pages = chance.sample(range(MAP_PAGES), chance.randrange(1, 6))
            yield ["map", "map", [[page, f"{tag}.{number}.{step}.{page}"] for page in pages]]
        yield [chance.choices(["msync", "flush"], [3, 1])[0], "map"]


KINDS = {"names": many_names, "direct": direct_overwrites, "append": appends, "replace": replacements,
         "map": mapped}


def operations(kind, seed):
    """The endless list of a writer's operations."""
    return KINDS[kind](random.Random(f"{kind} {seed}"), f"{kind} {seed}")


class Hands:
    """Carries operations out, below a directory."""

    def __init__(self, root):
        self.root, self.open, self.maps, self.unlinked = root, {}, {}, []
        self.buffer = mmap.mmap(-1, FILE_PAGES * PAGE)  # Aligned, as O_DIRECT wants it.

    def do(self, operation):
        name, path, *arguments = operation
        getattr(self, name)(os.path.join(self.root, path) if path else self.root, *arguments)

    def mkdir(self, path, mode):
        os.mkdir(path, mode)

    def rmdir(self, path):
        os.rmdir(path)

    def symlink(self, path, target):
        os.symlink(target, path)

    def link(self, old, new):
        os.link(old, os.path.join(self.root, new), follow_symlinks=False)

    def unlink(self, path):
        os.unlink(path)

    def unlink_open(self, path):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        self.unlinked.append(descriptor)
        os.unlink(path)
        if os.fstat(descriptor).st_nlink == 0:
            os.pwrite(descriptor, b"nobody sees this any more" * 400, 0)
        if len(self.unlinked) > 3:
            os.close(self.unlinked.pop(0))

    def rename(self, old, new, flags):
        # Python has no renameat2(2).
        done = libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD,
                              os.fsencode(os.path.join(self.root, new)), flags)
        if done:
            raise OSError(ctypes.get_errno(), "renameat2")

    def setxattr(self, path, name, length, tag):
        os.setxattr(path, name, contents(tag, length), follow_symlinks=False)

    def removexattr(self, path, name):
        os.removexattr(path, name, follow_symlinks=False)

    def chmod(self, path, mode):
        with Opened(path, os.O_RDONLY) as descriptor:
            os.fchmod(descriptor, mode)

    def utime(self, path, nanoseconds):
        os.utime(path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)

    def truncate(self, path, size):
        with Opened(path, os.O_WRONLY) as descriptor:
            os.ftruncate(descriptor, size)

    def punch(self, path, offset, length):
        with Opened(path, os.O_WRONLY) as descriptor:
            done = libc.fallocate(descriptor, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE,
                                  ctypes.c_long(offset), ctypes.c_long(length))
            if done:
                raise OSError(ctypes.get_errno(), "fallocate")

    def put(self, path, length, tag):
        with Opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            write_all(descriptor, contents(tag, length))

    def direct(self, path, offset, length, tag):
        self.buffer[:length] = contents(tag, length)
        with Opened(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT) as descriptor:
            with memoryview(self.buffer) as view, view[:length] as part:
                if os.pwrite(descriptor, part, offset) != length:
                    raise OSError(errno.EIO, "short write with O_DIRECT")

    def append(self, path, length, tag):
        if path not in self.open:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self.open[path] = os.open(path, flags, 0o644)
        write_all(self.open[path], contents(tag, length))

    def map(self, path, changes):
        if path not in self.maps:
            with Opened(path, os.O_RDWR) as descriptor:
                self.maps[path] = mmap.mmap(descriptor, MAP_PAGES * PAGE)
        for page, tag in changes:
            self.maps[path][page * PAGE:(page + 1) * PAGE] = contents(tag, PAGE)

    def msync(self, path):
        self.maps[path].flush()

    def flush(self, path):
        """close(2); of a mapping: munmap(2) and close(2) of another handle, which flushes too."""
        if path in self.maps:
            self.maps.pop(path).close()
            with Opened(path, os.O_RDWR):
                pass
        if path in self.open:
            os.close(self.open.pop(path))

    def fsync(self, path):
        if path in self.open:
            os.fsync(self.open[path])
        else:
            with Opened(path, os.O_RDONLY) as descriptor:
                os.fsync(descriptor)


class Opened:
    """A descriptor for one block; close(2) may fail, and says so."""

    def __init__(self, path, flags):
        self.descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o644)

    def __enter__(self):
        return self.descriptor

    def __exit__(self, *_):
        os.close(self.descriptor)


def write_all(descriptor, data):
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view):]


def main():
    kind, directory, log_path, seed = sys.argv[1:]
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    os.umask(0)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    hands = Hands(directory)
    for number, operation in enumerate(operations(kind, seed)):
        if stopped:
            return
        os.write(log, f"b {number} {time.monotonic_ns()} {json.dumps(operation)}\n".encode())
        try:
            hands.do(operation)
            result = 0
        except OSError as error:
            result = error.errno
            if result not in EXPECTED:
                line = f"x {number} {time.monotonic_ns()} {result} {errno.errorcode.get(result)}\n"
                os.write(log, line.encode())
                return
        os.write(log, f"d {number} {time.monotonic_ns()} {result}\n".encode())


if __name__ == "__main__":
    main()
