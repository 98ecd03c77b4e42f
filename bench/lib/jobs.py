"""The table of jobs. A job prepares, untimed, and returns `{metric: value}`; it finds its peer
mounted with nothing cached. Later jobs use what earlier ones left, or make it."""


class Job:
    """One job, and what each of its metrics says."""

    def __init__(self, name, function, metrics, group, commands=()):
        self.name, self.function, self.metrics = name, function, metrics
        self.group, self.commands = group, commands
        # Jobs about growth have a disk of their own and are measured once.
        self.growth = group == "growth"

    def run(self, peer, setup):
        return self.function(peer, setup)


JOBS = {}


def job(metrics, group, commands=(), name=None):
    """Makes a job of a function, under its name."""
    def register(function):
        known = name or function.__name__
        JOBS[known] = Job(known, function, metrics, group, commands)
        return function
    return register


def descriptions():
    """What each metric says."""
    return {metric: text for each in JOBS.values() for metric, text in each.metrics.items()}


def job_of(metric):
    """The job that measures it."""
    return next(each for each in JOBS.values() if metric in each.metrics)
