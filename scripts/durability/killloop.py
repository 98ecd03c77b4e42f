"""Kills the daemon of a busy volume again and again, and compares what is left with the logs.

killloop.py SCRATCH ATREST EVIDENCE ROUNDS SEED SECONDS [--only-synced]
"""

import argparse
import pathlib
import pickle
import random
import shutil
import sys
import time

import verify
from volume import Trouble, Volume, Writers, look, mounted

KINDS = ["names", "names", "direct", "append", "replace", "map"]
NEVER = 1 << 62


class Loop:
    """The rounds on one volume. `bases` is what was found after the round before."""

    def __init__(self, arguments):
        self.arguments, self.chance = arguments, random.Random(arguments.seed)
        self.volume = Volume(arguments.scratch / "volume", arguments.atrest)
        self.writers = Writers(self.volume.mount, arguments.scratch / "logs", KINDS)
        self.bases, self.proved = {}, False

    def states(self):
        return look(self.volume.mount, self.writers.kinds)

    def begin(self):
        self.volume.init()
        self.volume.start()
        self.writers.make_directories()
        self.bases = self.states()

    def round(self, number):
        """Works, is killed, comes back, and is verified."""
        seconds = self.chance.uniform(0.1, self.chance.choice([0.6, self.arguments.seconds]))
        self.writers.start(f"{self.arguments.seed} {number}")
        time.sleep(seconds)
        # What had returned when the signal was sent had been handed over.
        cut = time.monotonic_ns()
        self.volume.kill()
        self.writers.wait()
        self.volume.detach()
        line = f"round {number}: killed after {seconds:.2f} s"
        if self.chance.random() < 0.25:
            line += self.kill_while_mounting()
        self.volume.fsck(deep=number % 10 == 9)
        self.volume.start()
        print(f"{line}; {self.verify(cut)}", flush=True)
        if self.chance.random() < 0.15:
            self.kill_while_unmounting()

    def kill_while_mounting(self):
        """Recovery is cut off as well; the next one has to find the same."""
        seconds = self.chance.uniform(0, 0.08)
        self.volume.begin()
        time.sleep(seconds)
        self.volume.kill()
        self.volume.detach()
        return f", and while mounting after {seconds * 1000:.0f} ms"

    def kill_while_unmounting(self):
        """All is on the disk or was handed over: nothing may change."""
        seconds = self.chance.uniform(0, 0.05)
        before = self.states()
        self.volume.daemon.terminate()
        time.sleep(seconds)
        self.volume.kill()
        self.volume.detach()
        self.volume.start()
        self.expect(before, {writer: [] for writer in before}, verify.Claim(NEVER, NEVER, False))
        print(f"  killed while unmounting after {seconds * 1000:.0f} ms; nothing changed", flush=True)

    def verify(self, cut):
        logs = {}
        for writer in self.writers.kinds:
            logs[writer], broken = verify.read_log(self.writers.log_of(writer))
            if broken and broken[0] < cut:
                raise Trouble(f"{writer}: {logs[writer][-1].operation}: {broken[1]} before the kill")
        claim, before = verify.Claim(cut, NEVER, self.arguments.only_synced), self.bases
        line = self.expect(before, logs, claim)
        if not self.proved:
            # A daemon that had lost all of this round would leave what was there before it.
            self.proved = bool(verify.verify(before, before, logs, claim)[0])
            if not self.proved and verify.last_sync(logs.values(), cut):
                raise Trouble("the verifier does not notice when everything is lost")
        return line

    def expect(self, bases, logs, claim):
        states = self.states()
        defects, line = verify.verify(bases, states, logs, claim)
        if defects:
            raise Trouble("not what was promised:\n  " + "\n  ".join(defects))
        self.bases = states
        return line

    def end(self):
        self.volume.stop()
        self.volume.fsck(deep=True)
        self.volume.check_log()

    def keep_evidence(self):
        """Everything that the verdict was made of, and the volume as it is now."""
        target = self.arguments.evidence
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "bases.pickle").write_bytes(pickle.dumps(self.bases))
        for directory in [self.writers.logs, self.volume.backing, self.volume.directory / "keys"]:
            shutil.copytree(directory, target / directory.name)
        shutil.copy(self.volume.log, target)

    def abandon(self):
        self.writers.abandon()
        if self.volume.daemon and self.volume.daemon.poll() is None:
            self.volume.daemon.kill()
            self.volume.daemon.wait()
        if mounted(self.volume.mount):
            self.volume.detach()


def parse():
    parser = argparse.ArgumentParser()
    for name in ["scratch", "atrest", "evidence"]:
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("rounds", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--only-synced", action="store_true")
    return parser.parse_args()


def main():
    arguments = parse()
    loop, number = Loop(arguments), 0
    try:
        loop.begin()
        for number in range(arguments.rounds):
            loop.round(number)
        loop.end()
    except Trouble as trouble:
        loop.keep_evidence()
        print(f"DEFECT in round {number} of seed {arguments.seed}: {trouble}\n"
              f"kept: {arguments.evidence}", flush=True)
        sys.exit(1)
    finally:
        loop.abandon()
    print(f"{arguments.rounds} rounds, nothing lost")


if __name__ == "__main__":
    main()
