"""Takes keys away from volumes in use, and gives them back.

revoke.py run SCRATCH MIB                all of it; MIB are cached when a volume is locked by hand
revoke.py worker KIND DIRECTORY LOG      one program that uses a volume until it gets SIGTERM

A worker writes to LOG, outside the volume, for each thing that it does: when it began, when it
ended, and `ok` or what it got instead. When the volume's own states began is in its audit log.
"""

import contextlib
import glob
import hashlib
import http.client
import http.server
import json
import mmap
import os
import pathlib
import random
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from datetime import datetime

ATREST = os.environ["ATREST"]
RESOURCE = "https://vault.azure.net"
# After the check that saw the key gone.
SERVED_SECONDS_MAX = 2
LOCK_SECONDS_MAX = 1
GRACE = 10
# While it is locked, everybody tries for so long.
LOCKED_SECONDS = 2
# A key is taken and given back every second for so long.
FLAP_SECONDS = 20
CONTENT = random.Random(1).randbytes(1 << 20)
PAUSE = 0.01


class Defect(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Defect(what)


# ---- workers


def note(log, begun, outcome, extra=""):
    os.write(log, f"{begun:.6f} {time.time():.6f} {outcome} {extra}\n".encode())


def each(log, work):
    """Does it for ever, and notes what came of it."""
    while True:
        begun = time.time()
        try:
            note(log, begun, "ok", work())
        except OSError as error:
            note(log, begun, f"errno={error.errno}")
        time.sleep(PAUSE)


def worker_cat(directory, log):
    """A new process each time: every name is looked up, opened and read."""
    while True:
        begun = time.time()
        done = subprocess.run(["cat", f"{directory}/large"], capture_output=True)
        if done.returncode == 0:
            check(done.stdout == CONTENT, "cat read something else")
        # What it got before it failed counts, too.
        note(log, begun, "ok" if done.stdout else "refused", len(done.stdout))
        time.sleep(PAUSE)


def worker_held(directory, log):
    """A file that was opened once: its pages are in the kernel's cache."""
    file = os.open(f"{directory}/large", os.O_RDONLY)

    def read():
        at = random.randrange(len(CONTENT) - 4096)
        got = os.pread(file, 4096, at)
        check(got == CONTENT[at:at + 4096], "pread read something else")
        return len(got)
    each(log, read)


def in_children(log, work):
    """Does it in a child, for ever; SIGBUS, which is how a mapping refuses, ends a child only."""
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                work()
            except BaseException as error:  # noqa: BLE001: nothing of the parent's is to run here
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(9)
        try:
            _, status = os.waitpid(child, 0)
        except SystemExit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        check(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS,
              f"it ended with {status}")
        note(log, time.time(), "SIGBUS")
        time.sleep(PAUSE)


def worker_mmap(directory, log):
    """A mapping that was made once."""
    file = os.open(f"{directory}/large", os.O_RDONLY)
    mapping = mmap.mmap(file, len(CONTENT), mmap.MAP_SHARED, mmap.PROT_READ)

    def read():
        while True:
            begun = time.time()
            for at in range(0, len(CONTENT), 4096):
                check(mapping[at] == CONTENT[at], "the mapping has something else")
            note(log, begun, "ok", len(CONTENT))
            time.sleep(PAUSE)
    in_children(log, read)


def worker_cwd(directory, log):
    """A working directory."""
    os.chdir(directory)
    each(log, lambda: len(os.listdir(".")))


def worker_sqlite(directory, log, mode):
    """A writer that counts, with one connection. A number is noted when its commit returned. WAL
    has a mapping, whose SIGBUS ends who uses it; without, the connection goes on."""
    def write():
        connection, number = None, 0
        while True:
            begun = time.time()
            try:
                if connection is None:
                    connection = sqlite3.connect(f"{directory}/{mode}.db", timeout=1,
                                                 isolation_level=None)
                if number == 0:
                    connection.execute("PRAGMA synchronous=FULL")
                    number, = connection.execute("SELECT ifnull(max(number), 0) FROM counter") \
                        .fetchone()
                # What was refused may be there all the same.
                number += 1
                connection.execute("INSERT INTO counter VALUES (?, zeroblob(500))", (number,))
                note(log, begun, "ok", number)
            except sqlite3.Error as error:
                note(log, begun, f"sqlite:{type(error).__name__}", error)
            time.sleep(PAUSE)
    in_children(log, write)


def worker(kind, directory, log):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    {
        "cat": worker_cat, "held": worker_held, "mmap": worker_mmap, "cwd": worker_cwd,
        "wal": lambda d, l: worker_sqlite(d, l, "wal"),
        "delete": lambda d, l: worker_sqlite(d, l, "delete"),
    }[kind](directory, log)


class Worker:
    def __init__(self, kind, volume):
        self.kind, self.volume = kind, volume
        self.log, self.said = volume.home / f"{kind}.log", volume.home / f"{kind}.err"
        self.log.touch()
        with open(self.said, "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "worker", kind, volume.mnt, self.log], stderr=said,
                stdin=subprocess.DEVNULL)

    def check_running(self):
        check(self.process.poll() is None,
              f"the {self.kind} worker has ended: {self.said.read_text()[-800:]}")

    def stop(self):
        self.check_running()
        self.process.terminate()
        self.process.wait(20)

    def events(self):
        """(begun, ended, outcome, extra) of each."""
        for line in self.log.read_text().splitlines():
            begun, ended, outcome, *extra = line.split(" ", 3)
            yield float(begun), float(ended), outcome, "".join(extra)


class Fio:
    """A job that reads and writes through the page cache, and goes on when it is refused."""
    kind = "fio"

    def __init__(self, volume):
        self.home = volume.home
        self.process = subprocess.Popen(
            ["fio", "--name=job", f"--filename={volume.mnt}/fio", "--size=4m", "--rw=randrw",
             "--bs=4k", "--ioengine=psync", "--fsync=16", "--time_based", "--runtime=600",
             "--thinktime=5000", "--continue_on_error=all", "--ignore_error=126:128,126:128",
             "--write_lat_log=fio", "--log_unix_epoch=1", "--overwrite=1", "--fallocate=none",
             "--random_generator=tausworthe64"],
            cwd=self.home, stdin=subprocess.DEVNULL, stdout=open(self.home / "fio.out", "wb"),
            stderr=subprocess.STDOUT)

    def stop(self):
        check(self.process.poll() is None,
              f"fio ended by itself: {(self.home / 'fio.out').read_text()[-800:]}")
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def events(self):
        """fio notes what was done, and when it was, in milliseconds."""
        for log in glob.glob(f"{self.home}/fio_clat.*.log"):
            for line in pathlib.Path(log).read_text().splitlines():
                when, latency, *_ = line.split(",")
                ended, took = int(when) / 1e3, int(latency) / 1e9
                yield ended - took, ended, "ok", ""


# ---- the service


def run(home, *command, **options):
    # To a file: a daemon that inherited a pipe would keep it open.
    said = home / f"said-{threading.get_ident()}"
    with open(said, "w+b") as file:
        done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL,
                              stdout=file, stderr=file, timeout=120, **options)
        file.seek(0)
        return done.returncode, file.read().decode(errors="replace")


