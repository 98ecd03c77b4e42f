"""Jobs on a source tree, and on many small files: names, attributes and small contents."""

import os
import shutil
import time

from jobs import job
from shell import EXAMPLES, Failure, run, timed

META = os.environ.get("META_BIN", EXAMPLES / "meta")


def need_tree(peer, setup):
    """The unpacked tree, durable."""
    tree = peer.mount / "tree"
    # A name that is only there when all of it is.
    if not tree.is_dir():
        unpacked = peer.mount / "tree.new"
        remove(unpacked, setup)
        unpacked.mkdir()
        run(["tar", "-xf", setup.tree, "-C", unpacked], limit_seconds=setup.limit_seconds)
        unpacked.rename(tree)
    return tree


def remove(path, setup):
    if path.exists():
        run(["rm", "-rf", path], limit_seconds=setup.limit_seconds)


def cold_and_warm(peer, command, names, setup):
    """How long a command takes after a mount, and again."""
    peer.cold()
    # What it finds is not of interest: grep says by its exit that it found nothing.
    words = ["sh", "-c", '"$@" >/dev/null; [ $? -le 1 ]', "sh", *command]
    return {name: timed(words, limit_seconds=setup.limit_seconds) for name in names}


@job({"untar_s": "`tar -x` of a source tree",
      "untar_durable_s": "the same, until unmounted and on the disk"}, "tree", ["tar"])
def untar(peer, setup):
    remove(peer.mount / "tree", setup)
    remove(peer.mount / "tree.new", setup)
    # Read once, so that the disk of the archive is not measured.
    run(["dd", f"if={setup.tree}", "of=/dev/null", "bs=1M"])
    peer.cold()
    unpacked = peer.mount / "tree.new"
    unpacked.mkdir()
    start = time.monotonic()
    run(["tar", "-xf", setup.tree, "-C", unpacked], limit_seconds=setup.limit_seconds)
    seconds = time.monotonic() - start
    peer.unmount_durably()
    durable = time.monotonic() - start
    unpacked.rename(peer.mount / "tree")
    return {"untar_s": seconds, "untar_durable_s": durable}


@job({"cp_a_s": "`cp -a` of the tree within the mount, cold"}, "tree")
def cp_a(peer, setup):
    tree, copy = need_tree(peer, setup), peer.mount / "copy"
    remove(copy, setup)
    peer.cold()
    seconds = timed(["cp", "-a", tree, copy], limit_seconds=setup.limit_seconds)
    remove(copy, setup)
    return {"cp_a_s": seconds}


@job({"ls_lr_cold_s": "`ls -lR` of the tree, cold", "ls_lr_warm_s": "the same again"}, "tree")
def ls_lr(peer, setup):
    return cold_and_warm(peer, ["ls", "-lR", need_tree(peer, setup)],
                         ["ls_lr_cold_s", "ls_lr_warm_s"], setup)


@job({"find_cold_s": "`find` over the tree, cold", "find_warm_s": "the same again"}, "tree", ["find"])
def find(peer, setup):
    return cold_and_warm(peer, ["find", need_tree(peer, setup), "-name", "*.none"],
                         ["find_cold_s", "find_warm_s"], setup)


@job({"grep_r_cold_s": "`grep -r` over the tree, cold", "grep_r_warm_s": "the same again"}, "tree",
     ["grep"])
def grep_r(peer, setup):
    return cold_and_warm(peer, ["grep", "-rc", "no such words", need_tree(peer, setup)],
                         ["grep_r_cold_s", "grep_r_warm_s"], setup)


def need_repository(peer, setup):
    """A repository with the tree, all of it committed."""
    repository, limit = peer.mount / "repository", setup.limit_seconds
    if not (repository / ".git/complete").exists():
        remove(repository, setup)
        repository.mkdir()
        run(["tar", "-xf", setup.tree, "-C", repository], limit_seconds=limit)
        git = ["git", "-C", repository, "-c", "user.name=bench", "-c", "user.email=bench@localhost",
               "-c", "gc.auto=0"]
        run([*git, "init", "-q"], limit_seconds=limit)
        # Whatever the tree ignores: all of it is to be there.
        run([*git, "add", "-A", "-f"], limit_seconds=limit)
        run([*git, "commit", "-q", "-m", "all"], limit_seconds=limit)
        (repository / ".git/complete").touch()
    return repository


# Filesystems whose hard links have inode numbers of their own fail in this.
@job({"git_clone_local_s": "`git clone --local` of a repository with the tree, cold"}, "tree", ["git"])
def git_clone(peer, setup):
    repository, clone = need_repository(peer, setup), peer.mount / "clone"
    remove(clone, setup)
    peer.cold()
    seconds = timed(["git", "clone", "-q", "--local", repository, clone],
                    limit_seconds=setup.limit_seconds)
    remove(clone, setup)
    return {"git_clone_local_s": seconds}


@job({"git_status_cold_s": "`git status` in it, cold", "git_status_warm_s": "the same again"}, "tree",
     ["git"])
def git_status(peer, setup):
    # Without locks the index is not rewritten, and the second run does the work of the first.
    command = ["git", "--no-optional-locks", "-C", need_repository(peer, setup), "status", "--porcelain"]
    return cold_and_warm(peer, command, ["git_status_cold_s", "git_status_warm_s"], setup)


@job({"rm_rf_s": "`rm -rf` of the tree, cold"}, "tree")
def rm_rf(peer, setup):
    tree = need_tree(peer, setup)
    peer.cold()
    return {"rm_rf_s": timed(["rm", "-rf", tree], limit_seconds=setup.limit_seconds)}


def meta(peer, setup, threads, file_bytes):
    """Rates of the program meta: `{operation: count a second}`."""
    directory = peer.mount / "meta"
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    peer.settle()
    answer = run([META, directory, str(threads), str(setup.size.files), str(file_bytes)],
                 limit_seconds=setup.limit_seconds)
    shutil.rmtree(directory)
    rates = dict(line.split() for line in answer.splitlines())
    if set(rates) != {"create", "stat", "unlink"}:
        raise Failure(f"meta said {answer.strip()[:200]}")
    return {name: float(rate) for name, rate in rates.items()}


@job({"create_1k_t2_per_s": "files of 1 KiB created, written and closed by 2 threads"}, "meta")
def create_1k(peer, setup):
    return {"create_1k_t2_per_s": meta(peer, setup, 2, 1024)["create"]}


@job({f"meta_{what}_t{threads}_per_s": f"empty files: {what} by {threads} thread{'s'[:threads - 1]}"
      for threads in (1, 2, 8) for what in ("create", "stat", "unlink")}, "meta")
def mdtest(peer, setup):
    found = {}
    for threads in (1, 2, 8):
        for what, rate in meta(peer, setup, threads, 0).items():
            found[f"meta_{what}_t{threads}_per_s"] = rate
    return found
