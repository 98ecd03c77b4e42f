"""Where the time of a job goes, by perf(1): what the processors did, which requests came from the kernel,
and what atrest's threads did. What is measured meanwhile is slower than without."""

import collections
import contextlib
import os
import re
import signal
import subprocess

from shell import Failure, missing, run

TOP = 10
PERIOD_NS = 1_003_009
# Linux 6.9; before, requests are not counted.
REQUESTS = "fuse:fuse_request_send"
HEAD = ("Samples of all processors while a job ran, its preparation included, one a millisecond; then requests "
        "to the daemon; then the top of what atrest's own threads did, as shares of their samples. "
        "*k* is the kernel's part.\n")


class Profile:
    """Writes `profile.md` among the results."""

    def __init__(self, directory, scratch):
        if missing(["perf"]):
            raise Failure("--profile needs perf (Debian: linux-perf)")
        self.path = directory / "profile.md"
        self.data = scratch / "perf.data"
        self.events = [f"cpu-clock/period={PERIOD_NS}/"]
        if any(os.path.exists(f"/sys/kernel/{folder}/events/fuse/fuse_request_send")
               for folder in ("tracing", "debug/tracing")):
            self.events.append(REQUESTS)
        self.path.write_text(HEAD)

    @contextlib.contextmanager
    def of(self, job, peer):
        """Samples while the block runs."""
        # Every request, and a sample a millisecond.
        command = ["perf", "record", "-q", "-a", "-c", "1", "-o", str(self.data)]
        for event in self.events:
            command += ["-e", event]
        # Its output would be in the way of the table.
        recording = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            yield
        finally:
            recording.send_signal(signal.SIGINT)
            recording.wait()
        lines = run(["perf", "script", "-i", self.data, "-F", "comm,event,ip,sym,trace"],
                    limit_seconds=600).splitlines()
        self.data.unlink()
        with open(self.path, "a", encoding="utf-8") as report:
            report.write(section(job, peer, Counted(lines)))


class Counted:
    """What the lines of `perf script` say, by count."""

    LINE = re.compile(r"\s*(?P<comm>.+?)\s+(?P<event>cpu-clock\S*|fuse:\S+):\s*(?P<rest>.*)$")

    def __init__(self, lines):
        self.comms = collections.Counter()
        self.requests = collections.Counter()
        self.symbols = collections.Counter()
        for line in lines:
            found = self.LINE.match(line)
            if not found:
                continue
            if found["event"].startswith("fuse:"):
                opcode = re.search(r"\((?:FUSE_)?(\w+)\)", found["rest"])
                self.requests[opcode[1] if opcode else "?"] += 1
                continue
            name = process(found["comm"])
            self.comms[name] += 1
            if name == "atrest":
                address, _, symbol = found["rest"].partition(" ")
                kernel = " *k*" if address.startswith("ffff") else ""
                self.symbols[short(symbol) + kernel] += 1


def process(comm):
    """Threads of one thing have one name."""
    if comm.startswith(("atrest", "epochs")):
        return "atrest"
    if comm.startswith("swapper"):
        return "idle"
    if comm.startswith(("kworker", "ksoftirqd", "jbd2", "loop", "rcu", "kswapd", "kcompactd")):
        return "threads of the kernel"
    return comm


def short(symbol):
    """A name without hash, generics and arguments."""
    symbol = re.sub(r"\+0x[0-9a-f]+.*$|\.isra\.\d+|::h[0-9a-f]{16}|@+GLIBC\S*", "", symbol.strip())
    while True:
        simpler = re.sub(r"<[^<>]*>", "", symbol)
        if simpler == symbol:
            return symbol.replace("|", "/").replace("`", "")[:70] or "?"
        symbol = simpler


def shares(counted, count):
    whole = sum(counted.values()) or 1
    return [(name, 100 * n / whole) for name, n in counted.most_common(count)]


def section(job, peer, counted):
    """One job as text."""
    processors = ", ".join(f"{name} {share:.0f} %" for name, share in shares(counted.comms, 6) if share >= 0.5)
    lines = ["", f"## {job.name}, {peer.kind.title}", "", "; ".join(job.metrics.values()) + ".", "",
             f"Processors: {processors or 'no sample'}."]
    if counted.requests:
        lines += ["", "Requests: " + ", ".join(f"{name} {n:,}" for name, n in counted.requests.most_common(TOP))
                  + "."]
    lines += ["", "| share | where |", "|---:|---|"]
    lines += [f"| {share:.1f} % | `{name.removesuffix(' *k*')}`{' *k*' if name.endswith('*k*') else ''} |"
              for name, share in shares(counted.symbols, TOP)]
    return "\n".join(lines) + "\n"