def must(home, *command, **options):
    code, text = run(home, *command, **options)
    check(code == 0, f"{' '.join(map(str, command))}: exit code {code}: {text}")
    return text


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_certificates():
    def openssl(*arguments):
        must(SCRATCH, "openssl", *arguments, cwd=SCRATCH)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem",
            "-days", "2", "-subj", "/CN=test CA", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr",
            "-subj", "/CN=localhost")
    (SCRATCH / "extensions").write_text(
        "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n"
        "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth\n"
        "authorityKeyIdentifier=keyid\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-out", "server.pem", "-extfile", "extensions")


class Vault:
    """`atrest vault serve`, with an application that may use the keys that it is granted."""

    def __init__(self, name):
        self.home = SCRATCH / name
        self.home.mkdir()
        self.directory, self.port = self.home / "vault", free_port()
        self.origin = f"https://localhost:{self.port}"
        self.environment = os.environ | {"ATREST_STATE": str(self.home / "state"),
                                         "ATREST_KEYSTORE": str(self.home / "master")}
        must(self.home, ATREST, "vault", "init", self.directory, env=self.environment)
        self.process = None
        self.serve()
        self.client = json.loads(self.operator("identity", "create", "web"))["client_id"]
        self.operator("identity", "secret", "web", "--secret-file", self.home / "secret")
        self.tenant = json.loads(self.operator("settings", "show"))["tenant"]

    def serve(self):
        self.process = subprocess.Popen(
            [ATREST, "vault", "serve", self.directory, "--listen", f"127.0.0.1:{self.port}",
             "--tls-cert", SCRATCH / "server.pem", "--tls-key", SCRATCH / "server.key",
             "--log", self.home / "vault.log"], env=self.environment, stdin=subprocess.DEVNULL)
        wait("the vault is served", 30, self.answers)

    def answers(self):
        check(self.process.poll() is None, "the vault has ended")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def operator(self, noun, verb, *arguments):
        return must(self.home, ATREST, "vault", noun, verb, self.directory, *arguments,
                    env=self.environment)

    def make_key(self, name):
        self.operator("key", "create", name, "--kty", "oct-HSM")
        self.permit("assign", name)

    def permit(self, verb, name):
        self.operator("policy", verb, "web", "Key Vault Crypto Service Encryption User",
                      "--scope", f"/keys/{name}")

    def settings(self, origin):
        """Lines of providers.toml for the vault as it is called at `origin`."""
        return (f'[[provider]]\nuri = "azure:{origin}/"\nidentity = "client-secret"\n'
                f'tenant_id = "{self.tenant}"\nclient_id = "{self.client}"\n'
                f'client_secret_file = "{self.home / "secret"}"\nauthority_host = "{origin}"\n'
                f'resource = "{RESOURCE}"\nca_file = "{SCRATCH / "ca.pem"}"\nproxy = "none"\n'
                'connect_timeout_s = 3\n')

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            check(self.process.wait(30) == 0, f"the vault ended with {self.process.returncode}")


