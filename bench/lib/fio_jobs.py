"""Jobs of fio (jobs/*.fio), and dd: contents of large files."""

import json

from jobs import job
from shell import ROOT, Failure, run, timed

MIB = 1 << 20
FOLDER = ROOT / "bench/jobs"
# fio writes these itself, before it measures, and removes them.
FRESH = "fresh"
# The file is there; nothing of it is cached.
COLD = "cold"
# It was read just before.
WARM = "warm"
# It is there, whatever is cached: for writing.
READY = "ready"

# Job -> file that it needs, its state, what its metric says. In the order in which they run.
FIO_JOBS = {
    "stream_write": (None, FRESH, "1 MiB sequential writes, final fsync included"),
    "stream_read_cold": ("stream.dat", COLD, "1 MiB sequential reads, cold"),
    "stream_read_warm": ("stream.dat", WARM, "the same again, from the kernel's cache"),
    "rand_read_4k_cold": ("stream.dat", COLD, "4 KiB random reads, one at a time, cold"),
    "rand_read_4k_warm": ("stream.dat", WARM, "the same from the kernel's cache"),
    "rand_read_4k_q16_cold": ("stream.dat", COLD, "4 KiB random reads, 16 at once, cold"),
    "rand_read_4k_direct": ("stream.dat", COLD, "4 KiB random reads, O_DIRECT, one at a time"),
    "rand_read_4k_q16_direct": ("stream.dat", COLD, "4 KiB random reads, O_DIRECT, 16 at once"),
    "rand_read_4k_mmap_cold": ("stream.dat", COLD, "4 KiB random reads of a mapped file, cold"),
    "rand_read_8k_cold": ("stream.dat", COLD, "8 KiB random reads, one at a time, cold"),
    "rand_read_16k_cold": ("stream.dat", COLD, "16 KiB random reads, one at a time, cold"),
    "rand_write_4k": ("random.dat", READY, "4 KiB random overwrites, final fsync included"),
    "rand_write_8k": ("random.dat", READY, "8 KiB random overwrites, final fsync included"),
    "rand_write_16k": ("random.dat", READY, "16 KiB random overwrites, final fsync included"),
    "rand_write_4k_direct": ("random.dat", READY, "4 KiB random overwrites, O_DIRECT, one at a time"),
    "rand_write_4k_q16_direct": ("random.dat", READY, "4 KiB random overwrites, O_DIRECT, 16 at once"),
    "rand_write_4k_mmap": ("random.dat", READY, "4 KiB random overwrites of a mapped file, synced"),
    "rand_mixed_4k": ("random.dat", COLD, "4 KiB, 70 % random reads, 30 % overwrites, final fsync"),
    "rand_mixed_4k_q16_direct": ("random.dat", COLD, "the same, O_DIRECT, 16 at once"),
    "stream_read_fragmented": ("random.dat", COLD, "1 MiB sequential reads of what was overwritten at "
                                                   "random places, cold"),
    "fsync_append_4k": (None, FRESH, "4 KiB appends, each followed by fsync"),
    "fsync_write_4k": (None, FRESH, "4 KiB overwrites, each followed by fsync"),
    "fsync_write_4k_w16": (None, FRESH, "the same by 16 writers, together"),
}


def metric_of(name):
    """The metric of a job of fio."""
    return f"{name}_per_s" if name.startswith("fsync_") else f"{name}_mib_s"


def fio(name, peer, setup):
    """Runs a job file in the mount: MiB a second in both directions together, in the whole time, of
    which a final fsync is a part; or synced writes a second, of all writers."""
    answer = run(["fio", "--output-format=json", f"--directory={peer.mount}", FOLDER / f"{name}.fio"],
                 env=setup.fio_environment(), cwd=setup.scratch, limit_seconds=setup.limit_seconds)
    done = json.loads(answer[answer.index("{"):])["jobs"][0]
    if done["error"]:
        raise Failure(f"fio reports error {done['error']}")
    seconds = done["job_runtime"] / 1000
    if not seconds:
        raise Failure("fio took no time at all: too little work to measure")
    if name.startswith("fsync_"):
        # The time of a group of writers is their sum.
        return done["write"]["iops"]
    return (done["read"]["io_bytes"] + done["write"]["io_bytes"]) / MIB / seconds


def need(filename, peer, setup):
    """A large file of that name; as stream_write writes it."""
    path = peer.mount / filename
    wanted = int(setup.size.stream_mib * MIB)
    if path.exists() and path.stat().st_size == wanted:
        return
    run(["dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={wanted // MIB}", "conv=fsync"],
        limit_seconds=setup.limit_seconds)


def register(name, filename, state, text):
    """A job for a job file."""
    @job({metric_of(name): text}, "fio", ["fio"], name=name)
    def measure(peer, setup):
        if filename:
            need(filename, peer, setup)
        elif name == "stream_write":
            (peer.mount / "stream.dat").unlink(missing_ok=True)
        if state == COLD:
            peer.cold()
        else:
            peer.settle()
        if state == WARM:
            run(["dd", f"if={peer.mount / filename}", "of=/dev/null", "bs=1M"])
        return {metric_of(name): fio(name, peer, setup)}


for known, (its_file, its_state, its_text) in FIO_JOBS.items():
    register(known, its_file, its_state, its_text)


@job({"dd_512_mib_s": "`dd bs=512 conv=fsync`"}, "fio", ["dd"])
def dd_512(peer, setup):
    path = peer.mount / "dd.dat"
    path.unlink(missing_ok=True)
    peer.settle()
    seconds = timed(["dd", "if=/dev/zero", f"of={path}", "bs=512", "conv=fsync",
                     f"count={setup.size.dd_mib * MIB // 512}"], limit_seconds=setup.limit_seconds)
    path.unlink()
    return {"dd_512_mib_s": setup.size.dd_mib / seconds}
