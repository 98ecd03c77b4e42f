"""The markers of the plaintext suite: plants them in a mount, and searches a directory for them.

plaintext.py plant MOUNT | prove MOUNT SCRATCH | search DIRECTORY | remove MOUNT
"""

import base64
import os
import pathlib
import shutil
import stat
import struct
import subprocess
import sys

TEXT = b"Marker contents: wherever this is read, nothing is secret. 0123456789"
INLINE = b"A small file's marker, stored inline."
NAME = "marker-name-of-a-file-a7f3"
DIRECTORY = "marker-name-of-a-directory-b8e4"
TARGET = "marker/target/of/a/symlink-c9d5"
XATTR_NAME = "user.marker-xattr-name-d0c6"
XATTR_VALUE = b"marker-xattr-value-e1b7"
LONG_NAME = "marker-long-name-f2a8-" + "z" * 220
SIZE = 7777777
SPARSE_SIZE = 33333333333
OWNER, GROUP = 123456, 654321
TIME = 1111111111
# Of each kind of marker, this many files: a short integer may occur by chance, but not this often.
COPIES = 300
CHUNK = 8 << 20


def encodings(text):
    """Every form in which bytes may hide: (form, bytes to look for)."""
    forms = [("raw", text), ("hex", text.hex().encode()), ("HEX", text.hex().upper().encode()),
             ("UTF-16-LE", text.decode().encode("utf-16-le")),
             ("UTF-16-BE", text.decode().encode("utf-16-be")), ("reversed", text[::-1])]
    for before in range(3):
        # Characters that also depend on neighbouring bytes are cut off.
        encoded = base64.b64encode(b"\0" * before + text + b"\0" * 3)
        first = -(-before * 8 // 6)
        last = (before + len(text)) * 8 // 6
        forms.append((f"base64 at {before}", encoded[first:last]))
        forms.append((f"base64url at {before}", encoded.translate(bytes.maketrans(b"+/", b"-_"))
                      [first:last]))
    return forms


def patterns():
    """(what, form, bytes, how many occurrences are chance)."""
    texts = {"contents": TEXT, "inline contents": INLINE, "name": NAME.encode(),
             "directory name": DIRECTORY.encode(), "symlink target": TARGET.encode(),
             "xattr name": XATTR_NAME.encode()[5:], "xattr value": XATTR_VALUE,
             "long name": LONG_NAME.encode()[:64]}
    for what, text in texts.items():
        for form, wanted in encodings(text):
            yield what, form, wanted, 0
    for what, number in [("size", SIZE), ("sparse size", SPARSE_SIZE), ("mtime", TIME)]:
        yield what, "64 bit little-endian", struct.pack("<Q", number), 0
        yield what, "64 bit big-endian", struct.pack(">Q", number), 0
    for what, number in [("owner", OWNER), ("group", GROUP)]:
        yield what, "32 bit little-endian", struct.pack("<I", number), COPIES // 10
        yield what, "32 bit big-endian", struct.pack(">I", number), COPIES // 10
    for what, number in [("size", SIZE), ("owner", OWNER), ("mtime", TIME)]:
        yield what, "decimal", str(number).encode(), 3


def plant(mount):
    top = mount / DIRECTORY
    top.mkdir()
    (top / NAME).write_bytes(TEXT * 20000)
    (top / LONG_NAME).write_bytes(INLINE)
    (top / "link").symlink_to(TARGET)
    for index in range(COPIES):
        path = top / f"{NAME}.{index}"
        path.write_bytes(INLINE * (index % 100))
        if os.geteuid() == 0:
            os.chown(path, OWNER, GROUP)
        try:
            os.setxattr(path, XATTR_NAME, XATTR_VALUE)
        except OSError as error:
            sys.exit(f"setxattr: {error}")
        os.utime(path, (TIME, TIME))
    for index in range(10):
        with open(top / f"size.{index}", "wb") as file:
            file.write(TEXT)
            file.truncate(SIZE)
    with open(top / "sparse", "wb") as file:
        file.truncate(SPARSE_SIZE)
        os.fsync(file.fileno())


def files(directory):
    """Every file's bytes below a directory, in chunks that overlap by the longest pattern."""
    overlap = max(len(wanted) for _, _, wanted, _ in patterns())
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and not p.is_symlink()):
        with open(path, "rb") as file:
            tail, end = b"", path.stat().st_size
            while file.tell() < end:
                # Segments are sparse: holes are skipped.
                try:
                    data = os.lseek(file.fileno(), file.tell(), os.SEEK_DATA)
                except OSError:
                    break
                if data > file.tell():
                    tail = b""
                file.seek(data)
                block = file.read(CHUNK)
                if not block:
                    break
                yield path, tail, block
                tail = (tail + block)[-(overlap - 1):]


