"""New results against old ones: what has become slower by more than noise.

A machine is not as fast on another day, so it is ratios to what was measured beside it in the same
rounds that are compared. A row has regressed if its ratio to *every* reference that both have is
lower, by more than both the noise of the two and what always counts as equal: a reference that has
become faster lowers the ratio to itself, but not to the others.
"""

import json
import math
import pathlib

from samples import EQUAL, Results
from shell import Failure

REFERENCES = ["ext4", "passthrough", "gocryptfs", "fscrypt"]


def load(path):
    """The record of an earlier run: its directory, or the raw.json in it."""
    path = pathlib.Path(path)
    path = path / "raw.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text())
        if record.get("format") != 2:
            raise Failure(f"{path} is of an older bench/run: its metrics were others; measure again")
        return record, Results.from_json(record)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Failure(f"cannot read results of an earlier run: {path}: {error}") from None


class Row:
    """A metric of a peer: its ratios to each common reference, then and now."""

    def __init__(self, metric, peer, pairs):
        self.metric, self.peer, self.pairs = metric, peer, pairs

    def changes(self):
        """`{reference: (change, noise)}`: the change as a part of the old ratio."""
        return {reference: (new["median"] / old["median"] - 1, noise_of(old, new))
                for reference, (old, new) in self.pairs.items()}

    def verdict(self):
        changes = self.changes().values()
        if all(change < -max(noise, EQUAL) for change, noise in changes):
            return "slower"
        if all(change > max(noise, EQUAL) for change, noise in changes):
            return "faster"
        return "same"


def noise_of(old, new):
    """How much of a difference two runs explain: of each, how far a typical sample is from the
    median."""
    return math.hypot(old["spread"], new["spread"])


def compare(old, new):
    """Rows of all that both have of atrest, whose controls without a cipher are not judged."""
    rows, lonely = [], []
    for metric, by_peer in new.values.items():
        for peer in by_peer:
            if not peer.startswith("atrest-") or peer == "atrest-stub" or not old.of(metric, peer):
                continue
            pairs = {}
            for reference in REFERENCES:
                before, now = (r.ratio(metric, peer, reference) for r in (old, new))
                if before and now and before["median"] > 0:
                    pairs[reference] = (before, now)
            if pairs:
                rows.append(Row(metric, peer, pairs))
            else:
                lonely.append(f"{metric} of {peer}")
    return rows, lonely


def table(rows):
    """Markdown."""
    lines = ["| metric | peer | against | then | now | change | noise | |", "|---|---|---|---:|---:|---:|---:|---|"]
    for row in rows:
        for reference, (change, noise) in row.changes().items():
            before, now = (found["median"] for found in row.pairs[reference])
            verdict = row.verdict()
            shown = "**slower**" if verdict == "slower" else verdict
            lines.append(f"| {row.metric} | {row.peer} | {reference} | {before:.2f} | {now:.2f} "
                         f"| {change:+.0%} | {noise:.0%} | {shown} |")
    return "\n".join(lines)


def report(old, new, say):
    """Prints the comparison; returns whether something has become slower."""
    rows, lonely = compare(old, new)
    if not rows:
        raise Failure("the two have no metric of atrest beside a common reference: nothing to compare")
    say(table(rows))
    for name in lonely:
        say(f"not compared, for want of a common reference: {name}")
    slower = [f"{row.metric} of {row.peer}" for row in rows if row.verdict() == "slower"]
    say(f"{len(rows)} compared, {len(slower)} slower{': ' if slower else ''}{', '.join(slower)}")
    return bool(slower)
