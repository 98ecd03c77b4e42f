"""What the crate fsx has no operations for: O_DIRECT beside the page cache and mmap, zeroing,
allocation beyond the end, copies between files, SEEK_HOLE. Every answer is compared with a model.

fsx.py DIRECTORY SET SEED OPERATIONS    leaves the files DIRECTORY/fsx.SET.0 and .1
"""

import collections
import ctypes
import mmap
import os
import random
import sys

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
PAGE = mmap.PAGESIZE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]

# Set: size of the files, longest operation, alignment of O_DIRECT, weights. Buffered operations
# have no alignment, but in the two pure sets they leave most of the work to O_DIRECT.
DIRECT = dict(read_direct=20, write_direct=20, truncate=4, punch=3, zero=3, allocate=2, copy=4,
              read=2, write=2, reopen=1, sync=0.2, holes=2)
MIXED = dict(read_direct=10, write_direct=10, read=10, write=10, map_read=10, map_write=10,
             truncate=5, punch=4, zero=4, allocate=3, copy=5, forget=1, reopen=1, sync=0.2, holes=3)
SETS = {
    "direct-512": (256 << 10, 32 << 10, 512, DIRECT),
    "direct-4096": (4 << 20, 128 << 10, 4096, DIRECT),
    "mixed-512": (128 << 10, 24 << 10, 512, MIXED),
    "mixed-4096": (2 << 20, 96 << 10, 4096, MIXED),
}


class Mismatch(Exception):
    pass


class File:
    """A file, opened with and without O_DIRECT, and what must be in it."""

    def __init__(self, path, size_max):
        self.path, self.size, self.model = path, 0, bytearray(size_max)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)

    def reopen(self):
        os.close(self.fd)
        os.close(self.direct)
        self.fd = os.open(self.path, os.O_RDWR)
        self.direct = os.open(self.path, os.O_RDWR | os.O_DIRECT)

    def put(self, offset, data):
        self.model[offset:offset + len(data)] = data
        self.size = max(self.size, offset + len(data))

    def clear(self, offset, end):
        self.model[offset:end] = bytes(end - offset)

    def expect(self, offset, length, data):
        expected = self.model[offset:max(offset, min(offset + length, self.size))]
        if data == expected:
            return
        if len(data) != len(expected):
            raise Mismatch(f"{self.path}: {len(data)} bytes at {offset} instead of {len(expected)}")
        wrong = [i for i in range(len(data)) if data[i] != expected[i]]
        raise Mismatch(f"{self.path}: {len(wrong)} bytes differ, from {offset + wrong[0]} to "
                       f"{offset + wrong[-1]}: {bytes(data[wrong[0]:wrong[0] + 8]).hex()} instead "
                       f"of {bytes(expected[wrong[0]:wrong[0] + 8]).hex()}")


