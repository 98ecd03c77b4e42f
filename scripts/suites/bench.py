"""Of bench/run, what needs no disk: statistics, ratios, judging, comparing, the command line, reports.

Each test says what would go unnoticed without it.
"""

import contextlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench/lib"))
sys.dont_write_bytecode = True
# pylint: disable=wrong-import-position
import compare  # noqa: E402
import main  # noqa: E402
import options  # noqa: E402
import plots  # noqa: E402
import profiler  # noqa: E402
import report  # noqa: E402
import samples  # noqa: E402
import shell  # noqa: E402
from fio_jobs import FIO_JOBS, metric_of  # noqa: E402
from goals import GOAL_JOBS, GOALS, LIMITS, Goal, judge  # noqa: E402
from jobs import JOBS, descriptions  # noqa: E402


def results_of(**by_metric):
    """Results with samples `metric=dict(peer=[of each round])`."""
    results = samples.Results()
    for metric, by_peer in by_metric.items():
        for peer, values in by_peer.items():
            for number, value in enumerate(values):
                results.add(metric, peer.replace("atrest_", "atrest-"), number, value)
    return results


def record_of(results, size="full"):
    """What goes with them."""
    machine = {"cpu": "a CPU", "cpu_count": 2, "cpu_flags": ["aes"], "memory_mib": 1, "kernel": "6.1",
               "disk": "a disk", "commit": "c0ffee", "dirty": False, "fio": "fio-3", "rustc": "rustc 1",
               "kernel_xts": "xts-aes-aesni"}
    sizes = dict.fromkeys(["stream_mib", "random_mib", "commit_mib", "dd_mib", "files", "seconds",
                           "tree_entries", "tree_mib", "disk_mib"], 1)
    quiet = dict.fromkeys(["load_before", "load_after", "pressure_before_percent", "stolen_percent"], 0)
    return {"format": 2, "date": "today", "machine": machine, "command": "bench/run", "rounds": 5,
            "rounds_done": 5, "peers": ["ext4", "passthrough", "gocryptfs", "cryfs", "atrest-gcm"],
            "unavailable": {"cryfs": "not installed"}, "sizes": dict(sizes, size=size), "versions": {},
            "quiet": quiet, "plots": [], "failures": results.failures, "results": results.as_json()}


class Statistics(unittest.TestCase):
    """The numbers."""

    def test_direction(self):
        # Seconds and rates are both "times as fast": the wrong way round, a loss is shown as a win.
        self.assertEqual(samples.speed("untar_s", 2, 4), 2)
        self.assertEqual(samples.speed("stream_write_mib_s", 2, 4), 0.5)
        self.assertEqual(samples.speed("pgbench_per_s", 4, 2), 2)
        self.assertEqual(samples.speed("growth_files_1000_mount_ms", 1, 3), 3)
        self.assertEqual(samples.unit("stream_write_mib_s"), "MiB/s")
        with self.assertRaises(ValueError):
            samples.unit("untar")

    def test_spread(self):
        self.assertEqual(samples.spread_of([5]), 0)
        self.assertAlmostEqual(samples.spread_of([9, 11]), 0.1)
        # One wild sample of five does not make a row noisy; a spread of all does.
        self.assertLess(samples.spread_of([10, 10, 10.2, 10.1, 40]), samples.NOISY)
        self.assertGreater(samples.spread_of([6, 8, 10, 13, 16]), samples.NOISY)

    def test_pairs(self):
        # Each round slows both alike: the medians of unpaired samples would say something else.
        results = results_of(untar_s=dict(ext4=[1, 10, 2], atrest_gcm=[2, 20, 4]))
        found = results.ratio("untar_s", "atrest-gcm", "ext4")
        self.assertEqual((found["median"], found["noisy"], found["count"]), (0.5, False, 3))
        # A peer that was in two rounds only is compared in those.
        results = results_of(untar_s=dict(cryfs=[4, 4], atrest_gcm=[2, 2, 100]))
        self.assertEqual(results.ratio("untar_s", "atrest-gcm", "cryfs")["median"], 2)
        self.assertIsNone(results.ratio("untar_s", "atrest-gcm", "ext4"))

    def test_goals(self):
        results = results_of(untar_s=dict(gocryptfs=[3, 3, 3], atrest_gcm=[1, 1, 1]))
        self.assertEqual(judge(results, Goal("", "untar_s", "gocryptfs", 3))[1], "met")
        self.assertEqual(judge(results, Goal("", "untar_s", "gocryptfs", 3.1))[1], "lost")
        self.assertIsNone(judge(results, Goal("", "untar_s", "ext4", 1)))

    def test_every_goal_is_measured(self):
        known = set(descriptions())
        self.assertEqual({goal.metric for goal in GOALS} - known, set())
        self.assertEqual({metric for _, metric, _ in LIMITS} - known, set())
        measured = {metric for name in GOAL_JOBS for metric in JOBS[name].metrics}
        self.assertEqual({g.metric for g in GOALS if g.peer == "atrest-gcm"} - measured, set())

    def test_job_files(self):
        # The file's name is the job's, and what it starts is that, too.
        files = {path.stem for path in (ROOT / "bench/jobs").glob("*.fio")}
        self.assertEqual(files, set(FIO_JOBS))
        for name in files:
            text = (ROOT / f"bench/jobs/{name}.fio").read_text()
            self.assertTrue(text.startswith("# ") and f"[{name}]" in text, name)
            self.assertIn(metric_of(name), descriptions())


