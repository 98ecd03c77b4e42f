"""Running commands: what fails says what it was, and what takes too long is ended."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ATREST = pathlib.Path(os.environ.get("ATREST_BIN", ROOT / "target/release/atrest"))
EXAMPLES = ROOT / "target/release/examples"


class Failure(Exception):
    """Something that was measured did not work; the message is for the reader of the table."""


class TooSlow(Failure):
    """A command was ended because it took too long."""


def run(command, limit_seconds=600, **more):
    """Runs a command to its end and returns its output."""
    words = [str(word) for word in command]
    more.setdefault("stdin", subprocess.DEVNULL)
    process = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, errors="replace",
                               stderr=subprocess.STDOUT, start_new_session=True, **more)
    try:
        answer, _ = process.communicate(timeout=limit_seconds)
    except BaseException as error:
        # Of its whole session: nothing may go on writing to a mount that is to be unmounted.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise TooSlow(f"{words[0].rpartition('/')[2]}: more than {limit_seconds:g} s") from None
        raise
    if process.returncode:
        lines = [line for line in answer.splitlines() if line.strip()]
        reason = lines[-1][:300] if lines else "without a word"
        raise Failure(f"{' '.join(words)[:200]} failed ({process.returncode}): {reason}")
    return answer


def timed(command, **more):
    """How many seconds a command takes."""
    start = time.monotonic()
    run(command, **more)
    return time.monotonic() - start


def output(command, default="unknown"):
    """The output of a command that may be missing."""
    try:
        return run(command, limit_seconds=60, cwd=ROOT).strip() or default
    except (OSError, Failure):
        return default


def missing(commands):
    """Which of the commands are not installed."""
    return [command for command in commands if not shutil.which(command)]
