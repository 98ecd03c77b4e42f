"""What is to be reached: ratios, as times as fast, of medians of pairs."""

from fio_jobs import FIO_JOBS, metric_of


class Goal:
    """A metric of atrest against a reference."""

    def __init__(self, title, metric, reference, at_least, peer="atrest-gcm"):
        self.title, self.metric, self.reference = title, metric, reference
        self.at_least, self.peer = at_least, peer


def rows(title, metric, **at_least):
    """One row of the table: a metric against one or two references."""
    return [Goal(title, metric, reference, value) for reference, value in at_least.items()]


GOALS = [
    *rows("streaming write, final `fsync` included", "stream_write_mib_s", ext4=0.9, gocryptfs=1.5),
    *rows("streaming read, cold", "stream_read_cold_mib_s", ext4=0.9, gocryptfs=1.5),
    *rows("4 KiB random read, cold, 16 at once", "rand_read_4k_q16_cold_mib_s", passthrough=0.9,
          gocryptfs=1.5),
    *rows("4 KiB random write, final `fsync` included", "rand_write_4k_mib_s", ext4=1.0, gocryptfs=2),
    *rows("`fsync` for each 4 KiB overwritten", "fsync_write_4k_per_s", ext4=1.0),
    *rows("`fsync` for each 4 KiB overwritten, 16 writers", "fsync_write_4k_w16_per_s", ext4=1.0),
    *rows("`dd bs=512`", "dd_512_mib_s", gocryptfs=10),
    *rows("untar", "untar_s", passthrough=1.0, gocryptfs=3),
    *rows("`cp -a`", "cp_a_s", passthrough=1.0, gocryptfs=3),
    *rows("`ls -lR`, cold", "ls_lr_cold_s", ext4=1.0, gocryptfs=4),
    *rows("`find`, cold", "find_cold_s", ext4=1.0, gocryptfs=4),
    *rows("`rm -rf`", "rm_rf_s", passthrough=1.0, gocryptfs=3),
    *rows("create, write 1 KiB, close; 2 threads", "create_1k_t2_per_s", gocryptfs=4),
    *rows("SQLite, a row a transaction", "sqlite_per_s", ext4=0.9),
    *rows("pgbench", "pgbench_per_s", ext4=0.8),
    *rows("`cargo build`", "cargo_build_s", ext4=0.95),
]
GOALS += [Goal(f"XTS: {text}", metric_of(name), "fscrypt", 0.7, peer="atrest-xts")
          for name, (_, _, text) in FIO_JOBS.items()]

# What is bounded: title, metric, at most.
LIMITS = [
    ("memory of the daemon at 10 million files", "growth_files_10000000_rss_mib", 256),
    ("mounting a volume of 10 million files", "growth_files_10000000_mount_ms", 2000),
]

# What `bench/run` measures unless it is told: the jobs of the table.
GOAL_JOBS = ["stream_write", "stream_read_cold", "rand_read_4k_q16_cold", "rand_write_4k",
             "fsync_write_4k", "fsync_write_4k_w16", "dd_512", "untar", "cp_a", "ls_lr", "find",
             "rm_rf", "create_1k", "sqlite", "pgbench", "cargo_build"]


def judge(results, goal):
    """`(ratio, "met" or "lost")` of a goal; None where one of the two was not measured."""
    found = results.ratio(goal.metric, goal.peer, goal.reference)
    if found is None:
        return None
    return found, "met" if found["median"] >= goal.at_least else "lost"