class Exerciser:
    def __init__(self, directory, name, seed):
        self.size_max, self.length_max, self.align, weights = SETS[name]
        self.random = random.Random(seed)
        self.files = [File(f"{directory}/fsx.{name}.{i}", self.size_max) for i in (0, 1)]
        self.noise = self.random.randbytes(self.length_max + (1 << 20))
        # Page-aligned memory, as O_DIRECT wants it.
        self.buffer = memoryview(mmap.mmap(-1, self.length_max))
        self.names, self.weights = list(weights), list(weights.values())
        self.log = collections.deque(maxlen=200)

    def run(self, operations):
        for name in self.random.choices(self.names, self.weights, k=operations):
            file = self.random.choice(self.files)
            self.log.append([name, file.path[-1]])
            getattr(self, name)(file)
            size = os.fstat(file.fd).st_size
            if size != file.size:
                raise Mismatch(f"{file.path}: {size} bytes long instead of {file.size}")
        for file in self.files:
            file.reopen()
            self.expect(file, file.fd, 0, self.size_max)

    def expect(self, file, fd, offset, length):
        file.expect(offset, length, os.pread(fd, length, offset))

    def range(self, end, align=1):
        """A random range below `end`, aligned at both ends; its length may be 0."""
        offset = self.random.randrange(max(end, 1)) // align * align
        length = self.random.randint(1, self.length_max)
        length = -(-length // align) * align
        length = max(0, min(length, self.length_max, (end - offset) // align * align))
        self.log[-1] += [offset, length]
        return offset, length

    def data(self, length):
        start = self.random.randrange(1 << 20)
        return self.noise[start:start + length]

    def read(self, file):
        self.expect(file, file.fd, *self.range(self.size_max))

    def read_direct(self, file):
        offset, length = self.range(self.size_max, self.align)
        count = os.preadv(file.direct, [self.buffer[:length]], offset)
        file.expect(offset, length, self.buffer[:count])

    def write(self, file):
        offset, length = self.range(self.size_max)
        self.written(file, offset, self.data(length), file.fd)

    def write_direct(self, file):
        offset, length = self.range(self.size_max, self.align)
        self.buffer[:length] = self.data(length)
        self.written(file, offset, self.buffer[:length], file.direct)

    def written(self, file, offset, data, fd):
        count = os.pwritev(fd, [data], offset)
        if count != len(data):
            raise Mismatch(f"{file.path}: wrote {count} bytes of {len(data)}")
        if count:
            file.put(offset, data)

    def mapped(self, file, act):
        offset, length = self.range(file.size)
        if length == 0:
            return
        start = offset // PAGE * PAGE
        with mmap.mmap(file.fd, offset + length - start, offset=start) as memory:
            act(memory, offset, offset - start, length)

    def map_read(self, file):
        self.mapped(file, lambda memory, offset, at, length: file.expect(
            offset, length, memory[at:at + length]))

    def map_write(self, file):
        def act(memory, offset, at, length):
            data = self.data(length)
            memory[at:at + length] = data
            file.put(offset, data)
            # Beyond the end, the page must be zeros, and stay out of the file.
            end = file.size - (offset - at)
            tail = memory[end:] if end < len(memory) else b""
            if tail.strip(b"\0"):
                raise Mismatch(f"{file.path}: the last page is not zeros beyond the end")
        self.mapped(file, act)

    def truncate(self, file):
        size = self.random.randint(0, self.size_max)
        self.log[-1].append(size)
        os.ftruncate(file.fd, size)
        file.clear(min(size, file.size), max(size, file.size))
        file.size = size

    def fallocate(self, file, mode):
        offset, length = self.range(self.size_max)
        self.log[-1].append(mode)
        if length and LIBC.fallocate(file.fd, mode, offset, length):
            raise Mismatch(f"{file.path}: fallocate: {os.strerror(ctypes.get_errno())}")
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            file.clear(offset, offset + length)
        if length and not mode & KEEP_SIZE:
            file.size = max(file.size, offset + length)

    def punch(self, file):
        self.fallocate(file, PUNCH_HOLE | KEEP_SIZE)

    def zero(self, file):
        self.fallocate(file, ZERO_RANGE | self.random.choice([0, KEEP_SIZE]))

    def allocate(self, file):
        self.fallocate(file, self.random.choice([0, KEEP_SIZE]))

    def copy(self, file):
        source = self.random.choice(self.files)
        start, length = self.range(source.size)
        target = self.random.randrange(self.size_max - length + 1)
        self.log[-1] += ["from", source.path[-1], "to", target]
        if length == 0 or (source is file and abs(start - target) < length):
            return
        done = 0
        while done < length:
            count = os.copy_file_range(source.fd, file.fd, length - done, start + done,
                                       target + done)
            if count == 0:
                raise Mismatch(f"{file.path}: copy_file_range stops after {done} of {length}")
            done += count
        file.put(target, source.model[start:start + length])

    def forget(self, file):
        os.fsync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def reopen(self, file):
        file.reopen()

    def sync(self, file):
        self.random.choice([os.fsync, os.fdatasync])(self.random.choice([file.fd, file.direct]))

    def holes(self, file):
        """What is reported as a hole reads as zeros, and holes and data alternate to the end."""
        at = 0
        while at < file.size:
            hole = os.lseek(file.fd, at, os.SEEK_HOLE)
            if not at <= hole <= file.size:
                raise Mismatch(f"{file.path}: SEEK_HOLE from {at} is {hole}, size {file.size}")
            try:
                at = os.lseek(file.fd, hole, os.SEEK_DATA)
            except OSError:
                at = file.size
            if file.model[hole:at].strip(b"\0"):
                raise Mismatch(f"{file.path}: a hole from {hole} to {at} where data was written")


def main():
    directory, name, seed, operations = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    exerciser = Exerciser(directory, name, seed)
    try:
        exerciser.run(operations)
    except (Mismatch, OSError) as error:
        for entry in exerciser.log:
            print(*entry)
        sys.exit(f"{error} (the operation above; seed {seed}, {name})")


main()
