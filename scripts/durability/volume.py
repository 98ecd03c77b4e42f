"""A volume for tests that end its daemon: mounts in the foreground, so that the process is known."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

from model import snapshot

HERE = pathlib.Path(__file__).resolve().parent
SECONDS_MAX = 120


class Trouble(Exception):
    """Something that the test found, in words."""


def run(*command, **options):
    """Runs a command; gives exit code and everything it said."""
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
                          timeout=options.pop("timeout", SECONDS_MAX), check=False, **options)
    return done.returncode, done.stdout


def must(*command, **options):
    code, output = run(*command, **options)
    if code:
        raise Trouble(f"{' '.join(map(str, command))} ended with {code}: {output[-2000:]}")
    return output


def mounted(path):
    """Whether something is mounted there; asks the kernel's list and not the mount, which may hang."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as table:
        return any(line.split(" ")[4] == str(path) for line in table)


def unmount(path):
    """A filesystem that is not ours, or ours after its daemon has died."""
    for _ in range(50):
        code, output = run("umount", path) if os.geteuid() == 0 else run("fusermount3", "-u", path)
        if code == 0 or not mounted(path):
            return
        time.sleep(0.1)
    users = users_of(path)
    run("umount", "-l", path)
    raise Trouble(f"cannot unmount {path}: {output.strip()}; used by: {users or 'nobody'}")


def users_of(path):
    """Processes with something open below a path; asks no mount."""
    users = []
    for link in itertools.chain(pathlib.Path("/proc").glob("[0-9]*/fd/*"),
                                pathlib.Path("/proc").glob("[0-9]*/cwd")):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target == str(path) or target.startswith(f"{path}/"):
            users.append(f"{link}: {target}")
    return ", ".join(users)


class Volume:
    """DIRECTORY/{mnt,keys,state} and the ciphertext, at DIRECTORY/backing unless told otherwise."""

    def __init__(self, directory, atrest, backing=None, environment=None):
        self.directory, self.atrest = pathlib.Path(directory).resolve(), atrest
        self.mount, self.log = self.directory / "mnt", self.directory / "daemon.log"
        self.backing = pathlib.Path(backing or self.directory / "backing").resolve()
        self.environment = {**os.environ, "ATREST_KEYSTORE": str(self.directory / "keys"),
                            "ATREST_STATE": str(self.directory / "state")}
        # For the daemon alone: a fault layer must not reach the tools that check.
        self.preload = environment or {}
        self.daemon = None

    def init(self, kind="atrest"):
        self.directory.mkdir(parents=True, exist_ok=True)
        must(HERE.parent / "volume", "init", kind, self.directory)

    def begin(self):
        """Starts the daemon and does not wait for the mount."""
        with open(self.log, "ab") as log:
            self.daemon = subprocess.Popen(
                [self.atrest, "mount", str(self.backing), str(self.mount), "--foreground",
                 "--log", str(self.log)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd="/", env={**self.environment, **self.preload})

    def start(self):
        self.begin()
        deadline = time.monotonic() + SECONDS_MAX
        while not mounted(self.mount):
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                raise Trouble(f"the volume does not mount: {self.log_end()}")
            time.sleep(0.002)
        os.statvfs(self.mount)

    def kill(self):
        """SIGKILL to the daemon that was started here; returns when it is gone."""
        if self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGKILL)
        code = self.daemon.wait(SECONDS_MAX)
        if code not in (-signal.SIGKILL, 0):
            raise Trouble(f"the daemon had ended by itself, with {code}: {self.log_end()}")

    def detach(self):
        if mounted(self.mount):
            unmount(self.mount)

    def stop(self):
        """Unmounts in order."""
        must(self.atrest, "umount", self.mount, env=self.environment)
        self.ended()

    def ended(self):
        """Waits for the daemon after an unmount. It has to end by itself, and well."""
        try:
            code = self.daemon.wait(SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Trouble("the daemon does not end after the unmount") from None
        self.check_log()
        if code < 0:
            raise Trouble(f"the daemon died of signal {-code}: {self.log_end()}")
        return code

    def fsck(self, deep):
        code, output = run(self.atrest, "fsck", *(["--deep"] if deep else []), self.backing,
                           env=self.environment)
        if code:
            raise Trouble(f"fsck ended with {code}: {output[-2000:]}")

    def check_log(self):
        if "panicked" in self.log.read_text(errors="replace"):
            raise Trouble(f"the daemon panicked: {self.log_end()}")

    def log_end(self):
        try:
            return self.log.read_text(errors="replace")[-2000:]
        except FileNotFoundError:
            return "(no log)"


def look(mount, writers):
    """writer -> what its directory holds."""
    try:
        return {writer: snapshot(mount / writer) for writer in writers}
    except OSError as error:
        raise Trouble(f"what is there cannot be read: {error}") from error


class Writers:
    """Processes that work below a mount, each in its directory, and log into another one."""

    def __init__(self, mount, logs, kinds):
        self.mount, self.logs = pathlib.Path(mount), pathlib.Path(logs)
        self.kinds = {f"{kind}{index}": kind for index, kind in enumerate(kinds)}
        self.processes = {}

    def make_directories(self):
        for writer in self.kinds:
            (self.mount / writer).mkdir(exist_ok=True)
        self.sync()

    def sync(self):
        descriptor = os.open(self.mount, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def start(self, seed):
        self.logs.mkdir(parents=True, exist_ok=True)
        for writer, kind in self.kinds.items():
            self.log_of(writer).unlink(missing_ok=True)
            with open(self.logs / f"{writer}.err", "wb") as errors:
                self.processes[writer] = subprocess.Popen(
                    [sys.executable, HERE / "writer.py", kind, self.mount / writer,
                     self.log_of(writer), f"{seed} {writer}"],
                    stdin=subprocess.DEVNULL, stderr=errors, cwd="/")
        deadline = time.monotonic() + SECONDS_MAX
        while not all(self.log_of(writer).exists() for writer in self.kinds):
            if time.monotonic() > deadline:
                raise Trouble("the writers do not begin")
            time.sleep(0.005)

    def log_of(self, writer):
        return self.logs / f"{writer}.log"

    def wait(self, seconds=60):
        """Until all have ended. One that does not is hung on the mount, which is a defect."""
        deadline, hung = time.monotonic() + seconds, []
        for writer, process in self.processes.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                hung.append(writer)
                process.kill()
        for writer, process in self.processes.items():
            errors = (self.logs / f"{writer}.err").read_text(errors="replace")
            # A mapping of a mount that died is SIGBUS.
            if process.poll() not in (0, -signal.SIGBUS) and writer not in hung:
                raise Trouble(f"writer {writer} ended with {process.poll()}: {errors[-1500:]}")
        if hung:
            raise Trouble(f"these writers hung for {seconds} s: {', '.join(hung)}")

    def stop(self):
        """Ends them between two operations."""
        for process in self.processes.values():
            process.terminate()
        self.wait()

    def abandon(self):
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
