"""Breaks the disk below a busy volume in every way that has a name, and looks at who is told.

broken.py SCRATCH ATREST LIBRARY EVIDENCE SEED FILESYSTEM|layer CASE

CASE is a part of the names of the cases to run; empty for all.

Asserted for each way: every handle with work in flight is told, by write, fsync or close, or what
it was promised is there; the daemon neither hangs nor dies; unmounting works; and once the disk is
whole again the volume mounts, has everything that was synced before, and checks clean.
"""

import errno
import fcntl
import os
import pathlib
import random
import shutil
import struct
import sys
import threading
import time

import verify
from disks import Disk
from faults import ALL, ALLOCATIONS, READS, SYNCS, WRITES, Faults
from model import contents
from volume import Trouble, Volume, Writers, look, mounted, must, run, unmount

KINDS = ["names", "direct", "append", "replace"]
NEVER = 1 << 62
HANDLES, KEPT = 8, 12
SPAN = 4 << 20
# What a broken disk may be called.
TOLD = {errno.EIO, errno.ENOSPC, errno.EROFS}
HANG_SECONDS = 60
NOT_DURABLE = 52
IOC_SHUTDOWN, FLUSH_LOG, NO_LOG_FLUSH = 0x8004587D, 0, 2


class Handle:
    """An open file with work of its own in flight. Two of them share each file."""

    def __init__(self, mount, index, seed):
        self.path, self.offset = mount / f"held.{index // 2}", (index % 2) * SPAN
        self.tag, self.written, self.errors, self.synced = f"{seed} held {index}", 0, [], 0
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)

    def attempt(self, call):
        try:
            return call()
        except OSError as error:
            self.errors.append(error.errno)
            return None

    def write(self, length):
        """Appends to what it has written; through the page cache."""
        data = contents(self.tag, SPAN)[self.written:self.written + length]
        count = self.attempt(lambda: os.pwrite(self.descriptor, data, self.offset + self.written))
        self.written += count or 0

    def sync(self):
        def call():
            os.fsync(self.descriptor)
            return self.written
        # What an earlier error concerned is not promised by a later success.
        done = self.attempt(call)
        if done is not None and not self.errors:
            self.synced = done

    def close(self):
        descriptor, self.descriptor = self.descriptor, None
        if descriptor is not None:
            self.attempt(lambda: os.close(descriptor))

    def check(self):
        """What it was promised is there, and nothing that it never wrote."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            found = file.read(SPAN)
        expected = contents(self.tag, SPAN)
        if found[:self.synced] != expected[:self.synced]:
            raise Trouble(f"{self.path.name}+{self.offset}: fsync returned for {self.synced} bytes, "
                          "which are not there")
        pages = (len(found) + 4095) // 4096
        for page in range(pages):
            part = found[page * 4096:(page + 1) * 4096].rstrip(b"\0")
            # As it was after some write: the work appends, so that the rest of a page is zeros.
            if part != expected[page * 4096:][:len(part)]:
                raise Trouble(f"{self.path.name}+{self.offset}: page {page} was never written so")


class Case:
    """One way to break a disk: `strike` breaks it, `mend` makes it whole before the next mount."""

    def __init__(self, name, strike, mend, told, remounts=True, file=""):
        self.name, self.strike, self.mend, self.file = name, strike, mend, file
        # "all": every handle has to get an error. "some": what got none has to be there.
        self.told, self.remounts = told, remounts

    def must_bite(self, volume):
        """Space may have been allocated before; a volume on a tiny disk has no log."""
        return self.file != "" and (self.file != "log" or (volume.backing / "log").exists())


class Bench:
    """A fresh volume for each case, on a disk that can be broken."""

    def __init__(self, scratch, atrest, library, seed, filesystem):
        self.scratch, self.atrest, self.library, self.seed = scratch, atrest, library, seed
        self.filesystem, self.disk, self.faults = filesystem, None, None
        self.volume, self.writers, self.handles = None, None, []
        self.chance = random.Random(f"{seed} {filesystem}")

    def cases(self):
        if self.filesystem == "layer":
            yield from self.layer_cases()
            return
        nothing = lambda: None
        yield Case("full", self.fill, self.empty, "some", remounts=False)
        if self.filesystem == "ext4":
            yield Case("read-only", self.abort_ext4, nothing, "all")
        else:
            yield Case("shut down", lambda: self.shut_down(FLUSH_LOG), nothing, "all")
        yield Case("gone", lambda: self.shut_down(NO_LOG_FLUSH), nothing, "all")
        yield Case("EIO for new blocks", self.exhaust, self.replenish, "some")

    def layer_cases(self):
        for name in ["data/", "super.", "log"]:
            for calls, what in [(SYNCS, "sync"), (WRITES, "write")]:
                for count in [1, ALL]:
                    yield self.layer_case(calls, f"{what} of {name}", name, count, "some")
        yield self.layer_case(ALLOCATIONS, "allocation", "", ALL, "some")
        yield self.layer_case(READS, "read", "", ALL, "some")

    def layer_case(self, calls, what, name, count, told):
        title = f"EIO for {'one' if count == 1 else 'each'} {what}"
        return Case(title, lambda: self.faults.switch(calls, errno.EIO, name, count),
                    self.faults_off, told, file=name)

    def faults_off(self):
        self.faults.off()

    # Ways to break.

    def fill(self):
        """Somebody else takes all that is left of the disk."""
        with open(self.disk.where / "ballast", "wb") as file:
            free = os.statvfs(self.disk.where)
            left = free.f_bavail * free.f_frsize
            while left > 4096:
                left //= 2
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, left)
                    left *= 2
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self):
        (self.disk.where / "ballast").unlink()

    def abort_ext4(self):
        """As after an error in its metadata: it takes no more writes."""
        run("mount", "-o", "remount,abort", self.disk.where)
        if can_write(self.disk.where):
            raise Trouble("the backing filesystem did not become read-only")

    def shut_down(self, how):
        """Every operation on the disk fails from now on; what was not synced is lost."""
        descriptor = os.open(self.disk.where, os.O_RDONLY)
        fcntl.ioctl(descriptor, IOC_SHUTDOWN, struct.pack("I", how))
        os.close(descriptor)

    def exhaust(self):
        """The image is thin: the disk has no block any more for what was never written."""
        with open(self.thin / "ballast", "wb") as file:
            try:
                while True:
                    file.write(bytes(1 << 20))
                    file.flush()
            except OSError:
                pass

    def replenish(self):
        (self.thin / "ballast").unlink()

    @property
    def thin(self):
        return self.scratch / "thin"

    # A case from its beginning to its end.

    def prepare(self):
        place = self.scratch / "volume"
        if self.filesystem == "layer":
            self.volume = Volume(place, self.atrest)
        else:
            self.thin.mkdir()
            must("mount", "-t", "tmpfs", "-o", "size=640m", "tmpfs", self.thin)
            self.disk = Disk(self.thin / "disk.img", self.filesystem, self.scratch / "disk")
            self.disk.make()
            self.disk.mount()
            (self.disk.where / "backing").mkdir()
            self.volume = self.disk.volume(place, self.atrest)
        self.volume.init()
        if self.filesystem == "layer":
            self.faults = Faults(self.library, self.volume, self.scratch / "control")
        self.volume.start()
        self.writers = Writers(self.volume.mount, self.scratch / "logs", KINDS)

    def keep_files(self):
        """Synced before anything breaks: these have to survive everything."""
        for index in range(KEPT):
            with open(self.volume.mount / f"kept.{index}", "wb") as file:
                file.write(contents(f"{self.seed} kept {index}", [300, 9000, 700_000][index % 3]))
                file.flush()
                os.fsync(file.fileno())

    def check_kept(self, may_fail=False):
        for index in range(KEPT):
            try:
                found = (self.volume.mount / f"kept.{index}").read_bytes()
            except OSError as error:
                if may_fail and error.errno in TOLD:
                    continue
                raise Trouble(f"kept.{index}, which was synced: {error}") from error
            if found != contents(f"{self.seed} kept {index}", len(found)) or not found:
                raise Trouble(f"kept.{index}, which was synced, has other contents")

    def run_case(self, case):
        self.prepare()
        self.keep_files()
        self.writers.make_directories()
        bases = look(self.volume.mount, self.writers.kinds)
        self.handles = [Handle(self.volume.mount, index, self.seed) for index in range(HANDLES)]
        for handle in self.handles:
            handle.write(20_000)
            handle.sync()
        self.writers.start(f"{self.seed} {case.name}")
        time.sleep(self.chance.uniform(0.2, 0.8))
        for handle in self.handles:
            handle.write(100_000)
        case.strike()
        if case.name == "full":
            in_time("filling the volume", self.fill_volume)
        if case.file == "super.":
            self.wait_for_epoch()
        in_time("working on", self.work_on)
        self.told(case)
        time.sleep(0.5)
        in_time("stopping the writers", self.writers.stop)
        self.alive()
        if not case.remounts:
            case.mend()
            self.recover_in_place()
        code = self.end_mount()
        if case.remounts:
            self.mend_disk(case)
        self.volume.start()
        self.verify(bases)
        self.volume.stop()
        self.volume.fsck(deep=True)
        errors = sorted({errno.errorcode[e] for handle in self.handles for e in handle.errors})
        told = sum(1 for handle in self.handles if handle.errors)
        print(f"{self.filesystem}, {case.name}: {told} of {HANDLES} handles told {' '.join(errors)}; "
              f"umount {code}", flush=True)
        self.clear()

    def wait_for_epoch(self):
        """Superblocks are written when an epoch ends, every few seconds."""
        deadline = time.monotonic() + 20
        while not self.faults.hits() and time.monotonic() < deadline:
            time.sleep(0.05)

    def fill_volume(self):
        """What the volume had taken from the disk before is used up, too."""
        descriptor = os.open(self.volume.mount / "more", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            for _ in range(2048):
                os.write(descriptor, os.urandom(1 << 20))
                os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        else:
            raise Trouble("the disk was not full: this case does not bite")
        finally:
            os.close(descriptor)

    def work_on(self):
        for handle in self.handles:
            handle.write(SPAN - 120_000 if self.filesystem != "layer" else 200_000)
        for handle in self.handles:
            handle.sync()
        # The second time tells nothing that is needed; it must not hang.
        self.handles[0].sync()
        for handle in self.handles:
            handle.close()

    def told(self, case):
        for handle in self.handles:
            strange = [error for error in handle.errors if error not in TOLD]
            if strange:
                raise Trouble(f"a handle got {errno.errorcode.get(strange[0], strange[0])}")
            if case.name == "full" and set(handle.errors) - {errno.ENOSPC}:
                raise Trouble(f"a handle got {handle.errors} of a full disk")
            if not handle.errors and (case.told == "all" or handle.synced < handle.written):
                raise Trouble(f"the handle of {handle.path.name}+{handle.offset} was told nothing")
        if self.faults and not self.faults.hits() and case.must_bite(self.volume):
            raise Trouble("no call failed: this case does not bite")

    def alive(self):
        """It serves on: reads what it can, and answers."""
        if self.volume.daemon.poll() is not None:
            raise Trouble(f"the daemon ended: {self.volume.log_end()}")
        in_time("reading", lambda: self.check_kept(may_fail=True))
        # Without a disk there may be nothing to show; it must not wait for it.
        run(self.atrest, "status", self.volume.mount, env=self.volume.environment, timeout=30)
        self.volume.check_log()

    def recover_in_place(self):
        """A full disk poisons nothing: with space again, the same mount takes writes again."""
        deadline = time.monotonic() + 30
        while True:
            try:
                with open(self.volume.mount / "again", "wb") as file:
                    file.write(contents("again", 1_000_000))
                    file.flush()
                    os.fsync(file.fileno())
                return
            except OSError as error:
                if error.errno != errno.ENOSPC or time.monotonic() > deadline:
                    raise Trouble(f"with space again, writing fails: {error}") from error
                time.sleep(0.2)

    def end_mount(self):
        """`atrest umount` may refuse, as not everything is durable; umount(8) has to work then."""
        code, output = run(self.atrest, "umount", self.volume.mount, env=self.volume.environment)
        if code not in (0, NOT_DURABLE):
            raise Trouble(f"umount ended with {code}: {output}")
        if code == NOT_DURABLE:
            unmount(self.volume.mount)
        self.volume.ended()
        return code

    def mend_disk(self, case):
        if self.disk is None:
            case.mend()
            return
        case.mend()
        in_time("unmounting the backing filesystem", self.disk.unmount)
        if self.filesystem == "ext4":
            code, output = run("e2fsck", "-p", self.disk.image)
            if code > 1:
                raise Trouble(f"e2fsck ended with {code}: {output}")
        self.disk.mount()

    def keep_evidence(self, target):
        """What the writers logged, and the daemon."""
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.scratch / "logs", target)
        shutil.copy(self.volume.log, target)

    def verify(self, bases):
        logs = {}
        for writer in self.writers.kinds:
            logs[writer], broken = verify.read_log(self.writers.log_of(writer))
            if broken and int(broken[1].split()[0]) not in TOLD:
                raise Trouble(f"{writer}: {logs[writer][-1].operation}: {broken[1]}")
        states = look(self.volume.mount, self.writers.kinds)
        defects, _ = verify.verify(bases, states, logs, verify.Claim(NEVER, NEVER, True))
        if defects:
            raise Trouble("not what was promised:\n  " + "\n  ".join(defects))
        self.check_kept()
        for handle in self.handles:
            handle.check()

    def clear(self):
        """All that this case has made, also after a defect."""
        if self.faults:
            self.faults.off()
        for handle in self.handles:
            handle.close()
        if self.writers:
            self.writers.abandon()
        if self.volume:
            if self.volume.daemon and self.volume.daemon.poll() is None:
                self.volume.kill()
            self.volume.detach()
        if self.disk and mounted(self.disk.where):
            self.disk.unmount()
        if mounted(self.thin):
            unmount(self.thin)
        for name in ["volume", "logs", "disk", "thin"]:
            shutil.rmtree(self.scratch / name, ignore_errors=True)
        self.handles, self.volume, self.writers, self.disk, self.faults = [], None, None, None, None


def can_write(directory):
    try:
        (directory / "probe").write_bytes(b"probe")
        return True
    except OSError:
        return False


def in_time(what, call):
    """A call that may hang in the kernel, which no exception can end."""
    failure = []

    def body():
        try:
            call()
        except Exception as error:  # Carried over to the thread that waits.
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(HANG_SECONDS)
    if thread.is_alive():
        raise Trouble(f"{what} took more than {HANG_SECONDS} s")
    if failure:
        raise failure[0]


def main():
    scratch, atrest, library, evidence, seed, filesystem, only = sys.argv[1:]
    bench, defects = Bench(pathlib.Path(scratch), atrest, library, seed, filesystem), 0
    for case in bench.cases():
        if only not in case.name:
            continue
        try:
            bench.run_case(case)
        except Trouble as trouble:
            defects += 1
            kept = pathlib.Path(evidence) / f"{filesystem}-{case.name.replace('/', '')}"
            bench.keep_evidence(kept)
            print(f"DEFECT: {filesystem}, {case.name}, seed {seed}: {trouble}\n"
                  f"kept: {kept}\n{bench.volume.log_end()[-700:]}", flush=True)
            bench.clear()
    sys.exit(1 if defects else 0)


if __name__ == "__main__":
    main()
