"""Compares what is on a mount with what the writers logged.

The promise: a volume that was cut off is exactly as it was after some prefix of what the daemon was
asked to do, and that prefix is long enough. `Claim` says how long for a writer; `verify` finds the
prefixes that fit, and checks that those of different writers fit together in time.
"""

import errno
import json

from model import Refused, Tree
from operations import SYNCS, steps


class Done:
    """One logged operation."""

    def __init__(self, begun, operation):
        self.begun, self.operation = begun, operation
        self.ended, self.errno = None, None


def read_log(path):
    """The operations of a writer in order, and (time, errno name) of what ended it unasked, or None."""
    operations, broken = [], None
    try:
        text = path.read_text()
    except FileNotFoundError:
        return operations, broken
    for line in text.split("\n")[:-1]:
        what, _, time, rest = line.split(" ", 3)
        if what == "b":
            operations.append(Done(int(time), json.loads(rest)))
        elif what == "d":
            operations[-1].ended, operations[-1].errno = int(time), int(rest)
        else:
            broken = int(time), rest
            if rest.startswith(f"{errno.ENOSPC} ") and operations[-1].operation[0] == "direct":
                # On a full disk a large write goes in parts, of which the first may be there.
                operations[-1].operation[0] = "direct_in_parts"
    return operations, broken


def last_sync(logs, before):
    """When the last sync that had returned by then, of any writer, was begun; 0 if there is none."""
    times = [done.begun for operations in logs for done in operations
             if done.operation[0] in SYNCS and done.errno == 0 and done.ended < before]
    return max(times, default=0)


class Outcome:
    """How much of a writer's work is there, as numbers of operations."""

    def __init__(self):
        # The least that must have begun, the most that may be complete.
        self.least, self.most, self.reasons = None, None, {}


def apply(tree, done, reality):
    """All steps of a finished operation; the model has to agree on whether it could succeed."""
    touched = []
    try:
        for paths in steps(tree, done.operation):
            if done.errno:
                reality.append(f"{done.operation} failed with {done.errno}, but had to succeed")
                break
            touched += paths
    except Refused as refused:
        if not done.errno:
            reality.append(f"{done.operation} succeeded, but had to fail: {refused}")
    return touched


def compare(base, entries, operations, least, most):
    """Which states after `least` to `most` operations, at every step between, are on the mount."""
    tree, outcome, reality = Tree(base), Outcome(), []
    for done in operations[:least]:
        apply(tree, done, reality)
    wrong, best = tree.differences(entries), None
    complete = least

    def judge(begun):
        nonlocal best
        if not wrong and not tree.torn_links(entries):
            outcome.least = begun if outcome.least is None else outcome.least
            outcome.most = complete
        elif best is None or len(wrong) < best[0]:
            best = len(wrong), begun, dict(wrong)

    judge(least)
    for index in range(least, most):
        done = operations[index]
        # What failed changed nothing; what is not finished may have succeeded up to any step.
        if done.ended is None or not done.errno:
            try:
                for touched in steps(tree, done.operation):
                    update(wrong, tree, entries, touched)
                    judge(index + 1)
            except Refused as refused:
                if done.ended is not None:
                    reality.append(f"{done.operation} succeeded, but had to fail: {refused}")
        complete = index + 1
        judge(index + 1)
    if reality:
        outcome.reasons = {"the calls themselves": reality[0]}
        outcome.least = None
    elif outcome.least is None:
        outcome.reasons = {"closest": f"after {best[1]} operations of {least} to {most}", **best[2]}
    return outcome


def update(wrong, tree, entries, touched):
    found = tree.differences(entries, touched)
    for path in touched:
        wrong.pop(path, None)
    wrong.update(found)


class Claim:
    """What is promised: `synced_only`, or everything that had returned when `cut` (a time) came.

    What began after `end` cannot be there.
    """

    def __init__(self, cut, end, synced_only):
        self.cut, self.end, self.synced_only = cut, end, synced_only

    def bounds(self, logs, operations):
        limit = last_sync(logs, self.cut) if self.synced_only else self.cut
        least = sum(1 for done in operations if done.ended is not None and done.ended < limit)
        return least, sum(1 for done in operations if done.begun < self.end)


def verify(bases, states, logs, claim):
    """writer -> base, entries, operations. Returns a list of defects and a line about the outcome."""
    defects, outcomes, total, behind = [], {}, 0, 0
    for writer, operations in logs.items():
        least, most = claim.bounds(logs.values(), operations)
        outcome = compare(bases[writer], states[writer], operations, least, most)
        outcomes[writer] = outcome
        if outcome.least is None:
            for path, reason in list(outcome.reasons.items())[:12]:
                defects.append(f"{writer}: {path or '(its directory)'}: {reason}")
        else:
            total, behind = total + outcome.most, behind + most - outcome.most
    if not defects:
        defects = order(outcomes, logs)
    return defects, f"{total} operations there, {behind} after them lost"


def order(outcomes, logs):
    """One prefix for all: what is there of one writer proves that what had returned before is too."""
    defects = []
    for seen, outcome in outcomes.items():
        if not outcome.least:
            continue
        moment = logs[seen][outcome.least - 1].begun
        for other, operations in logs.items():
            must = sum(1 for done in operations if done.ended is not None and done.ended < moment)
            if outcomes[other].most < must:
                defects.append(f"{seen}: operation {outcome.least - 1} is there, but of {other} only "
                               f"{outcomes[other].most} operations, though {must} were done before it")
    return defects