class Proxy:
    """In front of a vault: hands on, or answers by itself as `mode` says."""

    def __init__(self, vault):
        proxy = self
        self.vault, self.mode, self.asked = vault, "pass", 0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                proxy.answer(self)
            do_GET = do_POST = do

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass
        self.server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(SCRATCH / "server.pem", SCRATCH / "server.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True,
                                                 do_handshake_on_connect=False)
        self.origin = f"https://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        self.asked += 1
        if self.mode == "hang":
            while self.mode == "hang":
                time.sleep(0.05)
            handler.close_connection = True
            return
        if self.mode == "garbage":
            handler.wfile.write(random.randbytes(3000))
            handler.close_connection = True
            return
        if self.mode == "nonsense":
            status, headers, reply = 200, {"Content-Type": "application/json"}, b'{"kid": 7, "val'
        elif self.mode != "pass":
            status, headers = int(self.mode), {"Retry-After": "1", "Content-Type": "text/html"}
            reply = b"<html>not today</html>"
        else:
            status, headers, reply = self.hand_on(handler, body)
        handler.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply)))
        handler.end_headers()
        handler.wfile.write(reply)

    def hand_on(self, handler, body):
        context = ssl.create_default_context(cafile=SCRATCH / "ca.pem")
        connection = http.client.HTTPSConnection("localhost", self.vault.port, timeout=10,
                                                 context=context)
        connection.request(handler.command, handler.path, body, dict(handler.headers))
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply.status, dict(reply.getheaders()), content


# ---- a volume


