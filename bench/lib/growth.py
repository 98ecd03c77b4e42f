"""Jobs about growth: what a mount, its memory and single operations cost as a volume grows."""

# Plot -> title, axis, [(x, metric)].
SERIES = {}


def label(number):
    """A number as one reads it."""
    for value, letter in ((1_000_000, "M"), (1000, "k")):
        if number >= value and number % value == 0:
            return f"{number // value}{letter}"
    return str(number)
