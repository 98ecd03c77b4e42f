"""Loads a mount with files and streams while sampling its daemon's memory.

memory.py MOUNT FILES GIB VOLUME RSS_MIB_MAX RSS_IDLE_MIB_MAX MOUNT_MS_MAX
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

MOUNT, VOLUME = pathlib.Path(sys.argv[1]), sys.argv[4]
FILES, GIB = int(sys.argv[2]), int(sys.argv[3])
RSS_MIB_MAX, RSS_IDLE_MIB_MAX, MOUNT_MS_MAX = map(int, sys.argv[5:8])
FILES_PER_DIRECTORY = 1000
TOOL = pathlib.Path(__file__).resolve().parent.parent / "volume"
defects = []


def volume(command):
    done = subprocess.run([TOOL, command, VOLUME], capture_output=True, text=True, cwd="/",
                          stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"volume {command}: {done.stderr}")
    return done.stdout.strip()


def memory_mib(pid, field):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1024


class Phase:
    """One load: reports its time and the daemon's largest resident set during it."""

    def __init__(self, name):
        self.name, self.peak, self.running = name, 0.0, True

    def __enter__(self):
        self.pid, self.start = volume("pid"), time.monotonic()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()

    def sample(self):
        while self.running:
            self.peak = max(self.peak, memory_mib(self.pid, "VmRSS"))
            time.sleep(0.05)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()
        self.peak = max(self.peak, memory_mib(self.pid, "VmHWM"))
        print(f"{self.name}: {time.monotonic() - self.start:.1f} s, at most {self.peak:.0f} MiB",
              flush=True)
        if self.peak > RSS_MIB_MAX:
            defects.append(f"{self.name}: {self.peak:.0f} MiB, more than {RSS_MIB_MAX}")


def path(index):
    return MOUNT / f"d{index // FILES_PER_DIRECTORY}" / f"file-{index}"


def create():
    for index in range(FILES):
        if index % FILES_PER_DIRECTORY == 0:
            path(index).parent.mkdir()
        with open(path(index), "wb") as file:
            if index % 10 == 0:
                file.write(b"%d" % index)


def stat_all():
    count = 0
    for directory in os.scandir(MOUNT):
        count += sum(entry.stat().st_nlink for entry in os.scandir(directory.path))
    if count != FILES:
        defects.append(f"{count} files instead of {FILES}")


def check_some():
    for index in range(0, FILES, max(1, FILES // 100) // 10 * 10 or 10):
        if path(index).read_bytes() != b"%d" % index:
            defects.append(f"{path(index)}: wrong contents")


def remove():
    for directory in list(os.scandir(MOUNT)):
        shutil.rmtree(directory.path)


def stream():
    """Random bytes that repeat with an odd period: a page in the wrong place does not match."""
    block = os.urandom((1 << 20) + 4093)
    name, length = MOUNT / "stream", GIB << 30
    with open(name, "wb", buffering=0) as file:
        done = 0
        while done < length:
            done += file.write(block[:min(len(block), length - done)])
        os.fsync(file.fileno())
    with open(name, "rb", buffering=0) as file:
        done = 0
        while done < length:
            wanted = block[:min(len(block), length - done)]
            read = file.read(len(wanted))
            if read != wanted[:len(read)] or not read:
                defects.append(f"stream: wrong contents near {done}")
                break
            if len(read) < len(wanted):
                file.seek(done)
                read = b"".join(iter_exactly(file, len(wanted)))
                if read != wanted:
                    defects.append(f"stream: wrong contents near {done}")
                    break
            done += len(wanted)
    name.unlink()


def iter_exactly(file, length):
    while length:
        part = file.read(length)
        if not part:
            return
        length -= len(part)
        yield part


def timed_mount(what):
    volume("umount")
    start = time.monotonic()
    volume("mount")
    milliseconds = (time.monotonic() - start) * 1000
    print(f"mount {what}: {milliseconds:.0f} ms", flush=True)
    if milliseconds > MOUNT_MS_MAX:
        defects.append(f"mount {what}: {milliseconds:.0f} ms, more than {MOUNT_MS_MAX}")


def main():
    with Phase(f"create {FILES} files"):
        create()
    with Phase("stat them"):
        stat_all()
    timed_mount(f"with {FILES} files")
    with Phase("stat them after the remount"):
        stat_all()
    check_some()
    with Phase("remove them"):
        remove()
    with Phase(f"write and read {GIB} GiB"):
        stream()
    pid, deadline = volume("pid"), time.monotonic() + 30
    while (idle := memory_mib(pid, "VmRSS")) > RSS_IDLE_MIB_MAX and time.monotonic() < deadline:
        time.sleep(1)
    print(f"idle afterwards: {idle:.0f} MiB")
    if idle > RSS_IDLE_MIB_MAX:
        defects.append(f"idle: {idle:.0f} MiB, more than {RSS_IDLE_MIB_MAX}")
    timed_mount("afterwards")
    for defect in defects:
        print(f"DEFECT: {defect}")
    sys.exit(1 if defects else 0)


main()