def wait(what, seconds, is_so):
    deadline = time.monotonic() + seconds
    while True:
        result = is_so()
        if result:
            return result
        check(time.monotonic() < deadline, f"not within {seconds} s: {what}")
        time.sleep(0.02)


class Volume:
    """One that is mounted, on a key of its own."""

    def __init__(self, name, vault, origin=None):
        self.name, self.vault = name, vault
        self.home = SCRATCH / name
        self.mnt, self.audit = self.home / "mnt", self.home / "audit.jsonl"
        self.mnt.mkdir(parents=True)
        self.origin = origin or vault.origin
        vault.make_key(name)
        (self.home / "etc").mkdir(mode=0o700)
        providers = self.home / "etc" / "providers.toml"
        providers.write_text(vault.settings(self.origin))
        providers.chmod(0o600)
        self.environment = os.environ | {"ATREST_STATE": str(self.home / "state"),
                                         "ATREST_PROVIDERS": str(providers)}
        self.kek = f"azure:{self.origin}/keys/{name}"
        self.atrest("init", self.home / "volume", "--kek", self.kek)
        self.mount("--kek-check", "1s", "--kek-grace", f"{GRACE}s")

    def atrest(self, *command):
        return must(self.home, ATREST, *command, env=self.environment)

    def mount(self, *options):
        self.atrest("mount", self.home / "volume", self.mnt, "--allow-kek", self.kek, "--log",
                    self.home / "daemon.log", "--audit", self.audit, *options)

    def umount(self):
        self.atrest("umount", self.mnt)

    def status(self):
        return json.loads(self.atrest("status", "--json", self.mnt))

    def states(self, after):
        """(state, time, time of the check before it that was not granted), since `after`."""
        checked = None
        for line in self.audit.read_text().splitlines():
            record = json.loads(line)
            when = datetime.fromisoformat(record["time"].replace("Z", "+00:00")).timestamp()
            if record["event"] == "recheck":
                checked = when
            if record["event"] == "state" and when > after:
                yield record["purpose"], when, checked

    def state(self, name, after):
        return next((found for found in self.states(after) if found[0] == name), None)


