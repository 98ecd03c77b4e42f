"""Cuts the power of a busy volume's disk, in copies, and compares what is left with the logs.

powercut.py SCRATCH ATREST EVIDENCE CUTS SEED FILESYSTEM [--lie LIBRARY]

With --lie the daemon's syncs do nothing; then it has to find a defect.
"""

import argparse
import os
import pathlib
import pickle
import random
import shutil
import sys
import time

import verify
from disks import Bench, Disk
from faults import HINTS, LIE, SYNCS, Faults
from volume import Trouble, Writers, look, mounted

KINDS = ["names", "names", "direct", "append", "replace", "map"]
CUTS_PER_ROUND_MAX, SECONDS_MAX = 4, 7
NEVER = 1 << 62


class Cut:
    """One clone and what was true when it was made."""

    def __init__(self, image, moments, what):
        self.image, self.what = image, what
        self.claim = verify.Claim(*moments, synced_only=True)


class Cuts:
    """Rounds on one volume; every round leaves some cuts, which are verified when it is quiet."""

    def __init__(self, arguments):
        self.arguments, self.chance = arguments, random.Random(arguments.seed)
        scratch, filesystem = arguments.scratch, arguments.filesystem
        self.bench = Bench(scratch)
        self.disk = Disk(scratch / "outer/disk.img", filesystem, scratch / "disk")
        self.volume = self.disk.volume(scratch / "volume", arguments.atrest)
        self.faults = None
        self.writers = Writers(self.volume.mount, scratch / "logs", KINDS)
        self.bases, self.made, self.verified = {}, 0, 0

    def states(self, volume):
        return look(volume.mount, self.writers.kinds)

    def begin(self):
        self.disk.make()
        self.disk.mount()
        (self.disk.where / "backing").mkdir()
        self.volume.init()
        if self.arguments.lie:
            self.faults = Faults(self.arguments.lie, self.volume, self.arguments.scratch / "control")
        self.volume.start()
        self.writers.make_directories()
        self.bases = without_times(self.states(self.volume))
        if self.faults:
            self.faults.switch(SYNCS | HINTS, LIE)

    def round(self, number, cuts_max):
        """Works, is cut off some times, goes on, stops; then each cut is looked at."""
        self.writers.start(f"{self.arguments.seed} {number}")
        end = time.monotonic() + self.chance.uniform(0.5, SECONDS_MAX)
        moments = sorted(self.chance.uniform(0.1, end - time.monotonic())
                         for _ in range(min(cuts_max, self.chance.randint(1, CUTS_PER_ROUND_MAX))))
        start, cuts = time.monotonic(), []
        for moment in moments:
            time.sleep(max(0, start + moment - time.monotonic()))
            cuts.append(self.cut(f"round {number}: cut after {moment:.2f} s"))
        self.writers.stop()
        logs = self.read_logs()
        for cut in cuts:
            self.check(cut, logs)
        # Not a cut: the running volume shows what was done, or the model is wrong.
        states = self.expect(self.volume, logs, verify.Claim(NEVER, NEVER, False))[0]
        self.bases = without_times(states)
        self.writers.sync()
        if len(cuts) < cuts_max and self.chance.random() < 0.5:
            self.cut_while_unmounting(number)

    def cut(self, what):
        self.made += 1
        image = self.bench.outer / f"cut.{self.made}.img"
        return Cut(image, self.disk.cut(image), what)

    def cut_while_unmounting(self, number):
        """All is durable, so that exactly this has to be there."""
        seconds = self.chance.uniform(0, 0.05)
        self.volume.daemon.terminate()
        time.sleep(seconds)
        cut = self.cut(f"round {number}: cut {seconds * 1000:.0f} ms into unmounting")
        self.volume.ended()
        cut.claim = verify.Claim(NEVER, NEVER, False)
        self.check(cut, {writer: [] for writer in self.writers.kinds})
        self.volume.start()

    def read_logs(self):
        logs = {}
        for writer in self.writers.kinds:
            logs[writer], broken = verify.read_log(self.writers.log_of(writer))
            if broken:
                raise Trouble(f"{writer}: {logs[writer][-1].operation}: {broken[1]}")
        return logs

    def check(self, cut, logs):
        """Mounts the copy as it would be after the power has come back."""
        place = self.arguments.scratch / "cut"
        place.mkdir()
        disk = Disk(cut.image, self.arguments.filesystem, place / "disk")
        disk.mount()
        volume = disk.volume(place / "volume", self.arguments.atrest)
        # What this host remembers of the volume is of the original.
        os.symlink(self.volume.directory / "keys", volume.directory / "keys")
        volume.mount.mkdir()
        try:
            volume.fsck(deep=True)
            volume.start()
            line = self.expect(volume, logs, cut.claim)[1]
            volume.stop()
            volume.fsck(deep=False)
        except Trouble as trouble:
            raise Trouble(f"{cut.what}: {trouble}") from trouble
        finally:
            if volume.daemon and volume.daemon.poll() is None:
                volume.kill()
            volume.detach()
            disk.unmount()
        shutil.rmtree(place)
        cut.image.unlink()
        self.verified += 1
        print(f"{cut.what}; {line}", flush=True)

    def expect(self, volume, logs, claim):
        states = self.states(volume)
        defects, line = verify.verify(self.bases, states, logs, claim)
        if defects:
            raise Trouble("not what was promised:\n  " + "\n  ".join(defects))
        return states, line

    def end(self):
        self.volume.stop()
        self.volume.fsck(deep=True)

    def keep_evidence(self):
        """The disk that was cut off, the logs and what the volume was before."""
        target = self.arguments.evidence
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "bases.pickle").write_bytes(pickle.dumps(self.bases))
        for path in [self.writers.logs, self.volume.directory / "keys"]:
            shutil.copytree(path, target / path.name)
        shutil.copy(self.volume.log, target)
        for image in self.bench.outer.glob("cut.*.img"):
            os.system(f"cp --sparse=always '{image}' '{target}'")

    def abandon(self):
        self.writers.abandon()
        if self.volume.daemon and self.volume.daemon.poll() is None:
            self.volume.kill()
        if mounted(self.volume.mount):
            self.volume.detach()
        if mounted(self.disk.where):
            self.disk.unmount()
        self.bench.close()


def without_times(states):
    """What the kernel shows of a running mount is the time in its own cache, which need not be the
    daemon's to the millisecond unless utimensat(2) set it."""
    for entries in states.values():
        for entry in entries.values():
            entry.mtime = None
    return states


def parse():
    parser = argparse.ArgumentParser()
    for name in ["scratch", "atrest", "evidence"]:
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("cuts", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("filesystem")
    parser.add_argument("--lie", type=pathlib.Path)
    return parser.parse_args()


def main():
    arguments = parse()
    cuts, number = Cuts(arguments), 0
    try:
        cuts.begin()
        while cuts.verified < arguments.cuts:
            cuts.round(number, arguments.cuts - cuts.verified)
            number += 1
        cuts.end()
    except Trouble as trouble:
        cuts.keep_evidence()
        print(f"DEFECT of seed {arguments.seed} on {arguments.filesystem}: {trouble}\n"
              f"kept: {arguments.evidence}", flush=True)
        sys.exit(1)
    finally:
        cuts.abandon()
    print(f"{cuts.verified} cuts on {arguments.filesystem}, nothing lost that was synced")


if __name__ == "__main__":
    main()
