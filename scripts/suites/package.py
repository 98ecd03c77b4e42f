"""For the suite `package`: makes archives, and compares a mount with what unzip has made.

    package.py make DIRECTORY FILES MEMBER_MIB
    package.py compare UNZIPPED MOUNT
"""

import concurrent.futures
import hashlib
import os
import pathlib
import random
import stat
import sys
import zipfile

MIB = 1 << 20
PIECE = 256 << 10


def words(seed, length):
    """Text that compresses about as text does, fast to make."""
    source = random.Random(seed)
    vocabulary = [bytes(source.choices(b"abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9)))
                  for _ in range(4096)]
    out = bytearray()
    while len(out) < length:
        out += b" ".join(source.choices(vocabulary, k=4096)) + b"\n"
    return bytes(out[:length])


def make(directory, files, member_mib):
    directory = pathlib.Path(directory)
    with zipfile.ZipFile(directory / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        text = words(2, 1 * MIB)
        for number in range(files):
            start = number * 7 % (MIB - 3000)
            name = f"d{number % 97}/e{number % 389}/file{number}.txt"
            archive.writestr(name, text[start:start + number % 3000])
    # One large member, longer than 4 GiB at full size, of which no two parts are alike.
    block = words(3, 4 * MIB)
    with zipfile.ZipFile(directory / "large.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("large.bin", "w", force_zip64=True) as member:
            for number in range(0, member_mib, 4):
                cut = number * 4099 % len(block)
                member.write(number.to_bytes(8, "little") + block[cut:] + block[:cut])
        archive.writestr("after.txt", b"after")


def entries(root):
    """Every path below a directory, with what lstat says."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = os.lstat(path)
    return found


def digest(path):
    """All of a file, from front to back."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def pieces(path, other, size, seed):
    """Random pieces of a large file, the last bytes among them."""
    source = random.Random(seed)
    with open(path, "rb") as a, open(other, "rb") as b:
        for offset in [max(0, size - 100), *(source.randrange(size) for _ in range(40))]:
            a.seek(offset), b.seek(offset)
            if a.read(PIECE) != b.read(PIECE):
                return f"{other}: other bytes at {offset}"
    return None


def compare(unzipped, mount):
    expected, found = entries(unzipped), entries(mount)
    problems = [f"missing: {path}" for path in expected.keys() - found.keys()]
    problems += [f"too many: {path}" for path in found.keys() - expected.keys()]
    files = []
    for path in expected.keys() & found.keys():
        a, b = expected[path], found[path]
        if stat.S_IFMT(a.st_mode) != stat.S_IFMT(b.st_mode):
            problems.append(f"{path}: another type")
        elif stat.S_ISLNK(a.st_mode):
            if os.readlink(os.path.join(unzipped, path)) != os.readlink(os.path.join(mount, path)):
                problems.append(f"{path}: another target")
        elif stat.S_ISREG(a.st_mode):
            if a.st_size != b.st_size:
                problems.append(f"{path}: {b.st_size} bytes, not {a.st_size}")
            files.append(path)
    large = [path for path in files if expected[path].st_size > MIB]
    jobs = []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        # Random places first: then nothing is cached yet.
        for seed in range(4):
            for path in large:
                pair = os.path.join(unzipped, path), os.path.join(mount, path)
                jobs.append(pool.submit(pieces, *pair, expected[path].st_size, seed))
        problems += [problem for job in jobs if (problem := job.result())]
        places = [[os.path.join(root, path) for path in files] for root in (unzipped, mount)]
        for path, a, b in zip(files, *(pool.map(digest, place) for place in places)):
            if a != b:
                problems.append(f"{path}: other contents")
    for problem in problems[:20]:
        print(problem)
    print(f"{len(expected)} entries, {len(files)} files, {len(large)} of them large: "
          f"{len(problems)} differences")
    return bool(problems) or not expected


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(compare(*sys.argv[2:]))
