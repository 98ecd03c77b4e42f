"""Everything in order: options, build, peers, rounds, results."""

import contextlib
import datetime
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

import compare
import fio_jobs  # noqa: F401 - these register their jobs, in this order
import tree_jobs  # noqa: F401
import program_jobs  # noqa: F401
import growth
import machine
import options as command_line
import peers as peers_module
import report
from disks import MIB, require_space
from jobs import JOBS
from profiler import Profile
from samples import Results, unit
from setup import SIZES, Setup
from shell import ROOT, Failure, missing, run

REGRESSED = 3


def say(text):
    print(text, flush=True)


def build(options):
    """What is measured: the program, the examples beside it, and the program without a cipher."""
    own = any(name.startswith("atrest-") for name in options.peers)
    groups = {JOBS[name].group for name in options.jobs}
    targets = ["--bins"] if own and "ATREST_BIN" not in os.environ else []
    if "passthrough" in options.peers and "PASSTHROUGH_BIN" not in os.environ:
        targets += ["--example", "passthrough"]
    if groups & {"meta", "growth"} and "META_BIN" not in os.environ:
        targets += ["--example", "meta"]
    base = ["cargo", "build", "--release", "--locked"]
    if targets:
        say("building ...")
        run([*base, *targets], cwd=ROOT, limit_seconds=7200)
    if "atrest-stub" in options.peers and "ATREST_STUB_BIN" not in os.environ:
        say("building without a cipher ...")
        run([*base, "--bins", "--features", "insecure-unsealed"], cwd=ROOT, limit_seconds=7200,
            env=dict(os.environ, CARGO_TARGET_DIR=str(ROOT / "target/unsealed")))


def results_directory(options, now):
    """A new one, so that no results are ever changed; made before anything is measured, so that an
    hour is not lost to a folder that cannot be written."""
    name = now.strftime("%Y-%m-%d") + "-" + re.sub(r"[^A-Za-z0-9._-]", "-", options.label)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            directory = options.output / (name if number == 1 else f"{name}.{number}")
            try:
                directory.mkdir()
            except FileExistsError:
                continue
            (directory / "README.md").write_text("Not measured yet.\n")
            return directory
    except OSError as error:
        raise Failure(f"results cannot be written to {options.output}: {error.strerror or error}; "
                      f"choose another --output") from None
    raise Failure(f"{options.output} has a thousand results of {name}: choose another --label")


class Measurement:
    """A run: peers that take turns."""

    def __init__(self, options, setup, peers, results, profile=None):
        self.options, self.setup, self.peers, self.results = options, setup, peers, results
        self.profile = profile
        self.started = time.monotonic()

    def round(self, number):
        """Every job on every peer in turn. Each round starts with another peer, so that none is
        always first."""
        shift = number % len(self.peers)
        for name in self.options.jobs:
            if JOBS[name].growth and number > 0:
                continue
            for peer in self.peers[shift:] + self.peers[:shift]:
                limit = peer.kind.rounds_max or self.options.rounds
                wanted = JOBS[name].peers is None or peer.name in JOBS[name].peers
                failed = peer.name in self.results.failures.get(name, {})
                if peer.broken and wanted and not failed:
                    self.results.fail(name, peer.name, peer.broken)
                elif wanted and number < limit and not failed:
                    self.sample(number, JOBS[name], peer)

    def sample(self, number, job, peer):
        """One job on one peer; what fails is left out of later rounds, with the reason."""
        try:
            absent = missing(job.commands)
            if absent:
                raise Failure(f"not installed: {', '.join(absent)} (bench/run --install)")
            peer.up()
            with self.profiled(number, job, peer):
                for values in job.run(peer, self.setup):
                    self.add(number, peer, values)
        except (Failure, OSError) as error:
            self.results.fail(job.name, peer.name, " ".join(str(error).split()))
            say(f"{self.clock()} failed: {job.name} on {peer.name}: {error}")
        self.rest(peer)

    def add(self, number, peer, values):
        for metric, value in values.items():
            self.results.add(metric, peer.name, number, value)
            say(f"{self.clock()} round {number + 1}/{self.options.rounds}  {metric:28} "
                f"{peer.name:12} {value:10.4g} {unit(metric)}")

    def profiled(self, number, job, peer):
        """The last round of atrest, if that is wanted: what jobs leave for each other is there by then."""
        last = number == self.options.rounds - 1
        if self.profile and last and not job.growth and peer.name.startswith("atrest-"):
            return self.profile.of(job, peer)
        return contextlib.nullcontext()

    def rest(self, peer):
        """A peer that cannot be unmounted is left alone from then on, and cleaned up at the end."""
        try:
            peer.rest()
        except (Failure, OSError) as error:
            peer.broken = f"it could not be unmounted: {' '.join(str(error).split())}"
            say(f"{self.clock()} left out from here: {peer.name}: {peer.broken}")

    def clock(self):
        return f"{datetime.timedelta(seconds=int(time.monotonic() - self.started))}"


