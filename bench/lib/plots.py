"""Plots (SVG), by gnuplot; without it there are none, and the run says so."""

import shutil

from growth import SERIES, label
from jobs import descriptions
from peers import KINDS
from shell import Failure, run

COLOURS = {"ext4": "#666666", "passthrough": "#999999", "fscrypt": "#8c6d31", "gocryptfs": "#d95f02",
           "securefs": "#7570b3", "encfs": "#e7298a", "cryfs": "#66a61e", "atrest-gcm": "#1b6ca8",
           "atrest-xts": "#56a0d3", "atrest-stub": "#a6cee3"}
REFERENCES = ["ext4", "passthrough", "gocryptfs", "fscrypt"]


def draw(directory, results, record):
    """Draws what there are numbers for; returns the names of the files."""
    if not shutil.which("gnuplot"):
        return []
    plots = {"ratios.svg": ratios(results, record)}
    for name, (title, axis, points) in SERIES.items():
        plots[f"{name}.svg"] = growth(results, record, title, axis, points)
    drawn = []
    for name, script in plots.items():
        if script is None:
            continue
        try:
            (directory / "plot.gnuplot").write_text(script)
            run(["gnuplot", "plot.gnuplot"], limit_seconds=60, cwd=directory,
                env={"LC_ALL": "C", "PATH": "/usr/bin:/bin", "OUTPUT": name})
        except Failure as error:
            print(f"warning: no {name}: {error}", flush=True)
        else:
            drawn.append(name)
    (directory / "plot.gnuplot").unlink(missing_ok=True)
    return drawn


def quoted(text):
    return '"' + text.replace("\\", "").replace('"', "").replace("_", " ") + '"'


def header(width, height):
    return (f"set terminal svg size {width},{height} background '#ffffff' font 'sans-serif,12'\n"
            "set output system('echo $OUTPUT')\nset grid\n")


def ratios(results, record):
    """How many times as fast as each reference atrest is: bars on a logarithmic axis."""
    references = [name for name in REFERENCES if name in record["peers"]]
    rows = []
    for metric in descriptions():
        found = [results.ratio(metric, "atrest-gcm", name) for name in references]
        if any(found) and not metric.startswith("growth_"):
            rows.append((metric, [f"{each['median']:.4g}" if each and each["median"] > 0 else "NaN"
                                  for each in found]))
    if not rows:
        return None
    data = "\n".join(" ".join([quoted(metric), *values]) for metric, values in rows)
    bars = ", ".join(f"$data using {i + 2}:xtic(1) title {quoted(KINDS[name].title)} lc rgb '{COLOURS[name]}'"
                     for i, name in enumerate(references))
    return (f"$data << EOD\n{data}\nEOD\n" + header(max(640, 200 + 45 * len(rows)), 560) +
            "set title 'atrest: times as fast as the others'\nset logscale y 2\nset style data histograms\n"
            "set style histogram clustered gap 1\nset style fill solid\nset xtics rotate by -60\n"
            "set boxwidth 0.9\nset key top left\n"
            # What is below this line is lost.
            "set arrow from graph 0, first 1 to graph 1, first 1 nohead lw 2\n"
            f"plot {bars}\n")


def growth(results, record, title, axis, points):
    """What an operation costs as a volume grows: a line for each peer, both axes logarithmic."""
    blocks, lines = [], []
    for peer in record["peers"]:
        found = [(x, results.median(metric, peer)) for x, metric in points]
        found = [(x, y) for x, y in found if y]
        if len(found) > 1:
            name = peer.replace("-", "_")
            blocks.append(f"${name} << EOD\n" + "\n".join(f"{x} {y:.6g}" for x, y in found) + "\nEOD\n")
            lines.append(f"${name} using 1:2 with linespoints lw 2 pt 7 lc rgb '{COLOURS[peer]}' "
                         f"title {quoted(KINDS[peer].title)}")
    if not lines:
        return None
    ticks = ", ".join(f"{quoted(label(x))} {x}" for x, _ in points)
    return ("".join(blocks) + header(640, 420) + f"set title {quoted(title)}\nset logscale xy\n"
            f"set xtics ({ticks})\nset xlabel {quoted(axis)}\nset key outside right top\n"
            f"set yrange [*:*]\nplot {', '.join(lines)}\n")