class Case:
    """A way in which a key goes: what takes it away, what gives it back, and how it is called."""

    def __init__(self, volume, take, give, reason, errno):
        self.volume, self.take, self.give = volume, take, give
        self.reason, self.errno = reason, errno
        self.summary, self.error = "", None

    def prepare(self):
        volume = self.volume
        (volume.mnt / "large").write_bytes(CONTENT)
        for mode in ("wal", "delete"):
            with contextlib.closing(sqlite3.connect(volume.mnt / f"{mode}.db")) as database:
                database.execute(f"PRAGMA journal_mode={mode}")
                database.execute("CREATE TABLE counter (number integer, padding blob)")
                database.commit()
        self.workers = [Worker(kind, volume)
                        for kind in ("cat", "held", "mmap", "cwd", "wal", "delete")]
        self.fio = Fio(volume)
        for worker in self.workers:
            wait(f"{volume.name}: {worker.kind} works", 60, lambda: self.progress(worker, 0) >= 5)
        wait(f"{volume.name}: fio works", 60, lambda: (volume.mnt / "fio").exists())

    @staticmethod
    def progress(worker, after):
        return sum(1 for begun, _, outcome, _ in worker.events()
                   if begun > after and outcome == "ok")

    def revoke(self):
        volume = self.volume
        self.begun = time.time()
        self.take()
        self.taken = time.time()
        locked = f"locked ({self.reason})"
        wait(f"{volume.name}: {locked}", 25, lambda: volume.state(locked, self.begun))
        _, self.locked, self.seen = volume.state(locked, self.begun)
        if self.seen is None or self.seen < self.begun - 1:
            self.seen = volume.state("draining", self.begun)[1]
        self.draining = volume.state("draining", self.begun)[1]
        status = volume.status()
        check(status["state"] == locked, f"{volume.name}: status says {status}")
        time.sleep(LOCKED_SECONDS)

    def recover(self):
        volume = self.volume
        self.given = time.time()
        self.give()
        wait(f"{volume.name}: unlocked again", 25,
             lambda: volume.state("unlocked", self.given))
        self.unlocked = volume.state("unlocked", self.given)[1]
        for worker in self.workers:
            wait(f"{volume.name}: {worker.kind} goes on", 15,
                 lambda: worker.check_running() or self.progress(worker, self.unlocked) >= 5)
        time.sleep(0.3)

    def finish(self):
        for worker in [*self.workers, self.fio]:
            worker.stop()
        rows = {worker.kind: {int(extra) for _, _, outcome, extra in worker.events()
                              if outcome == "ok"}
                for worker in self.workers if worker.kind in ("wal", "delete")}
        for _ in range(2):
            self.check_databases(rows)
            got = hashlib.sha256((self.volume.mnt / "large").read_bytes()).digest()
            check(got == hashlib.sha256(CONTENT).digest(), "the file is not what was written")
            self.volume.umount()
            self.volume.mount()
        self.volume.umount()
        said = self.volume.atrest("audit", "verify", self.volume.home / "volume",
                                  self.volume.audit, "--allow-kek", self.volume.kek)
        log = (self.volume.home / "daemon.log").read_text()
        for bad in ("panicked", "defect", "is lost"):
            check(bad not in log, f"{self.volume.name}: the log says {bad!r}:\n{log}")
        self.volume.atrest("fsck", "--deep", self.volume.home / "volume", "--allow-kek",
                           self.volume.kek)
        self.judge(sum(len(found) for found in rows.values()))

    def check_databases(self, rows):
        for mode, wanted in rows.items():
            with contextlib.closing(sqlite3.connect(self.volume.mnt / f"{mode}.db")) as database:
                verdict, = database.execute("PRAGMA integrity_check").fetchone()
                check(verdict == "ok", f"{self.volume.name}: {mode}: integrity_check: {verdict}")
                there = {number for number, in database.execute("SELECT number FROM counter")}
            missing = sorted(wanted - there)
            check(not missing, f"{self.volume.name}: {mode}: acknowledged and missing: "
                               f"{len(missing)}, the first is {missing[:1]}")
            check(len(wanted) > 10, f"{self.volume.name}: {mode}: {len(wanted)} rows only")

    def judge(self, rows):
        """Who got a byte when."""
        name = self.volume.name
        problems, last = [], 0
        for worker in [*self.workers, self.fio]:
            events = list(worker.events())
            before = [e for e in events if e[2] == "ok" and e[0] < self.given]
            if not before:
                problems.append(f"{worker.kind} never worked")
                continue
            latest = max(e[0] for e in before)
            last = max(last, latest)
            late = [e for e in before if e[0] > self.locked]
            if late:
                problems.append(f"{worker.kind} was served {len(late)} times while locked, "
                                f"{late[0][0] - self.locked:.3f} s after the lockdown")
            if latest - self.seen > SERVED_SECONDS_MAX:
                problems.append(f"{worker.kind} was served {latest - self.seen:.3f} s after the "
                                "check that saw it")
            if not any(e[2] == "ok" and e[0] > self.unlocked for e in events):
                problems.append(f"{worker.kind} does not go on")
            if worker.kind == "fio":
                continue
            refused = [e for e in events if self.locked < e[0] < self.given and e[2] != "ok"]
            if len(refused) < 3:
                problems.append(f"{worker.kind} tried {len(refused)} times only while locked")
            wrong = {e[2] for e in refused if e[2].startswith("errno=")} - {f"errno={self.errno}"}
            if wrong:
                problems.append(f"{worker.kind} got {wrong}, not {self.errno}")
        check(not problems, f"{name}: " + "; ".join(problems))
        self.summary = (f"{name:12} {self.seen - self.begun:7.2f} s {self.draining - self.seen:9.3f} s"
                        f" {self.locked - self.seen:9.3f} s {last - self.seen:9.3f} s"
                        f" {self.unlocked - self.given:9.2f} s {rows:7}")


