"""What is measured: a mounted directory of each kind, on a disk of its own."""

import os
import pathlib

from disks import Disk
from shell import ATREST, EXAMPLES, ROOT, Failure, missing, output, run

VOLUME = ROOT / "scripts/volume"
STUB = pathlib.Path(os.environ.get("ATREST_STUB_BIN", ROOT / "target/unsealed/release/atrest"))
PASSTHROUGH = pathlib.Path(os.environ.get("PASSTHROUGH_BIN", EXAMPLES / "passthrough"))


class Kind:
    """A kind of peer. `version` is a command; `rounds_max` bounds how often what takes long to
    mount is measured, and `stays` keeps that mounted between jobs."""

    def __init__(self, name, title, command=None, version=None, rounds_max=None, binary=None):
        self.name, self.title, self.command = name, title, command
        self.version, self.rounds_max, self.binary = version, rounds_max, binary
        self.stays = rounds_max is not None

    def why_missing(self):
        """Why it cannot be measured here, or None."""
        if self.command and missing([self.command]):
            return f"not installed ({self.command} is missing; bench/run --install)"
        if self.binary and not os.access(self.binary, os.X_OK):
            return f"not built ({self.binary} is missing)"
        return None


# In the order of the columns.
KINDS = {kind.name: kind for kind in [
    Kind("ext4", "ext4"),
    Kind("passthrough", "passthrough", binary=PASSTHROUGH),
    Kind("fscrypt", "fscrypt", "xfs_io", ["xfs_io", "-V"]),
    Kind("gocryptfs", "gocryptfs", "gocryptfs", ["gocryptfs", "--version"]),
    Kind("securefs", "securefs", "securefs", ["securefs", "version"]),
    Kind("encfs", "EncFS", "encfs", ["encfs", "--version"]),
    Kind("cryfs", "CryFS", "cryfs", ["cryfs", "--version"], rounds_max=2),
    Kind("atrest-gcm", "atrest", binary=ATREST, version=[ATREST, "--version"]),
    Kind("atrest-xts", "atrest, XTS", binary=ATREST),
    Kind("atrest-stub", "atrest, no cipher", binary=STUB),
]}


class Peer:
    """A kind of peer on a disk of its own, mounted while it is measured."""

    def __init__(self, kind, scratch, disk_bytes, **more):
        self.kind = kind
        self.name = kind.name
        self.disk = Disk(scratch / kind.name, disk_bytes, **more)
        self.directory = self.disk.path / "volume"
        self.mount = self.directory / "mnt"
        self.mounted = False
        # Why it is not to be used any more.
        self.broken = None
        self.disk.attach()
        try:
            volume = "plain" if kind.name == "ext4" else kind.name
            run([VOLUME, "init", volume, self.directory])
        finally:
            self.disk.detach()

    def up(self):
        """Mounted; nothing is cached."""
        if self.mounted:
            return
        self.disk.attach()
        try:
            run([VOLUME, "mount", self.directory])
        except BaseException:
            self.disk.detach()
            raise
        self.mounted = True
        # A symlink for a plain directory, which fio would refuse.
        self.mount = (self.directory / "mnt").resolve()

    def down(self):
        if self.mounted:
            run([VOLUME, "umount", self.directory])
            self.mounted = False
        self.disk.detach()

    def rest(self):
        """After a job: not in the way of the next peer."""
        if not self.kind.stays:
            self.down()

    def cold(self):
        """All that was done is on the disk, and nothing of it is cached."""
        self.down()
        self.up()

    def settle(self):
        """Nothing that was done before is written during a measurement. What the kernel has kept
        for a daemon is handed over by its files' fsync alone: sync(2) does not reach FUSE."""
        run(["sync"])
        self.disk.flush()

    def unmount_durably(self):
        """What a program has to wait for to be sure: unmounted, and on the disk."""
        run([VOLUME, "umount", self.directory])
        self.disk.flush()
        run([VOLUME, "mount", self.directory])

    def daemon(self):
        """The process that serves the mount, or None."""
        if self.name in ("ext4", "fscrypt"):
            return None
        return int(run([VOLUME, "pid", self.directory]))


def open_peers(names, scratch, disk_bytes, say):
    """The peers that work here, and for the others why they do not."""
    peers, unavailable = [], {}
    for name in names:
        reason = KINDS[name].why_missing()
        if reason is None:
            try:
                peer = Peer(KINDS[name], scratch, disk_bytes)
                peers.append(peer)
                peer.up()
                (peer.mount / "hello").write_text("hello")
                peer.rest()
            except (Failure, OSError) as error:
                reason = f"does not work here: {error}"
                if peers and peers[-1].name == name:
                    close_peer(peers.pop(), say)
        if reason is not None:
            unavailable[name] = reason
            say(f"left out: {name}: {reason}")
    return peers, unavailable


def close_peer(peer, say):
    """Unmounts whatever is there; what stays is for the clean-up at the end."""
    try:
        peer.down()
        peer.disk.image.unlink(missing_ok=True)
    except (Failure, OSError) as error:
        say(f"warning: {peer.name}: {error}")


def clean(scratch, say):
    """Unmounts, detaches and ends what is left below a directory, and removes it."""
    if scratch is None:
        return
    script = 'set -euo pipefail; source "$1/scripts/common.sh"; clean_below "$2"'
    try:
        run(["bash", "-c", script, "bash", ROOT, scratch], limit_seconds=300)
    except Failure as error:
        say(f"warning: there was something left: {error}")


def versions(peers):
    """What was measured, by name."""
    found = {peer.name: output(peer.kind.version).splitlines()[0]
             for peer in peers if peer.kind.version}
    return found