def count_in(directory):
    """Occurrences of each pattern: in contents, in names, and in the attributes of files."""
    found = {}
    wanted = list(patterns())

    def note(key, count, where):
        if count:
            total, places = found.get(key, (0, set()))
            found[key] = (total + count, places | {where})

    for path, tail, block in files(directory):
        for what, form, pattern, _ in wanted:
            keep = tail[-(len(pattern) - 1):] if len(pattern) > 1 else b""
            note((what, form), (keep + block).count(pattern), path.name)
    for path in [directory, *directory.rglob("*")]:
        name = os.fsencode(str(path.relative_to(directory)))
        for what, form, pattern, _ in wanted:
            if "integer" not in form and "endian" not in form:
                note((what, form + " in a path"), name.count(pattern), path.name)
        info = path.lstat()
        note(("owner", "owner of a backing file"), info.st_uid == OWNER, path.name)
        note(("mtime", "mtime of a backing file"), int(info.st_mtime) == TIME, path.name)
        note(("size", "size of a backing file"), info.st_size in (SIZE, SPARSE_SIZE), path.name)
        note(("symlink", "symlink in the backing directory"), stat.S_ISLNK(info.st_mode), path.name)
        for attribute in os.listxattr(path, follow_symlinks=False):
            note(("xattr name", "xattr of a backing file"), XATTR_NAME in attribute, path.name)
    chance = {(what, form): limit for what, form, _, limit in wanted}
    return {k: v for k, v in found.items() if v[0] > chance.get(k, 0)}


def prove(mount, scratch):
    """Finds every pattern where it is known to be: in an archive, and in a made-up file."""
    archive = scratch / "archive"
    archive.mkdir()
    subprocess.run(["tar", "--xattrs", "--sparse", "-cf", archive / "a.tar", "-C", mount, "."],
                   check=True)
    found = count_in(archive)
    for what in ["contents", "inline contents", "name", "directory name", "symlink target",
                 "xattr name", "xattr value", "long name"]:
        if (what, "raw") not in found:
            sys.exit(f"the search does not find the {what} in a tar file")
    # Every form, at odd offsets and across the border of two reads.
    made = scratch / "made"
    made.mkdir()
    for place, start in [("inside", 12345), ("border", CHUNK - 3)]:
        for index, (what, form, pattern, limit) in enumerate(patterns()):
            path = made / f"{place}.{index}"
            with open(path, "wb") as file:
                file.seek(start)
                file.write(pattern * (limit + 1))
            if (what, form) not in count_in(made):
                sys.exit(f"the search does not find: {what}, {form}, {place}")
            path.unlink()
    print(f"the search finds all {len(list(patterns()))} patterns where they are")


def search(directory):
    searched = sum(len(block) for _, _, block in files(directory))
    found = count_in(directory)
    for (what, form), (count, places) in sorted(found.items()):
        print(f"FOUND {what}: {form}, {count} times, in {', '.join(sorted(places)[:3])}")
    print(f"searched {searched >> 10} KiB of data below {directory.name}/: {len(found)} found")
    if not searched:
        sys.exit("there was nothing to search")
    sys.exit(1 if found else 0)


def main():
    command, directory = sys.argv[1], pathlib.Path(sys.argv[2])
    if command == "plant":
        plant(directory)
    elif command == "prove":
        prove(directory, pathlib.Path(sys.argv[3]))
    elif command == "search":
        # The volume's directory itself may be a symlink to another disk.
        search(directory.resolve())
    elif command == "remove":
        shutil.rmtree(directory / DIRECTORY)
    else:
        sys.exit(__doc__)


main()
