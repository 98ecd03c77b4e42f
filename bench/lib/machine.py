"""What was it measured on, and was it quiet?"""

import os
import pathlib
import re

from shell import output

# Part of the last minute in which something waited for a processor.
BUSY_PERCENT = 10


def text(path):
    try:
        return pathlib.Path(path).read_text().strip()
    except OSError:
        return ""


def facts(scratch):
    """Machine, kernel, disk, commit, versions."""
    cpu = re.search(r"^model name\s*: (.*)$", text("/proc/cpuinfo"), re.M)
    flags = re.search(r"^flags\s*: (.*)$", text("/proc/cpuinfo"), re.M)
    memory = re.search(r"MemTotal:\s+(\d+)", text("/proc/meminfo"))
    names = set(flags[1].split()) if flags else set()
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cpu_count": os.cpu_count(),
        "cpu_flags": sorted(names & {"aes", "vaes", "avx2", "avx512f", "vpclmulqdq", "sha_ni"}),
        "memory_mib": int(memory[1]) // 1024 if memory else None,
        "kernel": os.uname().release,
        "disk": disk(scratch),
        "commit": output(["git", "rev-parse", "HEAD"]),
        "dirty": bool(output(["git", "status", "--porcelain", "--untracked-files=no"], "")),
        "fio": output(["fio", "--version"]),
        "rustc": output(["rustc", "--version"]),
    }


def disk(scratch):
    """The filesystem that the peers' disks are files of, and what is below."""
    source = output(["findmnt", "-n", "-o", "SOURCE", "-T", str(scratch)])
    kind = output(["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(scratch)])
    block = pathlib.Path("/sys/class/block") / source.rpartition("/")[2]
    model = text(block / "device/model") or text(block / "device/vendor")
    cache = text(block / "queue/write_cache")
    return ", ".join(part for part in [source, " ".join(kind.split()), model, cache] if part)


def pressure():
    """Percent of the last minute in which something waited for a processor; None if it is not told."""
    found = re.search(r"^some .*avg60=([0-9.]+)", text("/proc/pressure/cpu"), re.M)
    return float(found[1]) if found else None


def stolen():
    """Ticks of the processors: taken away by the host, and all."""
    ticks = [int(word) for word in text("/proc/stat").splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


class Quiet:
    """Was the machine ours? Looked at before, and over the whole run."""

    def __init__(self):
        self.before = stolen()
        self.load = os.getloadavg()
        self.pressure = pressure()

    def complaint(self):
        """What is wrong now, before anything is measured; None if nothing is."""
        if self.pressure is not None and self.pressure > BUSY_PERCENT:
            return (f"the machine is busy: something waited for a processor in {self.pressure:.0f} % of "
                    f"the last minute; results will be noisy (rows are marked)")
        if self.load[0] > (os.cpu_count() or 1):
            return f"the machine is busy: the load is {self.load[0]:.1f}; results will be noisy"
        return None

    def facts(self):
        stolen_now, all_now = stolen()
        part = (stolen_now - self.before[0]) / max(1, all_now - self.before[1])
        return {"load_before": self.load[0], "load_after": os.getloadavg()[0],
                "pressure_before_percent": self.pressure, "stolen_percent": round(part * 100, 1)}
