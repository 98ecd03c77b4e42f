"""What an app that runs from a package goes through, and what must come of it. The package is in
Azurite, the vault at its real name, the host's identity that of the metadata service."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
import zipfile
from datetime import datetime, timedelta, timezone

from azure.storage.blob import (
    AccessPolicy, BlobServiceClient, ContainerSasPermissions, generate_blob_sas)

SCRATCH = pathlib.Path(os.environ["SCRATCH"])
ATREST, NODE = os.environ["ATREST"], os.environ["NODE"]
# The account that Azurite's documentation names, with its key, which is no secret.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
START = time.monotonic()
HOME = SCRATCH / "home"
WWWROOT = HOME / "site/wwwroot"
SETTINGS = SCRATCH / "settings.json"
MARKER = "marker-that-no-disk-shall-have"
SERVER = """
const http = require("http"), fs = require("fs");
http.createServer((_, reply) => reply.end(fs.readFileSync("index.html", "utf8") + process.env.GREETING))
  .listen(8081, "127.0.0.1");
"""
SAID = []
SIGNATURES = set()


def step(name):
    print(f"{time.monotonic() - START:6.1f} s  {name}", flush=True)


def operator(noun, verb, *arguments):
    """A command of the vault's operator."""
    command = [ATREST, "vault", noun, verb, os.environ["VAULT_DIR"], *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(what, found, seconds=30):
    """Waits for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if found():
                return
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def secret(name, value):
    path = SCRATCH / "value"
    path.write_text(value)
    path.chmod(0o600)
    operator("secret", "set", name, "--value-file", str(path))
    path.unlink()


def settings(**values):
    fresh = SETTINGS.with_suffix(".new")
    fresh.write_text(json.dumps(values))
    fresh.rename(SETTINGS)


def package(version):
    """A package with a page, an app, and files that all say which version they are of."""
    path = SCRATCH / f"{version}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        page = f"<!doctype html><title>{version}</title><h1>This is {version}</h1>"
        archive.writestr("index.html", page)
        archive.writestr("server.js", SERVER)
        archive.writestr("big.txt", f"{version} {MARKER}\n" * 200_000)
        for i in range(200):
            archive.writestr(f"files/{i}.txt", f"{version} {i}")
    return path


class Blobs:
    """Azurite's Blob service, and what the SDK does with it."""

    def __init__(self, port, tls):
        self.url = f"{'https' if tls else 'http'}://blob.test:{port}/{ACCOUNT}"
        certificate = ["--cert", str(SCRATCH / "blob.pem"), "--key", str(SCRATCH / "blob.key")]
        command = [NODE, os.environ["AZURITE"], "--blobHost", "127.0.0.1", "--blobPort", str(port),
                   "--inMemoryPersistence", "--silent", "--disableTelemetry",
                   "--skipApiVersionCheck", "--disableProductStyleUrl"]
        self.log = open(SCRATCH / f"azurite-{port}.log", "w")
        self.process = subprocess.Popen(
            command + (certificate if tls else []), stdout=self.log, stderr=self.log)
        self.service = BlobServiceClient(
            self.url, credential={"account_name": ACCOUNT, "account_key": KEY})
        self.container = self.service.get_container_client("packages")
        self.port = port

    def ready(self):
        until("Azurite listens", lambda: socket.create_connection(("127.0.0.1", self.port)).close() is None)
        self.container.create_container()

    def upload(self, name, content):
        self.container.upload_blob(name, content, overwrite=True)

    def sas(self, name, policy=None):
        """The URL of a blob, with a signature that is over in an hour, or when its policy goes."""
        times = {} if policy else {
            "permission": "r", "expiry": datetime.now(timezone.utc) + timedelta(hours=1)}
        query = generate_blob_sas(
            ACCOUNT, "packages", name, account_key=KEY, policy_id=policy, **times)
        SIGNATURES.add(query.split("sig=")[1].split("&")[0])
        return f"{self.url}/packages/{name}?{query}"

    def policy(self, *names):
        end = datetime.now(timezone.utc) + timedelta(hours=1)
        allow = AccessPolicy(permission=ContainerSasPermissions(read=True), expiry=end)
        self.container.set_container_access_policy({name: allow for name in names})


class App:
    """`atrest app run`."""

    def __init__(self, *options, command=(), home=HOME):
        self.log = SCRATCH / f"app-{len(SAID)}.log"
        SAID.append(self.log)
        arguments = [ATREST, "app", "run", "--home", str(home), "--settings", str(SETTINGS),
                     "--key-store", str(SCRATCH / "keys"), *options]
        if command:
            arguments += ["--", *command]
        self.process = subprocess.Popen(arguments, stdout=self.log.open("w"), stderr=subprocess.STDOUT)

    def serves(self, text, seconds=30):
        """Waits until wwwroot's page has this in it."""
        def found():
            assert self.process.poll() is None, self.log.read_text()
            return text in (WWWROOT / "index.html").read_text()
        until(f"{text!r} is served: {self.log.read_text()}", found, seconds)
        return self

    def ends(self, seconds=30):
        """Waits for it; returns exit code and what it said."""
        return self.process.wait(seconds), self.log.read_text()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.ends()

    def said(self, words, seconds=15):
        until(f"it says {words!r}", lambda: words in self.log.read_text(), seconds)


def status():
    command = [ATREST, "app", "status", "--json", "--home", str(HOME)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    SAID.append(SCRATCH / f"status-{len(SAID)}.json")
    SAID[-1].write_text(text)
    return json.loads(text)


def rollback(*options):
    command = [ATREST, "package", "rollback", *options, "--home", str(HOME)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def get(port):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()


def chromium(picture):
    """The page as a browser has it, from nginx."""
    profile = SCRATCH / "chromium"
    shutil.rmtree(profile, ignore_errors=True)
    shot = pathlib.Path(os.environ["SCREENSHOTS"]) / f"app-{picture}.png"
    shot.unlink(missing_ok=True)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
               "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--disable-sync", f"--user-data-dir={profile}", f"--screenshot={shot}",
               "--window-size=640,200", "--dump-dom", "http://127.0.0.1:8080/"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert shot.stat().st_size > 1000, "no screenshot"
    return found.stdout


@contextlib.contextmanager
def nginx():
    """Debian's nginx, whose root is wwwroot."""
    config = SCRATCH / "nginx.conf"
    config.write_text(f"""
        daemon off; user root; pid {SCRATCH}/nginx.pid; error_log {SCRATCH}/nginx.log;
        events {{}}
        http {{ access_log off; server {{ listen 127.0.0.1:8080; root {WWWROOT}; }} }}""")
    process = subprocess.Popen(["nginx", "-c", str(config)])
    try:
        until("nginx listens", lambda: socket.create_connection(("127.0.0.1", 8080)).close() is None)
        yield
    finally:
        process.terminate()
        process.wait()


def hammer(stopped, seen):
    """What one path leads to, again and again."""
    while not stopped.is_set():
        seen.append((WWWROOT / "files/7.txt").read_text())


def references(blobs):
    step("a reference leads to the URL of a package; nginx, node and a browser have it")
    blobs.upload("one.zip", package("one").read_bytes())
    secret("package-url", blobs.sas("one.zip"))
    secret("greeting", "hello")
    vault = os.environ["VAULT_URL"]
    settings(
        WEBSITE_RUN_FROM_PACKAGE="@Microsoft.KeyVault(VaultName=contoso;SecretName=package-url)",
        GREETING=f"@Microsoft.KeyVault(SecretUri={vault}/secrets/greeting/)",
        BROKEN=f"@Microsoft.KeyVault(SecretUri={vault}/secrets/nowhere)")
    app = App("--refresh", "3s", command=[NODE, "server.js"]).serves("This is one")
    until("node serves", lambda: "This is one</h1>hello" in get(8081))
    with zipfile.ZipFile(SCRATCH / "one.zip") as archive:
        for name in archive.namelist():
            assert (WWWROOT / name).read_bytes() == archive.read(name), name
    for attempt in (lambda: (WWWROOT / "new").touch(), (WWWROOT / "index.html").unlink):
        try:
            attempt()
            raise AssertionError("wwwroot can be written to")
        except OSError as error:
            assert error.errno == 30, error
    found = status()
    assert found["package"]["source"] == f"{blobs.url}/packages/one.zip", found
    assert found["package"]["source_expires"], found
    by_name = {reference["setting"]: reference for reference in found["references"]}
    with zipfile.ZipFile(SCRATCH / "one.zip") as archive:
        members = len(archive.namelist()) + 1
    digest = hashlib.sha256((SCRATCH / "one.zip").read_bytes()).hexdigest()
    assert (found["package"]["sha256"], found["package"]["members"]) == (digest, members), found
    assert abs(datetime.fromisoformat(found["package"]["fetched"]).timestamp() - time.time()) < 120
    assert {"hits", "misses", "hit_percent", "memory_bytes"} <= found["caches"].keys(), found
    assert len(by_name["WEBSITE_RUN_FROM_PACKAGE"]["version"]) == 32, by_name
    assert "does not exist" in by_name["BROKEN"]["error"], by_name
    pid = found["command"]["pid"]
    environment = pathlib.Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert f"BROKEN=@Microsoft.KeyVault(SecretUri={vault}/secrets/nowhere)" in environment
    assert "APPSETTING_GREETING=hello" in environment
    assert f"WEBSITE_RUN_FROM_PACKAGE={blobs.url}/packages/one.zip" in environment
    return app


def hot_swap(app, blobs):
    step("another package: at one moment, under open files; back, and forward again")
    assert "This is one" in chromium("before")
    blobs.upload("two.zip", package("two").read_bytes())
    old = (WWWROOT / "big.txt").open()
    inside = os.open(WWWROOT / "files", os.O_RDONLY)
    seen, stopped = [[], []], threading.Event()
    readers = [threading.Thread(target=hammer, args=(stopped, texts)) for texts in seen]
    [reader.start() for reader in readers]
    # References are resolved again every 3 s, and the secret has no version in its reference.
    secret("package-url", blobs.sas("two.zip"))
    app.serves("This is two")
    time.sleep(0.5)
    stopped.set()
    [reader.join() for reader in readers]
    for texts in seen:
        kinds = [text.split()[0] for text in texts]
        assert set(kinds) == {"one", "two"}, set(kinds)
        assert "one" not in kinds[kinds.index("two"):], "the old package came back"
    assert old.read() == f"one {MARKER}\n" * 200_000, "an open file goes on in its package"
    held = os.open("7.txt", os.O_RDONLY, dir_fd=inside)
    assert os.read(held, 100) == b"one 7"
    os.close(held), os.close(inside), old.close()
    assert "This is two" in chromium("after")
    until("node serves it", lambda: "This is two" in get(8081))
    rollback()
    app.serves("This is one")
    assert "This is one" in chromium("rolled-back")
    until("the old package is let go", lambda: status()["older_packages_in_use"] == 0, 40)
    listed = subprocess.run([ATREST, "package", "list", "--json", "--home", str(HOME)],
                            check=True, capture_output=True, text=True).stdout
    assert [entry["rolled_back"] for entry in json.loads(listed)["packages"]] == [True, False]
    rollback("--undo")
    app.serves("This is two")


def refreshed(app):
    step("a secret's new version comes by itself; a command that crashes is started again")
    secret("greeting", "good morning")
    until("node was started anew", lambda: "good morning" in get(8081))
    pid = status()["command"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until("node was started again",
          lambda: (status()["command"] or {"pid": pid})["pid"] != pid)
    until("node serves", lambda: "This is two" in get(8081))
    assert "killed by SIGKILL" in status()["command_last_end"]


def revoked(app, blobs):
    step("a signature that is revoked: it goes on until it is started again, and then says why")
    blobs.upload("three.zip", package("three").read_bytes())
    blobs.policy("first")
    time.sleep(1)
    secret("package-url", blobs.sas("three.zip", policy="first"))
    app.serves("This is three")
    blobs.policy()
    time.sleep(1)
    settings(WEBSITE_RUN_FROM_PACKAGE="@Microsoft.KeyVault(VaultName=contoso;SecretName=package-url)",
             GREETING="changed")
    app.said("everything goes on as it is")
    assert "This is three" in (WWWROOT / "index.html").read_text() and "good morning" in get(8081)
    assert "status 403" in status()["problem"]
    code, _ = app.stop()
    assert code == 0, code
    code, said = App("--exit-on-failure").ends()
    assert code == 74 and "status 403" in said, said
    app = App(command=[NODE, "server.js"])
    notice = WWWROOT / "FAILED TO INITIALIZE RUN FROM PACKAGE.txt"
    until("wwwroot says why", notice.exists)
    assert os.listdir(WWWROOT) == [notice.name]
    assert "status 403" in notice.read_text() and "sig=" not in notice.read_text()
    # A new URL is what it needs, and it finds it by itself.
    secret("package-url", blobs.sas("three.zip"))
    app.serves("This is three", 60)
    assert not notice.exists()
    until("node serves", lambda: "changed" in get(8081))
    return app


def vault_away(app):
    step("a vault that does not answer, or does not grant it any more")
    app.stop()
    os.kill(int(os.environ["VAULT_PID"]), signal.SIGSTOP)
    try:
        app = App().serves("This is three", 60)
        assert "last package that was verified" in status()["package"]["warning"]
        app.stop()
    finally:
        os.kill(int(os.environ["VAULT_PID"]), signal.SIGCONT)
    operator("policy", "unassign", "host", "Key Vault Administrator")
    code, said = App("--exit-on-failure").ends(62)
    assert code == 72, said
    for words in ["package-url", "contoso.vault.azure.net", "the managed identity of this host",
                  "Key Vault Secrets User"]:
        assert words in said, (words, said)
    operator("policy", "assign", "host", "Key Vault Secrets User")


def local():
    step("1: the package that packagename.txt names")
    packages = HOME / "data/SitePackages"
    packages.mkdir(parents=True)
    for version in ("one", "two"):
        shutil.copy(SCRATCH / f"{version}.zip", packages / f"{version}.zip")
    (packages / "packagename.txt").write_text("\ufeffone.zip\r\n")
    settings(WEBSITE_RUN_FROM_PACKAGE="1")
    app = App().serves("This is one")
    (packages / "two.zip").write_bytes(package("two").read_bytes()[:-100])
    (packages / "packagename.txt").write_text("two.zip")
    app.said("everything goes on as it is")
    assert "This is one" in (WWWROOT / "index.html").read_text()
    (packages / "two.zip").write_bytes(package("two").read_bytes())
    (packages / "packagename.txt").write_text("two.zip\n")
    app.serves("This is two")
    app.stop()
    settings(WEBSITE_RUN_FROM_PACKAGE="1", GREETING="first")
    app = App(command=[NODE, "server.js"]).serves("This is two")
    until("node serves", lambda: "This is two</h1>first" in get(8081))
    settings(WEBSITE_RUN_FROM_PACKAGE="1", GREETING="second")
    until("a setting has changed, so node was started anew", lambda: "second" in get(8081))
    app.stop()
    listed = subprocess.run([ATREST, "package", "list", "--json", "--home", str(HOME),
                             "--key-store", str(SCRATCH / "keys")],
                            check=True, capture_output=True, text=True).stdout
    assert len(json.loads(listed)["packages"]) == 3, f"the newest three are kept: {listed}"


class Strange(http.server.BaseHTTPRequestHandler):
    """A server that is none of what it should be."""

    def do_GET(self):
        name = self.path.split("?")[0]
        if name == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9000/one.zip")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while name in ("/endless", "/slow"):
                self.wfile.write(b"PK\x03\x04" * (50_000 if name == "/endless" else 1))
                time.sleep(0 if name == "/endless" else 0.5)

    def log_message(self, *_):
        pass


def bad_input(blobs, plain):
    step("bad input: each has its words and its exit code")
    strange = http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Strange)
    threading.Thread(target=strange.serve_forever, daemon=True).start()
    url = "http://127.0.0.1:9000"
    tar = bytearray(1024)
    tar[257:262] = b"ustar"
    kinds = {"gz": b"\x1f\x8b\x08\0" * 100, "tar": bytes(tar), "7z": b"7z\xbc\xaf\x27\x1c" * 90,
             "rar": b"Rar!\x1a\x07\x01\0" * 90}
    for name, content in kinds.items():
        blobs.upload(f"{name}.zip", content)
    blobs.upload("empty.zip", b"")
    blobs.upload("short.zip", package("one").read_bytes()[:-30])
    damaged = bytearray(package("one").read_bytes())
    damaged[5000] ^= 1
    blobs.upload("damaged.zip", bytes(damaged))
    unsigned = f"{blobs.url}/packages/one.zip?sig=AAAA&se=2000-01-01"
    cases = [
        ("http://127.0.0.1:1/x.zip", 73, "refuses connections"),
        ("https://nowhere.test/x.zip", 73, "is not known"),
        (unsigned, 74, "status 403"),
        (blobs.sas("nothing.zip"), 74, "status 404"),
        (f"{url}/redirect", 73, "is a redirect (status 302)"),
        (f"{url}/endless", 73, "the largest package that is allowed"),
        (f"{url}/slow", 73, "was not downloaded within 3 s"),
        (blobs.sas("gz.zip"), 62, "a GZIP file"),
        (blobs.sas("tar.zip"), 62, "a TAR archive"),
        (blobs.sas("7z.zip"), 62, "a 7z archive"),
        (blobs.sas("rar.zip"), 62, "a RAR archive"),
        (blobs.sas("empty.zip"), 62, "is empty"),
        (blobs.sas("short.zip"), 62, "is refused"),
        (blobs.sas("damaged.zip"), 62, "damaged"),
        (plain.sas("one.zip").replace("blob.test", "192.0.2.1"), 73, "plain http"),
        ("@Microsoft.KeyVault(SecretUri=nonsense)", 72, "not the identifier of a secret"),
        ("@Microsoft.KeyVault(VaultName=contoso)", 72, "malformed"),
        ("@Microsoft.KeyVault(SecretUri=https://vault.test/secrets/x)", 72, "does not authorise"),
        ("0", 71, "no package to run from"),
        ("ftp://a/b.zip", 71, "neither 1, a path"),
        (str(SCRATCH / "nothing.zip"), 73, "No such file"),
    ]
    home = SCRATCH / "other"
    home.mkdir()
    common = ["--exit-on-failure", "--plain-http", "--download-seconds-max", "3",
              "--package-bytes-max", "9000000"]
    for value, expected, words in cases:
        settings(WEBSITE_RUN_FROM_PACKAGE=value)
        code, said = App(*common, home=home).ends(62)
        assert code == expected and words in said, (value.split("?")[0], code, expected, said)
    settings(WEBSITE_RUN_FROM_PACKAGE=str(SCRATCH / "one.zip"), ATREST_PACKAGE_SHA256="0" * 64)
    code, said = App(*common, home=home).ends()
    assert code == 62 and "not the one that is expected" in said, (code, said)
    settings(WEBSITE_RUN_FROM_PACKAGE="1", WEBSITE_LOCAL_CACHE_OPTION="Always")
    code, said = App(*common, home=home).ends()
    assert code == 71 and "cannot be combined" in said, (code, said)
    SETTINGS.write_text('{\n  "A": "1",\n  "B": 5\n}')
    code, said = App(*common, home=home).ends()
    assert code == 70 and "settings.json:3:" in said, (code, said)
    settings(WEBSITE_RUN_FROM_PACKAGE=str(SCRATCH / "one.zip"))
    (home / "site/wwwroot/old.txt").touch()
    code, said = App(*common, home=home).ends()
    assert code == 32 and "is not empty" in said and "package is served there" in said, (code, said)
    code, said = App(*common, home=pathlib.Path("/proc/self")).ends()
    assert code == 75 and "HOME must be a directory" in said, (code, said)
    strange.shutdown()


def over_http(plain):
    step("plain http: from this host, if it is allowed")
    plain.upload("one.zip", package("one").read_bytes())
    url = plain.sas("one.zip").replace("blob.test", "127.0.0.1")
    settings(WEBSITE_RUN_FROM_PACKAGE=url)
    App("--plain-http").serves("This is one").stop()
    code, said = App("--exit-on-failure").ends()
    assert code == 73 and "plain http" in said, (code, said)


def nothing_leaks():
    step("no signature was said, and nothing of a package lies in the open")
    for path in SAID:
        text = path.read_text()
        for signature in SIGNATURES:
            assert signature not in text, f"{path}: a signature"
    for path in (HOME / ".atrest").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert MARKER.encode() not in content and b"PK\x03\x04" not in content, path
            assert not any(signature.encode() in content for signature in SIGNATURES), path


def main():
    HOME.mkdir()
    blobs, plain = Blobs(10443, True), Blobs(10000, False)
    try:
        blobs.ready(), plain.ready()
        app = references(blobs)
        with nginx():
            hot_swap(app, blobs)
        refreshed(app)
        vault_away(revoked(app, blobs))
        local()
        over_http(plain)
        bad_input(blobs, plain)
        nothing_leaks()
        step("done")
    finally:
        blobs.process.kill(), plain.process.kill()


main()