def measure(options):
    """Measures, writes results after each round; returns the exit code."""
    old = compare.load(options.compare) if options.compare else None
    if old and old[0]["sizes"]["size"] != options.size:
        raise Failure(f"--compare: the old results are of size {old[0]['sizes']['size']}, these would be "
                      f"{options.size}")
    if os.geteuid() != 0:
        raise Failure("bench/run needs root: it gives each peer a disk of its own (a loop device)")
    if missing(["losetup", "mkfs.ext4", "findmnt"]):
        raise Failure("losetup, mkfs.ext4 or findmnt is missing: bench/run --install")
    quiet = machine.Quiet()
    now = datetime.datetime.now(datetime.timezone.utc)
    directory = results_directory(options, now)
    if not shutil.which("gnuplot"):
        say("no plots: gnuplot is missing (bench/run --install)")
    if quiet.complaint():
        say(f"warning: {quiet.complaint()}")
    scratch, results, peers, record = None, Results(), [], {}
    try:
        if not options.no_build:
            build(options)
        scratch = make_scratch(options)
        each_bytes, grown_bytes = disks_needed(options)
        require_space(scratch, len(options.peers) * each_bytes + grown_bytes)
        setup = Setup(options.size, options.tree, scratch)
        peers, unavailable = peers_module.open_peers(options.peers, scratch, each_bytes, say)
        if not peers:
            raise Failure("no peer can be measured here")
        record = {"date": now.strftime("%Y-%m-%d %H:%M UTC"), "machine": machine.facts(scratch),
                  "command": " ".join(["bench/run", *sys.argv[1:]]), "rounds": options.rounds,
                  "peers": options.peers, "unavailable": unavailable, "sizes": setup.facts(),
                  "versions": peers_module.versions(peers)}
        profile = Profile(directory, scratch) if options.profile else None
        measurement = Measurement(options, setup, peers, results, profile)
        for number in range(options.rounds):
            measurement.round(number)
            record.update(rounds_done=number + 1, quiet=quiet.facts())
            report.write(directory, results, record)
    except KeyboardInterrupt:
        say("interrupted: only rounds that were complete are written")
        raise
    finally:
        # A second Ctrl-C would leave mounts and disks behind.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        for peer in peers:
            peers_module.close_peer(peer, say)
        peers_module.clean(scratch, say)
        if "rounds_done" not in record:
            shutil.rmtree(directory, ignore_errors=True)
    return finish(options, directory, record, results, old)


def finish(options, directory, record, results, old):
    """Tables, comparison, exit code."""
    say(f"\n{(directory / 'summary.md').read_text()}\nwritten: {directory}")
    code = 0
    if any(peer.startswith("atrest-") for by_peer in results.failures.values() for peer in by_peer):
        say("error: atrest failed in a job (see above)")
        code = 1
    if options.publish:
        report.publish(ROOT / "README.md", results, dict(record, failures=results.failures), directory)
    if old and compare.report(old[1], results, say):
        code = code or REGRESSED
    return code


def disks_needed(options):
    """Bytes of the disk of each peer, and of the one at a time of the jobs about growth, beside which
    the former have nothing to do."""
    size = SIZES[options.size]
    grown = [growth.disk_bytes(name, size) for name in options.jobs if JOBS[name].growth]
    alone = len(grown) == len(options.jobs)
    return min(size.disk_mib, SIZES["tiny"].disk_mib if alone else size.disk_mib) * MIB, max(grown, default=0)


def make_scratch(options):
    try:
        scratch = pathlib.Path(tempfile.mkdtemp(prefix="atrest-bench.", dir=options.scratch))
        # Databases are not root.
        scratch.chmod(0o755)
        return scratch
    except OSError as error:
        raise Failure(f"cannot work in {options.scratch}: {error.strerror}; choose another --scratch") from None


def main(words):
    options = command_line.parse(words)
    if options.list:
        say(report.jobs_list())
        return 0
    if options.new:
        old, new = compare.load(options.compare), compare.load(options.new)
        if old[0]["sizes"]["size"] != new[0]["sizes"]["size"]:
            raise Failure("the two results are of different sizes: not to be compared")
        return REGRESSED if compare.report(old[1], new[1], say) else 0
    return measure(options)


def interrupted(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read the output has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
