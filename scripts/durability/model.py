"""What a writer's directory must look like after some of its operations, and what it looks like.

A `Tree` is the expected state of one writer's directory. `steps` applies an operation to it and
yields after every part of it that is atomic on its own: a crash shows the state at one of these
points. Data that the kernel may still hold back (written through the page cache and not yet
flushed by fsync, msync or close) is *pending*: each byte of such a page is any of those that were
written there since the last flush, or what was there before.
"""

import errno
import os
import random
import stat

PAGE = 4096


def contents(tag, length):
    """What is written under a tag: the writer and the verifier compute it, nobody stores it."""
    return random.Random(tag).randbytes(length)


class Refused(Exception):
    """The operation fails with this errno and changes nothing."""

    def __init__(self, number):
        super().__init__(errno.errorcode[number])
        self.number = number


class Node:
    """An inode. `mtime` is None where the kernel's clock decides."""

    def __init__(self, kind, mode, data=b"", target=None, mtime=None):
        self.kind, self.mode, self.target, self.mtime = kind, mode, target, mtime
        self.data, self.xattrs, self.links = bytearray(data), {}, 1
        self.pending, self.sizes = {}, set()

    def page(self, index):
        return bytes(self.data[index * PAGE:(index + 1) * PAGE]).ljust(PAGE, b"\0")

    def put(self, offset, data):
        """Bytes that have reached the daemon."""
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:offset + len(data)] = data
        self.mtime = None

    def put_pending(self, offset, data):
        """Bytes that the kernel may still hold back."""
        self.sizes.update([len(self.data), max(len(self.data), offset + len(data))])
        first = min(offset, len(self.data)) // PAGE
        for index in range(first, (offset + len(data) + PAGE - 1) // PAGE):
            self.pending.setdefault(index, []).append(self.page(index))
        self.put(offset, data)

    def flush(self):
        self.pending, self.sizes = {}, set()

    def resize(self, size):
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data.extend(bytes(size - len(self.data)))
        self.pending = {i: p for i, p in self.pending.items() if i * PAGE < size}
        self.sizes, self.mtime = set(), None

    def difference(self, entry):
        """Why an entry on the mount is not this inode, or None."""
        if entry.kind != self.kind:
            return f"is a {entry.kind}, not a {self.kind}"
        if self.kind != "l" and entry.mode != self.mode:
            return f"has mode {entry.mode:o}, not {self.mode:o}"
        if self.kind == "l":
            return None if entry.target == self.target else f"leads to {entry.target}, not {self.target}"
        if entry.xattrs != self.xattrs:
            return f"has attributes {describe(entry.xattrs)}, not {describe(self.xattrs)}"
        if self.mtime is not None and entry.mtime != self.mtime:
            return f"has mtime {entry.mtime}, not {self.mtime}"
        if self.kind == "d":
            return None
        if entry.links != self.links:
            return f"has {entry.links} links, not {self.links}"
        return self.difference_of_data(entry.data)

    def difference_of_data(self, data):
        if data == self.data:
            return None
        if not self.pending and not self.sizes:
            if len(data) != len(self.data):
                return f"has {len(data)} bytes, not {len(self.data)}"
            at = next(i for i, (a, b) in enumerate(zip(data, self.data)) if a != b)
            return f"has other bytes from {at} on, in page {at // PAGE}"
        sizes = self.sizes or {len(self.data)}
        whole_pages = min(sizes) <= len(data) <= max(sizes) and len(data) % PAGE == 0
        if len(data) not in sizes and not whole_pages:
            return f"has {len(data)} bytes, not one of {sorted(sizes)}"
        for index in range((len(data) + PAGE - 1) // PAGE):
            found = data[index * PAGE:(index + 1) * PAGE]
            versions = [self.page(index), *self.pending.get(index, [])]
            if any(version.startswith(found) for version in versions):
                continue
            if index not in self.pending or not mixed(found, versions):
                return f"page {index} is none of its {len(versions)} versions, nor a mixture"
        return None


def mixed(found, versions):
    """Written back while it was being written: every byte is that of one of the versions."""
    return all(byte in choices for byte, choices in zip(found, zip(*versions)))


def describe(xattrs):
    return {name: value[:16].hex() for name, value in sorted(xattrs.items())}


class Entry:
    """What is on the mount at one path."""

    def __init__(self, path):
        info = os.lstat(path)
        self.inode, self.links, self.mtime = info.st_ino, info.st_nlink, info.st_mtime_ns
        self.mode = stat.S_IMODE(info.st_mode)
        self.kind = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}.get(
            stat.S_IFMT(info.st_mode), "?")
        self.target = os.readlink(path) if self.kind == "l" else None
        self.xattrs, self.data = {}, b""
        if self.kind in "fd":
            self.xattrs = {name: os.getxattr(path, name, follow_symlinks=False)
                           for name in os.listxattr(path, follow_symlinks=False)
                           if name.startswith("user.")}
        if self.kind == "f":
            with open(path, "rb") as file:
                self.data = file.read()
            if len(self.data) != info.st_size:
                raise OSError(errno.EIO, f"{info.st_size} bytes by stat, {len(self.data)} by read", path)


def snapshot(root):
    """path -> Entry of everything below a directory; the directory itself is ''."""
    found, todo = {"": Entry(root)}, [""]
    while todo:
        directory = todo.pop()
        for name in os.listdir(os.path.join(root, directory)):
            path = f"{directory}/{name}" if directory else name
            found[path] = Entry(os.path.join(root, path))
            if found[path].kind == "d":
                todo.append(path)
    return found


class Tree:
    """path -> Node; '' is the writer's directory."""

    def __init__(self, entries):
        self.nodes, by_inode = {}, {}
        for path, entry in entries.items():
            node = by_inode.get(entry.inode)
            if node is None:
                node = Node(entry.kind, entry.mode, entry.data, entry.target, entry.mtime)
                node.xattrs, node.links = dict(entry.xattrs), 0
                by_inode[entry.inode] = node
            node.links += 1
            self.nodes[path] = node

    def at(self, path):
        """The node of a path. Raises Refused as the kernel's walk would."""
        parent = path.rpartition("/")[0]
        while parent:
            node = self.nodes.get(parent)
            if node is not None and node.kind == "l":
                raise Refused(errno.ENOENT)  # Links of the writers lead nowhere.
            if node is not None and node.kind != "d":
                raise Refused(errno.ENOTDIR)
            parent = parent.rpartition("/")[0]
        if path not in self.nodes:
            raise Refused(errno.ENOENT)
        return self.nodes[path]

    def find(self, path):
        """As `at`, but None where only the last component is missing."""
        if path:
            parent = self.at(path.rpartition("/")[0])
            if parent.kind == "l":
                raise Refused(errno.ENOENT)
            if parent.kind != "d":
                raise Refused(errno.ENOTDIR)
        return self.nodes.get(path)

    def file(self, path):
        """A regular file, opened without following links."""
        node = self.at(path)
        if node.kind != "f":
            raise Refused(errno.ELOOP if node.kind == "l" else errno.EISDIR)
        return node

    def below(self, path):
        return [other for other in self.nodes if other.startswith(path + "/")]

    def names_of(self, node):
        return [path for path, other in self.nodes.items() if other is node]

    def touch_parent(self, *paths):
        for path in paths:
            parent = self.nodes.get(path.rpartition("/")[0])
            if parent is not None:
                parent.mtime = None

    def add(self, path, node):
        self.nodes[path] = node
        self.touch_parent(path)

    def drop(self, path):
        self.nodes.pop(path).links -= 1
        self.touch_parent(path)

    def move(self, old, new):
        """The subtree as well. Returns every path that changed."""
        changed = []
        for path in [old, *self.below(old)]:
            target = new + path[len(old):]
            self.nodes[target] = self.nodes.pop(path)
            changed += [path, target]
        self.touch_parent(old, new)
        return changed

    def differences(self, entries, paths=None):
        """path -> why, for those paths (default: all) that are not as expected."""
        found = {}
        for path in paths if paths is not None else {*self.nodes, *entries}:
            node, entry = self.nodes.get(path), entries.get(path)
            if node is None and entry is None:
                continue
            if node is None:
                found[path] = "should not exist"
            elif entry is None:
                found[path] = "is missing"
            elif reason := node.difference(entry):
                found[path] = reason
        return found

    def torn_links(self, entries):
        """Names of one inode that are two on the mount, or the reverse."""
        inodes = {}
        for path, node in self.nodes.items():
            if node.kind == "f":
                inodes.setdefault(entries[path].inode, set()).add(id(node))
                inodes.setdefault(id(node), set()).add(entries[path].inode)
        return any(len(others) > 1 for others in inodes.values())
