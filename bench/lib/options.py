"""The command line: what was typed, and what of it contradicts itself."""

import argparse
import os
import pathlib

from goals import GOAL_JOBS, GOALS
from jobs import JOBS
from peers import KINDS
from setup import SIZES
from shell import ROOT

GROUPS = ["fio", "tree", "meta", "program", "growth"]
EPILOG = """JOBS are names, separated by commas; `goals` (those of the table that README.md shows; the
default), `all`, or a group: fio, tree, meta, program, growth. `--list` lists them.

Exit codes: 0 done; 1 something failed, of atrest or altogether; 2 the command line makes no sense;
3 --compare found something slower. Ctrl-C keeps the rounds that were complete.
"""


def parser():
    made = argparse.ArgumentParser(
        prog="bench/run", epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures atrest beside others, paired and interleaved; needs root and fio.")
    add = made.add_argument
    add("--jobs", metavar="JOBS", help="what to measure; see below")
    add("--peers", metavar="PEERS", help=f"of {','.join(KINDS)}; default: all")
    add("--runs", type=int, metavar="N", help="rounds (full 5, quick 3, tiny 1)")
    add("--quick", action="store_true", help="the same as --size quick")
    add("--size", choices=list(SIZES), help="full (default); quick: minutes; tiny: does it work?")
    add("--tree", type=pathlib.Path, metavar="TAR", help="the source tree of the jobs with a tree")
    add("--label", help="second half of the name of the results; default: the kernel's release")
    add("--output", type=pathlib.Path, metavar="DIR", help="where results go; default: bench/results")
    add("--scratch", type=pathlib.Path, metavar="DIR",
        help="where the peers' disks are: on the disk to be measured; default: $TMPDIR or /tmp")
    add("--no-build", action="store_true", default=None, help="measure what is built already")
    add("--publish", action="store_true", help="also replace the table in README.md")
    add("--compare", metavar="OLD", help="say what is slower than in the results OLD")
    add("--with", metavar="NEW", dest="new", help="compare OLD with the results NEW; measure nothing")
    add("--profile", action="store_true",
        help="in the last round, also write where atrest's time goes (perf)")
    add("--list", action="store_true", help="list all jobs and what they measure")
    return made


def parse(words):
    """The options, checked against each other; ends the program with 2 if they make no sense."""
    made = parser()
    options = made.parse_args(words)
    if options.new:
        only_compared(made, options)
        return options
    if options.quick and options.size not in (None, "quick"):
        made.error(f"--quick contradicts --size {options.size}")
    options.size = "quick" if options.quick else options.size or "full"
    options.jobs = chosen(made, "job", options.jobs or "goals", JOBS, job_names)
    options.peers = chosen(made, "peer", options.peers or ",".join(KINDS), KINDS, lambda name: [name])
    if options.runs is not None and options.runs < 1:
        made.error("--runs must be at least 1")
    if options.tree and not options.tree.is_file():
        made.error(f"--tree: not a file: {options.tree}")
    options.rounds = options.runs or SIZES[options.size].rounds
    options.output = (options.output or ROOT / "bench/results").absolute()
    options.scratch = (options.scratch or pathlib.Path(os.environ.get("TMPDIR", "/tmp"))).absolute()
    options.label = options.label or os.uname().release
    if options.profile and (options.publish or options.compare):
        made.error("--profile slows down what it looks at: not with --publish or --compare")
    if options.publish:
        publishable(made, options)
    return options


def only_compared(made, options):
    """--with measures nothing, so what says how to measure contradicts it."""
    if not options.compare:
        made.error("--with NEW needs --compare OLD")
    for name in ("jobs", "peers", "runs", "quick", "size", "tree", "label", "output", "scratch",
                 "no_build", "publish", "profile", "list"):
        if getattr(options, name):
            made.error(f"--with measures nothing: --{name.replace('_', '-')} contradicts it")


def job_names(word):
    if word == "all":
        return list(JOBS)
    if word == "goals":
        return GOAL_JOBS
    if word in GROUPS:
        return [name for name, job in JOBS.items() if job.group == word]
    return [word]


def chosen(made, what, text, known, expand):
    """The names in a list, in the order of the table."""
    words = text.split(",")
    twice = {word for word in words if words.count(word) > 1}
    if twice:
        made.error(f"--{what}s names {sorted(twice)[0]} twice")
    names = {name for word in words for name in expand(word)}
    unknown = sorted(names - set(known))
    if unknown:
        made.error(f"unknown {what}: {unknown[0] or 'an empty name'} (there are {', '.join(known)})")
    return [name for name in known if name in names]


def publishable(made, options):
    """The table in README.md is of full size, and shows every goal beside its reference."""
    if options.size != "full" or options.rounds < 5:
        made.error("--publish contradicts a short run: it needs --size full and at least 5 --runs")
    wanted_peers = {goal.reference for goal in GOALS} | {goal.peer for goal in GOALS}
    absent = [name for name in KINDS if name in wanted_peers - set(options.peers)]
    absent += [name for name in GOAL_JOBS if name not in options.jobs]
    if absent:
        made.error(f"--publish needs all that the table shows: {', '.join(absent)} was left out")
