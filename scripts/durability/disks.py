"""Disks that can be cut off: an ext4 or XFS on a loop device, in a filesystem that can clone files.

Why a clone is what a power cut leaves: FICLONE (ioctl_ficlone(2)) is atomic against writes to the
file, because XFS takes the file's I/O lock alone for as long as it maps the blocks, and the loop
device carries each of its requests out as one write under that lock. So the clone has every request
that the disk had completed and none that it had not, of one instant, while all goes on running. What is
missing in it is what a power cut takes: the dirty pages of the ext4 or XFS on the loop device, its
journal's open transaction, what the daemon has in memory, and what the kernel holds back for it.

It is a disk without a volatile cache: what it had completed stays, flushed or not. That sectors are
lost or torn in any combination until a flush is what `tests/crash` enumerates on its simulated disk.
A plain copy would not do: what it copied first would be older than what it copied last.
"""

import fcntl
import os
import pathlib
import time

from volume import Volume, must, unmount

FICLONE = 0x40049409
OUTER_BYTES, DISK_BYTES = 8 << 30, 1 << 30


def mount_options(filesystem):
    """A clone has the identifier of the original, which is mounted as well."""
    return ["-o", "loop,nouuid"] if filesystem == "xfs" else ["-o", "loop"]


class Bench:
    """SCRATCH/ram holds the images, sparse, on an XFS that clones; below it lie no other mounts."""

    def __init__(self, scratch):
        self.ram, self.outer = scratch / "ram", scratch / "outer"
        for path in [self.ram, self.outer]:
            path.mkdir()
        # In memory where there is enough: what is tested is order, not this host's disk.
        if available_bytes() > 4 << 30:
            must("mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", self.ram)
        image = self.ram / "outer.img"
        make_image(image, OUTER_BYTES)
        must("mkfs.xfs", "-q", "-m", "reflink=1", image)
        must("mount", "-o", "loop", image, self.outer)

    def close(self):
        unmount(self.outer)
        (self.ram / "outer.img").unlink()
        if os.path.ismount(self.ram):
            unmount(self.ram)


class Disk:
    """An image in the bench, mounted at a directory."""

    def __init__(self, image, filesystem, where):
        self.image, self.filesystem, self.where = pathlib.Path(image), filesystem, pathlib.Path(where)
        self.where.mkdir(parents=True, exist_ok=True)

    def make(self):
        make_image(self.image, DISK_BYTES)
        must(f"mkfs.{self.filesystem}", "-q", self.image)

    def mount(self):
        must("mount", *mount_options(self.filesystem), self.image, self.where)

    def unmount(self):
        unmount(self.where)

    def volume(self, directory, atrest):
        """A volume in DIRECTORY whose ciphertext lies on this disk; its keys do not."""
        directory.mkdir(exist_ok=True)
        os.symlink(self.where / "backing", directory / "backing")
        return Volume(directory, atrest, self.where / "backing")

    def cut(self, image):
        """The disk as a power cut would leave it now. Gives the times before and after the instant."""
        with open(self.image, "rb") as source, open(image, "wb") as target:
            before = time.monotonic_ns()
            fcntl.ioctl(target, FICLONE, source.fileno())
            return before, time.monotonic_ns()


def make_image(path, size):
    with open(path, "wb") as image:
        image.truncate(size)


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as table:
        for line in table:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
