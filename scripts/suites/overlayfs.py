"""Random operations on an overlay and on a plain copy of what it shows, which must stay the same.

overlayfs.py make LOWER MODEL                      fills both with the same tree
overlayfs.py run MERGED MODEL SEED OPERATIONS      the same operations on both, compared
overlayfs.py compare MERGED MODEL                  e.g. after a remount
overlayfs.py upper UPPER                           wants whiteouts and opaque directories in it
"""

import errno
import os
import pathlib
import random
import shutil
import stat
import sys

NAMES = [f"n{i}" for i in range(6)]
# What the random operations leave alone, so that a whiteout and an opaque directory stay.
KEPT = ["k0", "k1"]
stale = 0


def fresh(action, *arguments):
    """Does something on the overlay, again if the kernel calls an inode stale.

    Of a file with several names overlayfs asks the upper filesystem about the name by which it saw
    it first, also when that was removed; of FUSE it then believes that the file is gone (Linux
    6.18), until it has forgotten the inode."""
    global stale
    try:
        return action(*arguments)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    stale += 1
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")
    return action(*arguments)


def make(root):
    rng = random.Random(1)
    for top in NAMES + KEPT:
        for middle in NAMES[:4]:
            directory = root / top / middle
            directory.mkdir(parents=True)
            for name in NAMES[:3]:
                (directory / name).write_bytes(rng.randbytes(rng.choice([0, 10, 5000, 70000])))
            (directory / "link").symlink_to("n0")


def xattrs(path):
    return {name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")}


def describe(path):
    about = os.lstat(path)
    what = [oct(about.st_mode), about.st_uid, about.st_gid]
    if stat.S_ISLNK(about.st_mode):
        return what + [os.readlink(path)]
    if stat.S_ISREG(about.st_mode):
        what.append(path.read_bytes())
    return what + [xattrs(path)]


def tree(root):
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = pathlib.Path(directory, name)
            found[str(path.relative_to(root))] = describe(path)
    return found


def compare(merged, model, when):
    here, there = fresh(tree, merged), tree(model)
    wrong = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    for name in wrong[:10]:
        print(f"{name}: overlay {str(here.get(name))[:120]}, model {str(there.get(name))[:120]}")
    if wrong:
        sys.exit(f"DEFECT: {len(wrong)} entries differ, {when}")


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def write(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


class Operations:
    """Draws one operation, then does it to one root after the other."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def path(self):
        depth = self.random.choices([1, 2, 3, 4], [1, 6, 9, 4])[0]
        return pathlib.PurePath(*self.random.choices(NAMES, k=depth))

    def draw(self):
        kind = self.random.choice(["create", "create", "mkdir", "replace", "remove", "remove",
                                   "rename", "rename", "write", "write", "truncate", "symlink",
                                   "link", "chmod", "chown", "xattr", "fifo", "rmdir"])
        return (kind, self.path(), self.path(), self.random.randrange(80000),
                self.random.randbytes(self.random.choice([1, 100, 9000])))

    @staticmethod
    def apply(root, operation):
        kind, name, other, number, data = operation
        path, second = root / name, root / other
        actions = {
            "create": lambda: (path.parent.mkdir(parents=True, exist_ok=True),
                               path.write_bytes(data)),
            "mkdir": lambda: path.mkdir(parents=True),
            # A directory that is removed and made again hides the one below.
            "replace": lambda: (remove(path), path.mkdir()),
            "remove": lambda: remove(path),
            "rmdir": path.rmdir,
            "rename": lambda: os.rename(path, second),
            "write": lambda: write(path, number, data),
            "truncate": lambda: os.truncate(path, number),
            "symlink": lambda: os.symlink(other, path),
            "link": lambda: os.link(path, second, follow_symlinks=False),
            "chmod": lambda: os.chmod(path, 0o700 + number % 64),
            "chown": lambda: os.chown(path, number, number % 7, follow_symlinks=False),
            "xattr": lambda: os.setxattr(path, "user.a", data[:50]),
            "fifo": lambda: os.mkfifo(path),
        }
        try:
            fresh(actions[kind])
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"


def uses_fifo(root, operation):
    return operation[0] in ("create", "write", "truncate") and (root / operation[1]).is_fifo()


def run(merged, model, seed, count):
    operations, done = Operations(seed), {}
    for root in (merged, model):
        for kind, name in (("remove", "k0/n0/n0"), ("replace", "k1/n0")):
            operations.apply(root, (kind, name, name, 0, b""))
    for number in range(count):
        operation = operations.draw()
        if uses_fifo(model, operation):
            continue
        result = operations.apply(merged, operation)
        # Without redirects, overlayfs does not move directories of the lower layer.
        if result == "EXDEV":
            continue
        expected = operations.apply(model, operation)
        if result != expected:
            sys.exit(f"DEFECT: {operation[:4]}: {result} instead of {expected}, seed {seed}")
        done[operation[0], result] = done.get((operation[0], result), 0) + 1
        if number % 100 == 0:
            compare(merged, model, f"after {number} operations, seed {seed}")
    compare(merged, model, f"after all operations, seed {seed}")
    print(f"{count} operations:", ", ".join(
        f"{kind} {n}" for (kind, result), n in sorted(done.items()) if result == "done"))
    if stale:
        print(f"{stale} times the kernel called a file stale that had lost one of its names")


def upper(root):
    whiteouts = opaque = 0
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            about = os.lstat(path)
            whiteouts += stat.S_ISCHR(about.st_mode) and about.st_rdev == 0
            opaque += "trusted.overlay.opaque" in os.listxattr(path, follow_symlinks=False)
    print(f"in the upper directory: {whiteouts} whiteouts, {opaque} opaque directories")
    if not whiteouts or not opaque:
        sys.exit("DEFECT: one of them does not exist: this tests nothing")


def main():
    paths = [pathlib.Path(name) for name in sys.argv[2:4]]
    match sys.argv[1]:
        case "make":
            for root in paths:
                make(root)
        case "run":
            run(*paths, int(sys.argv[4]), int(sys.argv[5]))
        case "compare":
            compare(*paths, "after a remount")
        case "upper":
            upper(paths[0])


main()