def together(cases, step):
    """Does a step of each case, all at once."""
    def guarded(case):
        try:
            getattr(case, step)()
        except Exception as error:  # noqa: BLE001: whatever it is, it is told
            case.error = case.error or f"{step}: {type(error).__name__}: {error}"
    threads = [threading.Thread(target=guarded, args=[case]) for case in cases if not case.error]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def play(cases):
    for step in ("prepare", "revoke", "recover", "finish"):
        together(cases, step)
    for case in cases:
        print(case.summary or f"{case.volume.name:12} {case.error}", flush=True)
    failed = [case for case in cases if case.error]
    for case in failed:
        print(f"---- the log of {case.volume.name}:\n"
              f"{(case.volume.home / 'daemon.log').read_text()[-3000:]}")
    check(not failed, f"{len(failed)} of {len(cases)} failed")


def denials(vault):
    """The service says that the key may not be used any more."""
    def case(name, take, give):
        volume = Volume(name, vault)
        return Case(volume, lambda: take(name), lambda: give(name), "revoked", 128)
    return [
        case("disabled", lambda key: vault.operator("key", "disable", key),
             lambda key: vault.operator("key", "enable", key)),
        case("permission", lambda key: vault.permit("unassign", key),
             lambda key: vault.permit("assign", key)),
        case("deleted", lambda key: vault.operator("key", "delete", key),
             lambda key: vault.operator("key", "recover", key)),
        # The vault still unwraps, as Key Vault does.
        case("expired", lambda key: vault.operator("key", "expire", key, "--at", "2026-01-01T00:00:00Z"),
             lambda key: vault.operator("key", "expire", key, "--at", "2999-01-01T00:00:00Z")),
    ]


def outages(vault):
    """Nobody says anything about the key."""
    cases = []
    for mode in ("429", "500", "garbage", "nonsense", "hang"):
        proxy = Proxy(vault)
        name = f"answers-{mode}" if mode[0].isdigit() else mode
        cases.append(Case(Volume(name, vault, proxy.origin),
                          lambda proxy=proxy, mode=mode: setattr(proxy, "mode", mode),
                          lambda proxy=proxy: setattr(proxy, "mode", "pass"), "outage", 126))
    return cases


def stops(silent, killed):
    """The server stops."""

    def kill():
        killed.process.kill()
        killed.process.wait()
    return [
        Case(Volume("stopped", silent), lambda: silent.process.send_signal(signal.SIGSTOP),
             lambda: silent.process.send_signal(signal.SIGCONT), "outage", 126),
        Case(Volume("killed", killed), kill, killed.serve, "outage", 126),
    ]


