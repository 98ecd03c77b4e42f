"""The table of jobs. A job prepares, untimed, and returns `{metric: value}`; it finds its peer
mounted with nothing cached. Later jobs use what earlier ones left, or make it."""


class Job:
    """One job, what each of its metrics says, and which commands it needs; `peers` if it is not
    for all."""

    def __init__(self, name, function, metrics, group, commands, peers):
        self.name, self.function, self.metrics = name, function, metrics
        self.group, self.commands, self.peers = group, commands, peers
        # Jobs about growth have a disk of their own and are measured once.
        self.growth = group == "growth"

    def run(self, peer, setup):
        """Its values, one part after another: what comes after a failure is missing, not all."""
        done = self.function(peer, setup)
        return [done] if isinstance(done, dict) else done


JOBS = {}


def job(metrics, group, commands=(), name=None, peers=None):
    """Makes a job of a function, under its name."""
    def register(function):
        known = name or function.__name__
        JOBS[known] = Job(known, function, metrics, group, commands, peers)
        return function
    return register


def descriptions():
    """What each metric says."""
    return {metric: text for each in JOBS.values() for metric, text in each.metrics.items()}


def job_of(metric):
    """The job that measures it."""
    return next(each for each in JOBS.values() if metric in each.metrics)
