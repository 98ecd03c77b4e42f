"""Samples of interleaved rounds: medians, spread, and ratios of pairs."""

import statistics

# A row whose spread is more than this part of its median is marked as noisy.
NOISY = 0.15
# Results that differ by less are called equal, however quiet the machine was.
EQUAL = 0.05


def spread_of(values):
    """Half of the distance between the quartiles (of fewer than four: between the extremes), as a
    part of the median: how far a typical sample is from it."""
    middle = statistics.median(values)
    if len(values) < 2 or middle == 0:
        return 0.0
    low, high = min(values), max(values)
    if len(values) >= 4:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2 / abs(middle)


def describe(values):
    """All that is written about one metric of one peer."""
    return {"median": statistics.median(values), "mean": statistics.fmean(values),
            "min": min(values), "max": max(values), "spread": spread_of(values),
            "stddev": statistics.stdev(values) if len(values) > 1 else 0.0}


def is_cost(metric):
    """Whether less is better: metrics carry their unit at the end."""
    return unit(metric) in ("s", "ms", "µs", "MiB")


def unit(metric):
    """The unit in a metric's name, as it is written in a table."""
    for ending, written in UNITS.items():
        if metric.endswith(ending):
            return written
    raise ValueError(f"a metric without a unit: {metric}")


# Longest first.
UNITS = {"_mib_s": "MiB/s", "_per_s": "/s", "_mib": "MiB", "_ms": "ms", "_us": "µs", "_s": "s"}


def speed(metric, mine, other):
    """How many times as fast the first is: above 1 is a win, whatever the unit."""
    top, bottom = (other, mine) if is_cost(metric) else (mine, other)
    return top / bottom if bottom else float("inf")


def ratio(metric, mine, other):
    """The ratio of two peers from `{round: value}` of each: of each round that both took part in,
    so that a slow minute, which slows both, does not count. None without such a round."""
    rounds = sorted(set(mine) & set(other))
    if not rounds:
        return None
    values = [speed(metric, mine[r], other[r]) for r in rounds]
    found = describe(values)
    found["noisy"] = found["spread"] > NOISY
    found["count"] = len(values)
    return found


class Results:
    """What was measured: values by metric, peer and round, and what failed."""

    def __init__(self):
        self.values = {}
        self.failures = {}

    def add(self, metric, peer, round_number, value):
        self.values.setdefault(metric, {}).setdefault(peer, {})[round_number] = value

    def fail(self, job, peer, reason):
        self.failures.setdefault(job, {})[peer] = reason

    def of(self, metric, peer):
        """`{round: value}`, empty if there is none."""
        return self.values.get(metric, {}).get(peer, {})

    def median(self, metric, peer):
        values = self.of(metric, peer)
        return statistics.median(values.values()) if values else None

    def ratio(self, metric, peer, reference):
        return ratio(metric, self.of(metric, peer), self.of(metric, reference))

    def noisy(self, metric, peer):
        values = list(self.of(metric, peer).values())
        return bool(values) and spread_of(values) > NOISY

    def as_json(self):
        """With every sample, and what is told of them."""
        return {metric: {peer: dict(describe(list(rounds.values())), samples=rounds)
                         for peer, rounds in by_peer.items()}
                for metric, by_peer in self.values.items()}

    @classmethod
    def from_json(cls, record):
        """What `as_json` has written; JSON's keys are text."""
        results = cls()
        for metric, by_peer in record["results"].items():
            for peer, found in by_peer.items():
                for number, value in found["samples"].items():
                    results.add(metric, peer, int(number), float(value))
        results.failures = record.get("failures", {})
        return results
