"""Jobs of programs that people run: databases and builds."""

import contextlib
import glob
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import time

from jobs import job
from setup import NPM_QUIET, cargo_archive, npm_cache, npm_project
from shell import Failure, run, timed


@job({"sqlite_per_s": "SQLite in WAL mode, synchronous=FULL: transactions of one row"}, "program")
def sqlite(peer, setup):
    path = peer.mount / "sqlite.db"
    for leftover in peer.mount.glob("sqlite.db*"):
        leftover.unlink()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        mode = database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise Failure(f"SQLite has no WAL here: it is {mode}")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
        peer.settle()
        start, count = time.monotonic(), 0
        while time.monotonic() < start + setup.size.seconds:
            database.execute("INSERT INTO t VALUES (?, ?)", (count, f"row {count:060}"))
            count += 1
        rate = count / (time.monotonic() - start)
    return {"sqlite_per_s": rate}


class Postgres:
    """A server whose data are in the mount, as the user that it wants to be."""

    def __init__(self, peer, setup):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
        if not found:
            raise Failure("PostgreSQL is not installed (bench/run --install)")
        try:
            self.user = pwd.getpwnam("postgres")
        except KeyError:
            raise Failure("there is no user postgres") from None
        self.binaries = os.path.dirname(found[-1])
        self.data = peer.mount / "postgres"
        self.socket = setup.scratch / "postgres.socket"
        self.limit_seconds = setup.limit_seconds
        self.server = None

    def call(self, name, *arguments):
        return run([f"{self.binaries}/{name}", *arguments], limit_seconds=self.limit_seconds,
                   cwd=self.socket, env=self.environment(), user=self.user.pw_uid,
                   group=self.user.pw_gid, extra_groups=[])

    def environment(self):
        return dict(os.environ, PGHOST=str(self.socket), PGUSER="postgres", PGDATABASE="postgres")

    def prepare(self, scale):
        """A new cluster with pgbench's tables, once for each peer."""
        self.socket.mkdir(exist_ok=True)
        os.chown(self.socket, self.user.pw_uid, self.user.pw_gid)
        if (self.data / "complete").exists():
            return
        if self.data.exists():
            shutil.rmtree(self.data)
        self.data.mkdir()
        os.chown(self.data, self.user.pw_uid, self.user.pw_gid)
        self.call("initdb", "-D", self.data, "-A", "trust", "-U", "postgres", "--no-locale", "-E", "UTF8")
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as settings:
            settings.write(f"unix_socket_directories = '{self.socket}'\nlisten_addresses = ''\n"
                           "max_wal_size = 256MB\nshared_buffers = 64MB\n")
        with self.running():
            self.call("pgbench", "-q", "-i", "-s", str(scale))
        (self.data / "complete").touch()

    @contextlib.contextmanager
    def running(self):
        """The server, until the end of the block, which it then leaves in order."""
        log = open(self.socket / "server.log", "a", encoding="utf-8")
        server = subprocess.Popen([f"{self.binaries}/postgres", "-D", str(self.data)], cwd=self.socket,
                                  stdin=subprocess.DEVNULL, stdout=log, stderr=log, extra_groups=[],
                                  user=self.user.pw_uid, group=self.user.pw_gid)
        log.close()
        try:
            self.wait_ready(server)
            yield
        finally:
            # A fast shutdown; what does not end would keep the mount busy.
            server.send_signal(2)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def wait_ready(self, server):
        deadline = time.monotonic() + self.limit_seconds
        while True:
            try:
                self.call("psql", "-XAtqc", "SELECT 1")
                return
            except Failure as error:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f"PostgreSQL does not start: {self.last_words() or error}") from None
            time.sleep(0.1)

    def last_words(self):
        lines = (self.socket / "server.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else ""


@job({"pgbench_per_s": "pgbench (TPC-B like, scale 10, 4 clients): transactions"}, "program")
def pgbench(peer, setup):
    scale = 10 if setup.size_name == "full" else 1
    postgres = Postgres(peer, setup)
    postgres.prepare(scale)
    with postgres.running():
        peer.settle()
        answer = postgres.call("pgbench", "-c", "4", "-j", "2", "-T", str(max(1, round(setup.size.seconds))))
    rate = re.search(r"tps = ([0-9.]+)", answer)
    if not rate:
        raise Failure(f"pgbench gave no rate: {answer.strip()[-200:]}")
    return {"pgbench_per_s": float(rate[1])}


@job({"cargo_build_s": "`cargo build` of a program with clap and serde, sources and target in the mount"},
     "program", ["cargo"])
def cargo_build(peer, setup):
    directory = peer.mount / "cargo"
    run(["rm", "-rf", directory], limit_seconds=setup.limit_seconds)
    directory.mkdir()
    run(["tar", "-C", directory, "-xf", cargo_archive()], limit_seconds=setup.limit_seconds)
    peer.cold()
    environment = dict(os.environ, CARGO_TARGET_DIR=str(directory / "target"))
    # Minutes of it are the compiler's, on any filesystem.
    seconds = timed(["cargo", "build", "--offline", "--quiet"], cwd=directory, env=environment,
                    limit_seconds=600 + setup.limit_seconds)
    run(["rm", "-rf", directory], limit_seconds=setup.limit_seconds)
    return {"cargo_build_s": seconds}


@job({"npm_ci_s": "`npm ci` of some hundred packages, from a cache outside of the mount"},
     "program", ["npm"])
def npm_ci(peer, setup):
    directory, cache = peer.mount / "npm", npm_cache()
    run(["rm", "-rf", directory], limit_seconds=setup.limit_seconds)
    npm_project(directory)
    peer.cold()
    seconds = timed(["npm", "ci", "--offline", "--cache", cache, *NPM_QUIET], cwd=directory,
                    limit_seconds=setup.limit_seconds)
    run(["rm", "-rf", directory], limit_seconds=setup.limit_seconds)
    return {"npm_ci_s": seconds}
