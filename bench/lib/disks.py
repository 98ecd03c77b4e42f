"""A disk for each peer: an ext4 in a file, through a loop device that goes around the page cache.

Taking it away and attaching it again empties every cache but those of the real disk, which needs no
privilege but mounting. Nothing of one peer is in another's way: its blocks, its journal, its daemon.
"""

import os
import shutil

from shell import Failure, run

MIB = 1 << 20


class Disk:
    """An ext4 in a file, mounted or not."""

    def __init__(self, folder, size_bytes, sparse=False, inode_count=None):
        self.image = folder / "disk"
        self.path = folder / "mnt"
        self.device = None
        folder.mkdir()
        self.path.mkdir()
        if sparse:
            with open(self.image, "wb") as image:
                image.truncate(size_bytes)
        else:
            write_zeros(self.image, size_bytes)
        inodes = ["-N", str(inode_count)] if inode_count else ["-i", "8192"]
        # Everything written now is not written in the middle of a measurement.
        run(["mkfs.ext4", "-q", "-F", "-O", "encrypt", *inodes, "-E",
              "lazy_itable_init=0,lazy_journal_init=0,nodiscard", self.image])

    def attach(self):
        device = run(["losetup", "--find", "--show", "--direct-io=on", self.image]).strip()
        self.device = device.splitlines()[-1]
        run(["mount", "-o", "noatime", self.device, self.path])

    def detach(self):
        if os.path.ismount(self.path):
            run(["umount", self.path])
        if self.device:
            run(["losetup", "--detach", self.device])
            self.device = None

    def flush(self):
        """What was written is on the disk when this returns."""
        run(["sync", "-f", self.path])


def write_zeros(path, size_bytes):
    """A file whose blocks are there and initialised: where ext4 would have to find a block for the
    first write to each, a synced write would pay for that."""
    run(["dd", "if=/dev/zero", f"of={path}", "bs=4M", f"count={-(-size_bytes // (4 * MIB))}",
         "conv=fsync", "oflag=direct"], limit_seconds=3600)


def require_space(scratch, needed_bytes):
    """Refuses before an hour has been spent."""
    free = shutil.disk_usage(scratch).free
    if free < needed_bytes + needed_bytes // 20:
        raise Failure(f"{scratch} has {free // MIB} MiB free and the disks of the peers take "
                      f"{needed_bytes // MIB}: choose fewer --peers, or another --scratch")
