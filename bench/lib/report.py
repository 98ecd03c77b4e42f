"""Results as files: raw.json (everything), samples.csv, summary.md (tables), README.md (all about it),
plots. A loss is shown as one."""

import csv
import json
import re

import plots
from goals import GOALS, LIMITS, judge
from jobs import JOBS, descriptions, job_of
from peers import KINDS
from samples import EQUAL, NOISY, unit
from shell import Failure

NOISE_MARK = "~"
README_COLUMNS = ["ext4", "passthrough", "gocryptfs", "atrest-gcm", "atrest-xts", "atrest-stub"]
MARKERS = ("<!-- bench/run --publish: from here -->", "<!-- to here -->")


def cell(results, metric, peer, unavailable=()):
    """A median; what is there instead, if there is none."""
    median = results.median(metric, peer)
    if median is None:
        if peer in unavailable:
            return "–"
        reason = results.failures.get(job_of(metric).name, {}).get(peer)
        return "not measured" if reason is None else "too slow" if "more than" in reason else "failed"
    return f"{median:.4g}{NOISE_MARK if results.noisy(metric, peer) else ''}"


def verdict(found, at_least):
    """A ratio, and what it is worth."""
    mark = NOISE_MARK if found["noisy"] else ""
    shown = f"{found['median']:.2f}{mark}"
    if found["median"] >= at_least:
        return shown
    return f"**{shown} lost**"


def goals_table(results, record):
    """The goals that were measured: medians, ratios, losses."""
    unavailable = record["unavailable"]
    columns = [name for name in README_COLUMNS if name in record["peers"]]
    head = ["Job", ""] + [KINDS[name].title for name in columns] + ["times as fast as (goal)"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(columns) + "---|"]
    for metric in dict.fromkeys(goal.metric for goal in GOALS if goal.peer == "atrest-gcm"):
        own = [goal for goal in GOALS if goal.metric == metric and goal.peer == "atrest-gcm"]
        judged = [(goal, judge(results, goal)) for goal in own]
        if metric not in results.values:
            continue
        ratios = "; ".join(f"{KINDS[goal.reference].title} {verdict(found[0], goal.at_least)} "
                           f"({goal.at_least:g})" for goal, found in judged if found)
        row = [own[0].title, unit(metric)]
        row += [cell(results, metric, name, unavailable) for name in columns]
        lines.append("| " + " | ".join(row + [ratios or "not measured"]) + " |")
    return "\n".join(lines)


def xts_table(results):
    """XTS against fscrypt, whose contents have the same cipher."""
    lines = ["| Job | | fscrypt | atrest, XTS | times as fast as fscrypt (goal) |", "|---|---|---:|---:|---|"]
    for goal in GOALS:
        found = judge(results, goal) if goal.peer == "atrest-xts" else None
        if found:
            lines.append(f"| {goal.title.removeprefix('XTS: ')} | {unit(goal.metric)} "
                         f"| {cell(results, goal.metric, 'fscrypt')} "
                         f"| {cell(results, goal.metric, 'atrest-xts')} "
                         f"| {verdict(found[0], goal.at_least)} ({goal.at_least:g}) |")
    return "\n".join(lines) if len(lines) > 2 else ""


def limits_table(results):
    """What is bounded at a size, whatever others do."""
    lines = ["| What | | atrest (at most) |", "|---|---|---|"]
    for title, metric, at_most in LIMITS:
        median = results.median(metric, "atrest-gcm")
        if median is not None:
            shown = f"{median:.4g}" if median <= at_most else f"**{median:.4g} lost**"
            lines.append(f"| {title} | {unit(metric)} | {shown} ({at_most:g}) |")
    return "\n".join(lines) if len(lines) > 2 else ""


