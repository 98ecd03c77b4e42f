"""Fills a mount, and checks what a full one must still do.

enospc.py fill|verify|overwrite|delete|clear MOUNT LEDGER KIND

The ledger, on another disk, holds name -> seed of every file that was written and fsynced.
"""

import errno
import json
import os
import pathlib
import random
import shutil
import sys
import time

COMMAND, MOUNT, LEDGER, KIND = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]
FILE_BYTES = 1 << 20
SMALL_BYTES = 3001
# Space that a deletion must give back: of what was deleted, in percent, within seconds.
RETURN_PERCENT, RETURN_SECONDS = 70, 60


def load():
    try:
        return json.loads(pathlib.Path(LEDGER).read_text())
    except FileNotFoundError:
        return {}


def save(ledger):
    pathlib.Path(LEDGER).write_text(json.dumps(ledger))


def contents(seed, length):
    return random.Random(seed).randbytes(length)


def write_synced(path, data):
    """True if everything was accepted and synced; False for ENOSPC; anything else is a defect."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view):]
        os.fsync(descriptor)
        done, descriptor = descriptor, None
        os.close(done)
        return True
    except OSError as error:
        if error.errno != errno.ENOSPC:
            sys.exit(f"DEFECT: {path.name}: {error} instead of ENOSPC")
        return False
    finally:
        if descriptor is not None:
            try:
                os.close(descriptor)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    sys.exit(f"DEFECT: close of {path.name}: {error} instead of ENOSPC")


def free_bytes():
    info = os.statvfs(MOUNT)
    return info.f_bavail * info.f_frsize


def copy_until_full():
    """One large copy without fsync, as cp does it: must be told, by write, fsync or close."""
    path, block = MOUNT / "large", contents("large", FILE_BYTES)
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < 1 << 40:
                written += file.write(block)
                if written % (64 * FILE_BYTES) == 0:
                    os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            sys.exit(f"DEFECT: copying: {error} instead of ENOSPC")
    print(f"a copy got ENOSPC after {written >> 20} MiB")
    return path


def fill():
    ledger = load()
    serial = len(ledger)
    for index in range(serial, serial + 40):
        name = f"before.{index}.{os.getpid()}"
        if not write_synced(MOUNT / name, contents(name, FILE_BYTES)):
            break
        ledger[name] = FILE_BYTES
    save(ledger)
    large = copy_until_full()
    verify()
    # Large files do not fit any more; fill the rest with small ones.
    small = 0
    while small < 20000:
        name = f"small.{small}.{os.getpid()}"
        if not write_synced(MOUNT / name, contents(name, SMALL_BYTES)):
            break
        ledger[name] = SMALL_BYTES
        small += 1
    save(ledger)
    print(f"{len(ledger)} files synced, {small} of them after the copy, {free_bytes() >> 10} KiB free")
    verify()
    # What was never synced may be gone; that it is still deletable is a promise.
    large.unlink()
    refill(ledger)


def refill(ledger):
    """Full again, of files that are known: after the large copy has gone."""
    for _ in range(RETURN_SECONDS * 2):
        name = f"after.{len(ledger)}.{os.getpid()}"
        if free_bytes() > 8 * FILE_BYTES:
            break
        time.sleep(0.5)
    else:
        sys.exit("DEFECT: deleting the large copy gave no space back")
    while write_synced(MOUNT / name, contents(name, FILE_BYTES)):
        ledger[name] = FILE_BYTES
        name = f"after.{len(ledger)}.{os.getpid()}"
    save(ledger)
    print(f"full again: {len(ledger)} files synced, {free_bytes() >> 10} KiB free")


def verify():
    for name, length in load().items():
        try:
            data = (MOUNT / name).read_bytes()
        except OSError as error:
            sys.exit(f"DEFECT: {name}, which was synced: {error}")
        if data != contents(name, length):
            sys.exit(f"DEFECT: {name}, which was synced, has other contents ({len(data)} bytes)")


def overwrite():
    """In place, so that nothing new is needed: must work on a full volume, again and again."""
    names = [name for name, length in load().items() if length == FILE_BYTES][:3]
    for _ in range(5):
        for name in names:
            if not write_synced(MOUNT / name, contents(name, FILE_BYTES)):
                sys.exit(f"DEFECT: overwriting {name} in place gives ENOSPC")


def delete():
    ledger = load()
    names = sorted(ledger)
    victims = names[::2]
    before = free_bytes()
    for name in victims:
        (MOUNT / name).unlink()
    deleted = sum(ledger.pop(name) for name in victims)
    save(ledger)
    deadline = time.monotonic() + RETURN_SECONDS
    while (back := free_bytes() - before) * 100 < deleted * RETURN_PERCENT:
        if time.monotonic() > deadline:
            sys.exit(f"DEFECT: deleted {deleted >> 10} KiB, only {back >> 10} came back")
        time.sleep(0.5)
    print(f"deleted {len(victims)} files of {deleted >> 20} MiB, {back >> 20} MiB came back")


def clear():
    for entry in list(os.scandir(MOUNT)):
        if entry.name != "lost+found":
            shutil.rmtree(entry.path) if entry.is_dir() else os.unlink(entry.path)
    save({})


{"fill": fill, "verify": verify, "overwrite": overwrite, "delete": delete, "clear": clear}[COMMAND]()
