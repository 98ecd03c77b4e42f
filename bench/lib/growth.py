"""Jobs about growth: what a mount, its memory and single operations cost as a volume grows. Each has
a disk of its own, sparse, and is measured in the first round only: a point may take an hour."""

import os
import random
import re
import time

from jobs import job
from peers import Peer
from setup import SIZES
from shell import ROOT, Failure, run
from tree_jobs import meta, META

GIB = 1 << 30
# A passthrough holds a descriptor for each file that it knows; the others would take days.
PEERS = ["ext4", "gocryptfs", "atrest-gcm"]
FILES = {"mount_ms": "mounting, scripts/volume included", "rss_mib": "memory of the daemon after `find`, at most",
         "create_us": "creating an empty file", "stat_cold_us": "looking at a file, cold",
         "unlink_us": "removing a file"}
BYTES = {"mount_ms": "mounting, scripts/volume included", "rss_mib": "memory of the daemon, at most",
         "read_us": "reading 4 KiB at a random place, cold", "commit_us": "overwriting 4 KiB and `fsync`"}
FILE_POINTS = sorted({n for size in SIZES.values() for n in size.growth_files})
BYTE_POINTS = sorted({n for size in SIZES.values() for n in size.growth_mib})
# Operations that are looked at in one file after another.
SAMPLES = 500

# Plot -> title, axis, [(x, metric)].
SERIES = {}
for known, text in FILES.items():
    SERIES[f"growth_files_{known}"] = (f"{text}, {known.rpartition('_')[2]}", "files",
                                       [(n, f"growth_files_{n}_{known}") for n in FILE_POINTS])
for known, text in BYTES.items():
    SERIES[f"growth_bytes_{known}"] = (f"{text}, {known.rpartition('_')[2]}", "MiB",
                                       [(n, f"growth_mib_{n}_{known}") for n in BYTE_POINTS])


def label(number):
    """A number as one reads it."""
    for value, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= value and number % value == 0:
            return f"{number // value}{letter}"
    return str(number)


def disk_bytes(name, size):
    """How big the disk of a job is: for files, their inodes and what daemons make of them."""
    if name == "growth_files":
        return max(GIB, size.growth_files[-1] * 3000)
    return max(GIB, (size.growth_mib[-1] + 1024) * (1 << 20) * 11 // 10)


class Grown:
    """A peer on a disk that is big enough, for one job."""

    def __init__(self, peer, setup, size_bytes, inode_count=None):
        folder = setup.scratch / "growth"
        folder.mkdir(exist_ok=True)
        self.peer = Peer(peer.kind, folder, size_bytes, sparse=True, inode_count=inode_count)

    def __enter__(self):
        self.peer.up()
        return self.peer

    def __exit__(self, *_):
        self.peer.down()
        run(["rm", "-r", self.peer.disk.path.parent])


def remount_ms(peer):
    """How long mounting takes; everything is on the disk and nothing cached."""
    peer.down()
    peer.disk.attach()
    peer.mounted = True
    start = time.monotonic()
    run([ROOT / "scripts/volume", "mount", peer.directory])
    return (time.monotonic() - start) * 1000


def rss_mib(peer):
    """What the daemon had at most; None for a filesystem of the kernel."""
    pid = peer.daemon()
    if pid is None:
        return None
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read(), re.M)
    if not found:
        raise Failure(f"the daemon {pid} has ended")
    return int(found[1]) / 1024


def each_us(operation, count):
    """How many microseconds an operation takes, in the mean."""
    start = time.monotonic()
    for _ in range(count):
        operation()
    return (time.monotonic() - start) / count * 1e6


def named(prefix, point, values):
    """As the metrics are called; what has no value is left out."""
    return {f"growth_{prefix}_{point}_{name}": value for name, value in values.items()
            if value is not None}


@job({f"growth_files_{n}_{name}": f"{text}, at {label(n)} files"
      for n in FILE_POINTS for name, text in FILES.items()}, "growth", peers=PEERS)
def growth_files(peer, setup):
    points = setup.size.growth_files
    # ext4 has as many inodes as it was made with.
    with Grown(peer, setup, disk_bytes("growth_files", setup.size), inode_count=points[-1] * 5 // 4 + 20_000) as grown:
        have, drawn = 0, random.Random(7)
        directory = grown.mount / "files"
        directory.mkdir()
        for point in points:
            run([META, "fill", directory, str(have), str(point - have), "0"], limit_seconds=4 * 3600)
            have = point
            values = {"mount_ms": remount_ms(grown)}
            paths = [directory / f"d{n // 1000:06}/f{n:09}" for n in drawn.sample(range(have), min(SAMPLES, have))]
            pending = iter(paths)
            values["stat_cold_us"] = each_us(lambda: os.stat(next(pending)), len(paths))
            run(["sh", "-c", 'find "$1" -size +1 >/dev/null', "sh", directory], limit_seconds=3600)
            values["rss_mib"] = rss_mib(grown)
            rates = meta(grown, setup, 1, 0)
            values.update(create_us=1e6 / rates["create"], unlink_us=1e6 / rates["unlink"])
            yield named("files", point, values)


@job({f"growth_mib_{n}_{name}": f"{text}, at {n} MiB"
      for n in BYTE_POINTS for name, text in BYTES.items()}, "growth", peers=PEERS)
def growth_bytes(peer, setup):
    points = setup.size.growth_mib
    with Grown(peer, setup, disk_bytes("growth_bytes", setup.size)) as grown:
        have, drawn = 0, random.Random(7)
        for point in points:
            # In files of at most 256 MiB, none of them shorter than a page.
            while have < point:
                part = min(256, point - have)
                run(["dd", "if=/dev/urandom", f"of={grown.mount}/{have:07}.dat", "bs=1M", f"count={part}",
                     "conv=fsync"], limit_seconds=600)
                have += part
            values = {"mount_ms": remount_ms(grown)}
            files = [os.open(path, os.O_RDWR) for path in sorted(grown.mount.glob("*.dat"))]
            try:
                values.update(small_operations(files, drawn))
            finally:
                for file in files:
                    os.close(file)
            values["rss_mib"] = rss_mib(grown)
            yield named("mib", point, values)


def small_operations(files, drawn):
    """Reads and commits at random places of all files."""
    pages = [os.fstat(file).st_size // 4096 for file in files]

    def place():
        index = drawn.randrange(len(files))
        return files[index], drawn.randrange(pages[index]) * 4096

    def read():
        file, offset = place()
        if len(os.pread(file, 4096, offset)) != 4096:
            raise Failure("a read came back short")

    def commit():
        file, offset = place()
        os.pwrite(file, drawn.randbytes(4096), offset)
        os.fsync(file)

    for file in files:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    return {"read_us": each_us(read, SAMPLES), "commit_us": each_us(commit, SAMPLES // 5)}