class Comparison(unittest.TestCase):
    """What counts as slower."""

    def verdicts(self, old, new):
        rows, _ = compare.compare(results_of(untar_s=old), results_of(untar_s=new))
        return [row.verdict() for row in rows]

    def test_slower(self):
        old = dict(ext4=[1, 1, 1], gocryptfs=[4, 4, 4], atrest_gcm=[2, 2, 2])
        slow = dict(old, atrest_gcm=[3, 3, 3])
        self.assertEqual(self.verdicts(old, slow), ["slower"])
        self.assertEqual(self.verdicts(slow, old), ["faster"])
        self.assertEqual(self.verdicts(old, old), ["same"])

    def test_another_machine(self):
        # Everything takes twice as long: not our doing.
        old = dict(ext4=[1, 1, 1], atrest_gcm=[2, 2, 2])
        self.assertEqual(self.verdicts(old, dict(ext4=[2, 2, 2], atrest_gcm=[4, 4, 4])), ["same"])

    def test_a_faster_reference(self):
        old = dict(ext4=[2, 2, 2], gocryptfs=[4, 4, 4], atrest_gcm=[2, 2, 2])
        self.assertEqual(self.verdicts(old, dict(old, ext4=[1, 1, 1])), ["same"])

    def test_noise(self):
        # A fifth slower, where single samples are a third off.
        old = dict(ext4=[1, 1, 1, 1, 1], atrest_gcm=[1.5, 2, 2.2, 3, 1.4])
        new = dict(old, atrest_gcm=[1.8, 2.4, 2.6, 3.6, 1.7])
        self.assertEqual(self.verdicts(old, new), ["same"])
        # Between what is equal and what is noise nothing is said either.
        old = dict(ext4=[1, 1, 1], atrest_gcm=[2, 2, 2])
        self.assertEqual(self.verdicts(old, dict(old, atrest_gcm=[2.06, 2.06, 2.06])), ["same"])

    def test_files(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            for name, seconds in (("old", 2), ("new", 3)):
                (path / name).mkdir()
                results = results_of(untar_s=dict(ext4=[1] * 3, atrest_gcm=[seconds] * 3))
                (path / name / "raw.json").write_text(json.dumps(record_of(results)))
            run = [ROOT / "bench/run", "--compare"]
            ends = {}
            for old, new in (("old", "new"), ("new", "old"), ("old", "none")):
                done = subprocess.run([*run, path / old, "--with", path / new], capture_output=True,
                                      text=True, check=False)
                ends[old, new] = done.returncode, done.stdout + done.stderr
            self.assertEqual([code for code, _ in ends.values()], [3, 0, 1], ends)
            self.assertIn("**slower**", ends["old", "new"][1])
            for broken in ("{", '{"format": 1}', '{"format": 2}', "[]", '"x"'):
                (path / "raw.json").write_text(broken)
                with self.assertRaises(shell.Failure):
                    compare.load(path)


class CommandLine(unittest.TestCase):
    """Words that contradict each other end with 2 and say why."""

    def refused(self, *words):
        told = io.StringIO()
        with contextlib.redirect_stderr(told), self.assertRaises(SystemExit) as end:
            options.parse(list(words))
        self.assertEqual(end.exception.code, 2)
        return told.getvalue()

    def test_contradictions(self):
        for words, says in [
            (["--quick", "--size", "full"], "--quick contradicts --size full"),
            (["--with", "x"], "needs --compare"),
            (["--compare", "x", "--with", "y", "--quick"], "--quick contradicts"),
            (["--compare", "x", "--with", "y", "--jobs", "untar"], "--jobs contradicts"),
            (["--jobs", "untar,untar"], "names untar twice"),
            (["--jobs", "untar,nothing"], "unknown job: nothing"),
            (["--peers", "ext4,"], "an empty name"),
            (["--peers", "zfs"], "unknown peer: zfs"),
            (["--runs", "0"], "at least 1"),
            (["--runs", "many"], "invalid int"),
            (["--tree", "/nowhere.tar"], "not a file"),
            (["--publish", "--quick"], "--publish contradicts a short run"),
            (["--publish", "--runs", "3"], "--publish contradicts a short run"),
            (["--publish", "--peers", "ext4"], "passthrough"),
            (["--publish", "--jobs", "fio"], "untar"),
            (["--profile", "--publish"], "--profile slows down"),
            (["--compare", "x", "--with", "y", "--profile"], "--profile contradicts"),
        ]:
            self.assertIn(says, self.refused(*words))

    def test_order(self):
        parsed = options.parse(["--jobs", "untar,stream_write", "--peers", "atrest-gcm,ext4", "--quick"])
        self.assertEqual(parsed.jobs, ["stream_write", "untar"])
        self.assertEqual(parsed.peers, ["ext4", "atrest-gcm"])
        self.assertEqual((parsed.size, parsed.rounds), ("quick", 3))


class Reports(unittest.TestCase):
    """What is written."""

    def setUp(self):
        self.results = results_of(
            untar_s=dict(ext4=[1] * 5, passthrough=[1] * 5, gocryptfs=[10] * 5, atrest_gcm=[2] * 5),
            dd_512_mib_s=dict(ext4=[9, 10, 11, 10, 10], gocryptfs=[1] * 5, atrest_gcm=[5, 20, 9, 14, 30]))
        self.results.fail("cp_a", "gocryptfs", "it fell over")
        self.record = record_of(self.results)

    def test_tables(self):
        text = report.goals_table(self.results, self.record)
        # Lost against one, won against the other; the noisy row is marked.
        self.assertIn("passthrough **0.50 lost** (1); gocryptfs 5.00 (3)", text)
        self.assertIn("gocryptfs 14.00~ (10)", text)
        self.assertIn("14~", text)
        self.assertEqual(report.limits_table(self.results), "")
        for metric, value in (("growth_files_10000000_rss_mib", 300), ("growth_files_10000000_mount_ms", 90)):
            self.results.add(metric, "atrest-gcm", 0, value)
        text = report.limits_table(self.results)
        self.assertIn("| **300 lost** (256) |", text)
        self.assertIn("| 90 (2000) |", text)

    def test_files(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            report.write(path, self.results, self.record)
            readme = (path / "README.md").read_text()
            for part in ("CryFS: not installed", "gocryptfs, cp_a: it fell over", "c0ffee"):
                self.assertIn(part, readme)
            lines = (path / "samples.csv").read_text().splitlines()
            self.assertEqual(lines[0], "metric,unit,peer,round,value")
            self.assertEqual(len(lines), 1 + 20 + 15)
            _, again = compare.load(path)
            self.assertEqual(again.values, self.results.values)
            self.assertFalse((path / "plot.gnuplot").exists())
            for name in json.loads((path / "raw.json").read_text())["plots"]:
                self.assertIn("<svg", (path / name).read_text()[:2000])

    def test_growth_plot(self):
        metrics = [metric for _, metric in plots.SERIES["growth_files_mount_ms"][2]]
        results = results_of(**{m: dict(ext4=[1 + n], atrest_gcm=[2]) for n, m in enumerate(metrics)})
        title, axis, points = plots.SERIES["growth_files_mount_ms"]
        script = plots.growth(results, self.record, title, axis, points)
        self.assertIn('"10M" 10000000', script)
        self.assertIn("$atrest_gcm using 1:2", script)
        if shutil.which("gnuplot"):
            with tempfile.TemporaryDirectory() as folder:
                drawn = plots.draw(pathlib.Path(folder), results, self.record)
            self.assertEqual(drawn, ["growth_files_mount_ms.svg"])

    def test_publish(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "README.md"
            path.write_text(f"a\n{report.MARKERS[0]}\nprevious\n{report.MARKERS[1]}\nb\n")
            report.publish(path, self.results, self.record, ROOT / "bench/results/x")
            text = path.read_text()
            self.assertTrue(text.startswith("a\n") and text.endswith("\nb\n") and "previous" not in text)
            self.assertIn("[bench/results/x](bench/results/x)", text)
            path.write_text("no markers")
            with self.assertRaises(shell.Failure):
                report.publish(path, self.results, self.record, ROOT / "bench/results/x")
        # The markers are in the real one.
        self.assertTrue(all(marker in (ROOT / "README.md").read_text() for marker in report.MARKERS))


class Profiles(unittest.TestCase):
    """What perf says, as a section."""

    LINES = """
        swapper     cpu-clock/period=1/: ffffffff821 pv_native_safe_halt
   atrest-fuse-0     cpu-clock/period=1/:         55dd0eac atrest::epoch::Epochs::get
   atrest-fuse-1     cpu-clock/period=1/:         55dd0eac <alloc::vec::Vec<T,A> as core::Extend<T>>::extend
          epochs     cpu-clock/period=1/:         55dd0eac atrest::epoch::Epochs::get
    kworker/u8:1     cpu-clock/period=1/: ffffffff821 iowrite16
              rm     cpu-clock/period=1/: ffffffff821 do_syscall_64
   atrest-worker     cpu-clock/period=1/: ffffffff821 do_syscall_64
              rm     fuse:fuse_request_send: ffffffff818 connection 39 opcode 10 (FUSE_UNLINK) len 45
              rm     fuse:fuse_request_send: ffffffff818 connection 39 opcode 10 (FUSE_UNLINK) len 45
    """

    def test_counted(self):
        # Threads of the daemon count together, those of the kernel together, requests beside both.
        counted = profiler.Counted(self.LINES.splitlines())
        self.assertEqual(counted.comms, {"atrest": 4, "idle": 1, "threads of the kernel": 1, "rm": 1})
        self.assertEqual(counted.requests, {"UNLINK": 2})
        self.assertEqual(counted.symbols, {"atrest::epoch::Epochs::get": 2, "::extend": 1, "do_syscall_64 *k*": 1})


class Running(unittest.TestCase):
    """Commands that fail or hang."""

    def test_limits(self):
        with self.assertRaisesRegex(shell.TooSlow, "more than 0.3 s"):
            shell.run(["sh", "-c", "sleep 60 & sleep 60"], limit_seconds=0.3)
        with self.assertRaisesRegex(shell.Failure, r"failed \(3\): last"):
            shell.run(["sh", "-c", "echo first; echo last; exit 3"])

    def test_unwritable(self):
        parsed = options.parse(["--output", "/proc/results"])
        with self.assertRaisesRegex(shell.Failure, "results cannot be written to /proc/results"):
            main.results_directory(parsed, main.datetime.datetime.now())

    def test_never_overwritten(self):
        with tempfile.TemporaryDirectory() as folder:
            parsed = options.parse(["--output", folder, "--label", "a/b c"])
            now = main.datetime.datetime(2026, 1, 2)
            names = [main.results_directory(parsed, now).name for _ in range(3)]
            self.assertEqual(names, ["2026-01-02-a-b-c", "2026-01-02-a-b-c.2", "2026-01-02-a-b-c.3"])


if __name__ == "__main__":
    unittest.main()