def full_table(results, record):
    """Every metric, every peer."""
    peers, unavailable = record["peers"], record["unavailable"]
    lines = ["| metric | " + " | ".join(KINDS[name].title for name in peers) + " |",
             "|---|" + "---:|" * len(peers)]
    for metric in ordered(results):
        cells = [cell(results, metric, name, unavailable) for name in peers]
        lines.append(f"| {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio_table(results, record):
    """Every metric: atrest against each reference, whether a goal is set or not."""
    references = [n for n in ("ext4", "passthrough", "fscrypt", "gocryptfs", "securefs", "encfs", "cryfs",
                              "atrest-stub") if n in record["peers"]]
    lines = ["| metric | peer | " + " | ".join(f"/ {KINDS[n].title}" for n in references) + " |",
             "|---|---|" + "---:|" * len(references)]
    for metric in ordered(results):
        for peer in ("atrest-gcm", "atrest-xts"):
            found = [results.ratio(metric, peer, name) for name in references]
            if any(found):
                cells = [verdict(each, 1 - EQUAL) if each else "" for each in found]
                lines.append(f"| {metric} | {KINDS[peer].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else ""


def spread_table(results):
    lines = ["| metric | peer | median | mean | min | max | stddev | spread | n |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    described = results.as_json()
    for metric in ordered(results):
        for peer, found in described[metric].items():
            numbers = " | ".join(f"{found[k]:.4g}" for k in ("median", "mean", "min", "max", "stddev"))
            mark = NOISE_MARK if found["spread"] > NOISY else ""
            lines.append(f"| {metric} | {peer} | {numbers} | {found['spread']:.0%}{mark} "
                         f"| {len(found['samples'])} |")
    return "\n".join(lines)


def ordered(results):
    """Metrics in the order of the jobs."""
    return [metric for metric in descriptions() if metric in results.values]


def machine_line(machine):
    return (f"{machine['cpu']}, {machine['cpu_count']} CPUs ({', '.join(machine['cpu_flags'])}), "
            f"{machine['memory_mib']} MiB, Linux {machine['kernel']}; {machine['disk']}")


def left_out(record):
    """Why columns and cells are empty."""
    lines = [f"- {KINDS[name].title}: {reason}" for name, reason in record["unavailable"].items()]
    lines += [f"- {KINDS[peer].title}, {job}: {reason}"
              for job, by_peer in record["failures"].items() for peer, reason in by_peer.items()]
    return "\n".join(lines) or "Nothing."


def summary(results, record):
    parts = [goals_table(results, record)] if any(g.metric in results.values for g in GOALS) else []
    parts += [xts_table(results), limits_table(results), full_table(results, record), ratio_table(results, record)]
    note = (f"Medians of {record['rounds_done']} interleaved rounds of size {record['sizes']['size']}, each "
            f"peer on a disk of its own. Ratios are medians of the rounds' own, as times as fast; one "
            f"below its goal, without a goal below {1 - EQUAL:g}, is lost. {NOISE_MARK}: noisy, a typical "
            f"sample is more than {NOISY:.0%} off. {machine_line(record['machine'])}.")
    return "\n\n".join(part for part in parts + [note] if part) + "\n"


def readme(results, record):
    machine, quiet, sizes = record["machine"], record["quiet"], record["sizes"]
    metrics = "\n".join(f"- `{metric}`: {descriptions()[metric]}" for metric in ordered(results))
    versions = "\n".join(f"- {KINDS[name].title}: {text}" for name, text in record["versions"].items())
    images = "\n\n".join(f"![{name}]({name})" for name in record["plots"])
    state = " with uncommitted changes" if machine["dirty"] else ""
    return f"""# Benchmark of {record['date']}

Machine: {machine_line(machine)}.
Commit: {machine['commit']}{state}.
Command: `{record['command']}`
Rounds: {record['rounds_done']} of {record['rounds']}.
Load before and after: {quiet['load_before']:.2f}, {quiet['load_after']:.2f}; waiting for processors \
before: {quiet['pressure_before_percent']} %; taken by the host: {quiet['stolen_percent']} %.
Versions: {machine['fio']}; {machine['rustc']}.

{versions}

Sizes ({sizes['size']}): streams {sizes['stream_mib']} MiB, random I/O of {sizes['random_mib']} MiB on \
files as large, commits {sizes['commit_mib']} MiB, dd {sizes['dd_mib']} MiB, {sizes['files']} files, timed jobs \
{sizes['seconds']} s, a tree of {sizes['tree_entries']} entries and {sizes['tree_mib']} MiB, disks of \
{sizes['disk_mib']} MiB.

{metrics}

## Left out

{left_out(record)}

## Medians and ratios

{summary(results, record)}
{images}

## Spread

{spread_table(results)}

All samples: `raw.json`, `samples.csv`.
"""


def write(directory, results, record):
    """Everything that was measured, so that it can be judged without the machine. Written after each
    round, so that a run that is cut short is not lost."""
    record = dict(record, format=2, results=results.as_json(), failures=results.failures)
    record["plots"] = plots.draw(directory, results, record)
    (directory / "raw.json").write_text(json.dumps(record, indent=1) + "\n")
    with open(directory / "samples.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["metric", "unit", "peer", "round", "value"])
        for metric in ordered(results):
            for peer, values in results.values[metric].items():
                rows.writerows([metric, unit(metric), peer, n, v] for n, v in values.items())
    (directory / "summary.md").write_text(summary(results, record))
    (directory / "README.md").write_text(readme(results, record))


def publish(path, results, record, directory):
    """Replaces what is between the markers in README.md."""
    text = path.read_text()
    before, middle, rest = text.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if not middle or not end:
        raise Failure(f"{path} has no {MARKERS[0]} followed by {MARKERS[1]}")
    name = re.sub(r".*/(bench/results/)", r"\1", str(directory))
    verdicts = [found[1] for found in (judge(results, goal) for goal in GOALS) if found]
    parts = [goals_table(results, record), xts_table(results), limits_table(results)]
    table = "\n\n".join(part for part in parts if part)
    note = (f"Medians of {record['rounds_done']} interleaved rounds of `{record['command']}`, each peer on a "
            f"disk of its own, cold: not even the disk's blocks are cached. In parentheses what is to be "
            f"reached: {verdicts.count('lost')} of {len(verdicts)} goals are lost. {NOISE_MARK}: noisy. "
            f"{machine_line(record['machine'])}. Everything: [{name}]({name}).")
    path.write_text(f"{before}{MARKERS[0]}\n\n{table}\n\n{note}\n\n{MARKERS[1]}{after}")


def jobs_list():
    """For --list."""
    lines = []
    for name, job in JOBS.items():
        lines.append(f"{name} ({job.group})")
        lines += [f"    {metric}: {text}" for metric, text in job.metrics.items()]
    return "\n".join(lines)