def by_hand(vault, mib):
    """`atrest lock` with much in the kernel's cache."""
    volume = Volume("by-hand", vault)
    block = random.Random(2).randbytes(1 << 20)
    with open(volume.mnt / "cached", "wb") as file:
        for _ in range(mib):
            file.write(block)
        os.fsync(file.fileno())
    with open(volume.mnt / "cached", "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        while file.read(1 << 20):
            pass
        def resident():
            # Not to be read with: that would fill the cache again.
            total = 0
            for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("Cached:"):
                    total = int(line.split()[1]) // 1024
            return total
        before = resident()
        sum(mapping[at] for at in range(0, len(mapping), 1 << 20))
        begun = time.monotonic()
        volume.atrest("lock", volume.mnt)
        took = time.monotonic() - begun
        gone = before - resident()
        try:
            os.pread(file.fileno(), 1, 0)
            raise Defect("it is served from the cache")
        except OSError as error:
            check(error.errno == 126, f"a read says {error}")
        child = os.fork()
        if child == 0:
            os._exit(mapping[0] & 0)
        _, status = os.waitpid(child, 0)
        check(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS, "the mapping")
        begun = time.monotonic()
        volume.atrest("unlock", volume.mnt)
        back = time.monotonic() - begun
        check(os.pread(file.fileno(), 4096, 0) == block[:4096], "what is read afterwards")
        check(mapping[-1] == block[-1], "what the mapping has afterwards")
        mapping.close()
    print(f"by hand: {mib} MiB cached, locked in {took:.3f} s ({gone} MiB of the page cache went), "
          f"unlocked in {back:.3f} s", flush=True)
    check(took < LOCK_SECONDS_MAX, f"locking by hand took {took:.3f} s")
    volume.umount()


def rotation(vault):
    """The key gets a new version: the volume follows with its next check, and says so; then the old
    version may be switched off."""
    volume = Volume("rotated", vault)

    def version():
        return volume.status()["key_in_use"]["key_version"]
    old = version()
    begun = time.monotonic()
    vault.operator("key", "rotate", "rotated")
    wait("the volume key is wrapped under the new version", 5, lambda: version() != old)
    took, new = time.monotonic() - begun, version()
    vault.operator("key", "disable", "rotated", old)
    records = [json.loads(line) for line in volume.audit.read_text().splitlines()]
    rewraps = [(record["outcome"], record.get("key_version")) for record in records
               if record["event"] == "rewrap"]
    check(rewraps == [("ok", new)], f"put on record: {rewraps}, it is {new}")
    log = (volume.home / "daemon.log").read_text()
    check(f"wrapped under version {new} of its key" in log, f"the log: {log}")
    time.sleep(3)
    check(volume.status()["state"] == "unlocked", "it is locked, though the new version is good")
    volume.umount()
    volume.mount()
    volume.umount()
    print(f"rotated: followed in {took:.2f} s, with a check every second", flush=True)


def flapping(vault):
    """The key is taken and given back every second: the volume is not locked and opened all the
    time, and serves when that is over."""
    volume = Volume("flapping", vault)
    (volume.mnt / "file").write_text("content")
    begun, taken = time.time(), 0
    while time.time() - begun < FLAP_SECONDS:
        for verb in ("disable", "enable"):
            vault.operator("key", verb, "flapping")
            time.sleep(1)
        taken += 1
    states = [state for state, _, _ in volume.states(begun)]
    locks = states.count("locked (revoked)")
    check(locks <= 2, f"locked {locks} times in {FLAP_SECONDS} s: {states}")
    wait("the volume serves", 60, lambda: volume.status()["state"] == "unlocked")
    content = (volume.mnt / "file").read_text()
    check(content == "content", f"it says {content!r}")
    volume.umount()
    print(f"flapping: taken {taken} times, locked {locks} times, states {states}", flush=True)


def run_all(mib):
    make_certificates()
    started, vaults = time.monotonic(), []

    def step(what):
        print(f"\n== {what} ({time.monotonic() - started:.0f} s)", flush=True)
    try:
        for name in ("vault", "vault-silent", "vault-killed"):
            vaults.append(Vault(name))
        vault, silent, killed = vaults
        head = (f"{'':12} {'check after':>9} {'draining':>11} {'locked':>11} {'last byte':>11}"
                f" {'back after':>11} {'rows':>7}\n{'':12} (draining, locked and the last byte: since"
                " the check that saw it)")
        step("the key is denied, or its server stops")
        print(head)
        play(denials(vault) + stops(silent, killed))
        step("the server answers, but not for the key")
        print(head)
        play(outages(vault))
        step("the key is rotated")
        rotation(vault)
        step("the key is taken and given back every second")
        flapping(vault)
        step("by hand")
        by_hand(vault, mib)
        step("done")
    finally:
        for vault in vaults:
            vault.stop()


if __name__ == "__main__":
    try:
        if sys.argv[1] == "worker":
            worker(sys.argv[2], sys.argv[3], sys.argv[4])
        else:
            SCRATCH = pathlib.Path(sys.argv[2])
            run_all(int(sys.argv[3]))
    except Defect as defect:
        sys.exit(f"DEFECT: {defect}")
