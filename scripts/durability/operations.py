"""The operations of the writers: what they do to a model, one atomic step after the other.

An operation is a list: its name, the path, arguments; `do` of writer.py carries the same list out.
"""

import errno

from model import PAGE, Node, Refused, contents

# Those that return only when everything before them, of all writers, is durable.
SYNCS = {"fsync", "msync"}


def steps(tree, operation):
    """Applies an operation to a tree; yields the paths that changed after each atomic step.

    Raises Refused before the first step if the operation has to fail.
    """
    name, *arguments = operation
    yield from globals()["do_" + name](tree, *arguments)


def names(tree, node):
    """All that shows a change of this inode."""
    return tree.names_of(node)


def parent(path):
    return path.rpartition("/")[0]


def do_mkdir(tree, path, mode):
    if tree.find(path) is not None:
        raise Refused(errno.EEXIST)
    tree.add(path, Node("d", mode))
    yield [path, parent(path)]


def do_rmdir(tree, path):
    node = tree.at(path)
    if node.kind != "d":
        raise Refused(errno.ENOTDIR)
    if tree.below(path):
        raise Refused(errno.ENOTEMPTY)
    tree.drop(path)
    yield [path, parent(path)]


def do_symlink(tree, path, target):
    if tree.find(path) is not None:
        raise Refused(errno.EEXIST)
    tree.add(path, Node("l", 0o777, target=target))
    yield [path, parent(path)]


def do_link(tree, old, new):
    node = tree.at(old)
    if tree.find(new) is not None:
        raise Refused(errno.EEXIST)
    if node.kind == "d":
        raise Refused(errno.EPERM)
    node.links += 1
    tree.add(new, node)
    yield [*names(tree, node), parent(new)]


def do_unlink(tree, path):
    node = tree.at(path)
    if node.kind == "d":
        raise Refused(errno.EISDIR)
    tree.drop(path)
    yield [path, parent(path), *names(tree, node)]


def do_unlink_open(tree, path):
    tree.file(path)
    yield from do_unlink(tree, path)


NOREPLACE, EXCHANGE = 1, 2


def do_rename(tree, old, new, flags):
    node, other = tree.at(old), tree.find(new)
    check_rename(tree, old, new, flags, node, other)
    if node is other:
        yield [old, new]
        return
    if flags == EXCHANGE:
        changed = tree.move(old, "\0")
        changed += tree.move(new, old) + tree.move("\0", new)
        tree.touch_parent(old, new)
        yield [*changed, parent(old), parent(new)]
        return
    changed = []
    if other is not None:
        tree.drop(new)
        changed = names(tree, other)
    changed += tree.move(old, new)
    yield [*changed, parent(old), parent(new)]


def check_rename(tree, old, new, flags, node, other):
    if flags == NOREPLACE and other is not None:
        raise Refused(errno.EEXIST)
    if new.startswith(old + "/"):
        raise Refused(errno.EINVAL)
    if old.startswith(new + "/"):
        raise Refused(errno.EINVAL if flags == EXCHANGE else errno.ENOTEMPTY)
    if flags == EXCHANGE:
        if other is None:
            raise Refused(errno.ENOENT)
        return
    if other is None or other is node:
        return
    if node.kind == "d" and other.kind != "d":
        raise Refused(errno.ENOTDIR)
    if node.kind != "d" and other.kind == "d":
        raise Refused(errno.EISDIR)
    if other.kind == "d" and tree.below(new):
        raise Refused(errno.ENOTEMPTY)


def do_setxattr(tree, path, name, length, tag):
    node = tree.at(path)
    if node.kind == "l":
        raise Refused(errno.EPERM)
    node.xattrs[name] = contents(tag, length)
    yield names(tree, node)


def do_removexattr(tree, path, name):
    node = tree.at(path)
    if node.kind == "l":
        raise Refused(errno.EPERM)
    if name not in node.xattrs:
        raise Refused(errno.ENODATA)
    del node.xattrs[name]
    yield names(tree, node)


def do_chmod(tree, path, mode):
    node = tree.at(path)
    if node.kind == "l":
        raise Refused(errno.ELOOP)
    node.mode = mode
    yield names(tree, node)


def do_utime(tree, path, nanoseconds):
    node = tree.at(path)
    node.mtime = nanoseconds
    yield names(tree, node)


def do_truncate(tree, path, size):
    node = tree.file(path)
    if size < len(node.data) and size % PAGE:
        # Zeroed to the end of the page first, then cut: see the manual on what takes steps.
        end = min(len(node.data), (size // PAGE + 1) * PAGE)
        node.put(size, bytes(end - size))
        yield names(tree, node)
    node.resize(size)
    yield names(tree, node)


def do_punch(tree, path, offset, length):
    node = tree.file(path)
    length, node.mtime = min(length, len(node.data) - offset), None
    if length > 0:
        # Whole pages; any of them may be done first.
        node.put_pending(offset, bytes(length))
    yield names(tree, node)
    node.flush()
    yield names(tree, node)


def opened(tree, path):
    """A file for writing, made if it is missing."""
    node = tree.find(path)
    if node is None:
        node = Node("f", 0o644)
        tree.add(path, node)
        yield [path, parent(path)]
    elif node.kind != "f":
        raise Refused(errno.ELOOP if node.kind == "l" else errno.EISDIR)


def do_put(tree, path, length, tag):
    """open(O_TRUNC), write, close."""
    yield from opened(tree, path)
    node = tree.nodes[path]
    node.resize(0)
    yield names(tree, node)
    node.put_pending(0, contents(tag, length))
    yield names(tree, node)
    node.flush()
    yield names(tree, node)


def do_direct(tree, path, offset, length, tag):
    """One write with O_DIRECT of at most 1 MiB: as a whole or not at all."""
    yield from opened(tree, path)
    node = tree.nodes[path]
    node.put(offset, contents(tag, length))
    yield names(tree, node)


def do_direct_in_parts(tree, path, offset, length, tag):
    """The same on a full disk: pages of it are there."""
    yield from opened(tree, path)
    node = tree.nodes[path]
    node.put_pending(offset, contents(tag, length))
    yield names(tree, node)


def do_append(tree, path, length, tag):
    """Through the page cache, on a handle that stays open."""
    yield from opened(tree, path)
    node = tree.nodes[path]
    node.put_pending(len(node.data), contents(tag, length))
    yield names(tree, node)


def do_map(tree, path, changes):
    """Whole pages through a shared mapping that stays."""
    node = tree.file(path)
    for page, tag in changes:
        node.put_pending(page * PAGE, contents(tag, PAGE))
    yield names(tree, node)


def do_msync(tree, path):
    yield from do_flush(tree, path)


def do_flush(tree, path):
    """close(2), of the handle or the mapping that stayed open."""
    node = tree.file(path)
    node.flush()
    yield names(tree, node)


def do_fsync(tree, path):
    node = tree.at(path)
    if node.kind == "l":
        raise Refused(errno.ELOOP)
    node.flush()
    yield names(tree, node)
