"""Damages copies of a volume in every way that has a name, and looks at what is served.

damage.py SCRATCH SEED FLIPS ATREST
"""

import os
import pathlib
import random
import shutil
import subprocess
import sys

SCRATCH, SEED, FLIPS = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
ATREST = sys.argv[4]
TOOL = pathlib.Path(__file__).resolve().parent.parent / "volume"
SLOT = 4096
chance = random.Random(SEED)
defects, outcomes = [], []


def volume(*command):
    return subprocess.run([TOOL, *map(str, command)], capture_output=True, text=True, cwd="/",
                          stdin=subprocess.DEVNULL)


def must(*command):
    done = volume(*command)
    if done.returncode:
        sys.exit(f"volume {command[0]}: {done.stdout}{done.stderr}")


def make_files(mount, generation):
    """name -> contents: empty, inline, a page, some pages, some chunks, in directories."""
    lengths = [0, 100, 1000, 4096, 4097, 70000, 300000, 2000000]
    files = {}
    for directory in range(4):
        for index, length in enumerate(lengths * 3):
            name = f"d{directory}/f{index}"
            data = random.Random(f"{SEED} {generation} {name}").randbytes(length)
            files[name] = data
            path = mount / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    return files


class Original:
    """The undamaged volume at two moments: `old` is an earlier copy of all that lies on disk."""

    def __init__(self):
        self.directory = SCRATCH / "original"
        self.mount, self.backing = self.directory / "mnt", self.directory / "backing"
        must("init", "atrest-gcm", self.directory)
        must("mount", self.directory)
        self.files_old = make_files(self.mount, "old")
        must("umount", self.directory)
        self.old = SCRATCH / "old"
        copy_sparse(self.backing, self.old)
        must("mount", self.directory)
        self.files = make_files(self.mount, "new")
        must("umount", self.directory)


def copy_sparse(source, target):
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


def read_all(mount):
    """name -> contents, or the OSError."""
    seen = {}
    for name in original.files:
        try:
            seen[name] = (mount / name).read_bytes()
        except OSError as error:
            seen[name] = error
    return seen


def overwrite_and_delete(mount, damaged):
    """A damaged file can be written anew, and deleted."""
    for name in damaged[:3]:
        path = mount / name
        try:
            path.lstat()
        except OSError:
            # Its directory or inode is what was damaged: there is no file to overwrite.
            continue
        try:
            path.write_bytes(b"anew")
            if path.read_bytes() != b"anew":
                defects.append(f"{name} was overwritten, but does not read back")
            path.unlink()
        except OSError as error:
            defects.append(f"{name} is damaged and cannot be overwritten and deleted: {error}")


def complain(case, text):
    defects.append(f"{case}: {text}")


def check_message(case, done):
    """A refusal is an exit code of its own and a message, never a panic or a signal."""
    text = (done.stdout + done.stderr).strip()
    if "panicked" in text or done.returncode in (101, 134) or done.returncode < 0:
        complain(case, f"crashed: {text[:400]}")
    if not text:
        complain(case, f"exit code {done.returncode} without a message")
    return text


def try_case(case, damage, lost_max, older=False, must_notice=True):
    """Damages a copy with `damage(backing)`, mounts and reads it.

    `lost_max`: how many files may be unreadable; None: mounting may be refused as well.
    `older`: a whole earlier moment may be served instead.
    Returns how many were lost, or the refusal.
    """
    directory = SCRATCH / "case"
    shutil.rmtree(directory, ignore_errors=True)
    copy_sparse(original.directory, directory)
    mount, backing = directory / "mnt", directory / "backing"
    damage(backing)
    environment = dict(os.environ, ATREST_KEYSTORE=str(directory / "keys"),
                       ATREST_STATE=str(directory / "state"))
    check = subprocess.run([ATREST, "fsck", "--deep", backing], capture_output=True, text=True,
                           stdin=subprocess.DEVNULL, env=environment)
    if check.returncode:
        check_message(case + " (fsck)", check)
    done = volume("mount", directory)
    if done.returncode:
        message = check_message(case, done)
        if lost_max is not None:
            complain(case, f"cannot be mounted any more: {message[:300]}")
        direct = subprocess.run([ATREST, "mount", backing, mount], capture_output=True, text=True,
                                stdin=subprocess.DEVNULL, env=environment)
        text = direct.stderr.strip().replace(str(directory), "")
        outcomes.append(f"{case}: refused with {direct.returncode}: {text.splitlines()[:1]}")
        return direct.returncode, text
    seen = read_all(mount)
    lost = [name for name, data in seen.items() if isinstance(data, OSError)]
    for name, data in seen.items():
        allowed = [original.files[name]] + ([original.files_old[name]] if older else [])
        if not isinstance(data, OSError) and data not in allowed:
            what = ("an older state" if data == original.files_old[name]
                    else f"{len(data)} bytes that were never written there")
            complain(case, f"{name}: served {what}")
    if lost_max is not None and len(lost) > lost_max:
        complain(case, f"{len(lost)} files are unreadable, at most {lost_max} may be")
    if lost and check.returncode == 0 and must_notice:
        complain(case, "fsck --deep finds nothing wrong")
    overwrite_and_delete(mount, lost)
    must("umount", directory)
    outcomes.append(f"{case}: {len(lost)} of {len(seen)} files unreadable, fsck {check.returncode}")
    return len(lost)


def flip(path, offset):
    # The last slot of a file that was cut may be short.
    offset = min(offset, path.stat().st_size - 1)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def segments(backing):
    return sorted(p for p in (backing / "data").rglob("*") if p.is_file())


def used_slots(path):
    """Numbers of the slots that hold something."""
    slots = []
    with open(path, "rb") as file:
        offset, end = 0, path.stat().st_size
        while offset < end:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA) // SLOT * SLOT
            except OSError:
                break
            hole = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
            file.seek(offset)
            data = file.read(hole - offset)
            slots += [(offset + at) // SLOT for at in range(0, len(data), SLOT)
                      if any(data[at:at + SLOT])]
            offset = hole
    return slots


def flip_somewhere(name):
    def damage(backing):
        path = backing / name
        data = path.read_bytes()
        used = [i for i, byte in enumerate(data) if byte] or [0]
        flip(path, chance.choice(used))
    return damage


def flip_slot(backing):
    path = chance.choice([p for p in segments(backing) if used_slots(p)])
    flip(path, chance.choice(used_slots(path)) * SLOT + chance.randrange(SLOT))


def swap_slots(backing):
    path = chance.choice([p for p in segments(backing) if len(used_slots(p)) > 1])
    first, second = chance.sample(used_slots(path), 2)
    with open(path, "r+b") as file:
        file.seek(first * SLOT)
        one = file.read(SLOT)
        file.seek(second * SLOT)
        two = file.read(SLOT)
        file.seek(first * SLOT)
        file.write(two)
        file.seek(second * SLOT)
        file.write(one)


def put_back(name):
    def damage(backing):
        (backing / name).unlink(missing_ok=True)
        copy_sparse(original.old / name, backing / name)
    return damage


def both(*damages):
    def damage(backing):
        for one in damages:
            one(backing)
    return damage


def truncate_half(backing):
    path = segments(backing)[0]
    os.truncate(path, used_slots(path)[-1] // 2 * SLOT)


def all_cases():
    # One slot: a page of one file; nodes have two copies, so they cost nothing.
    for index in range(FLIPS):
        lost = try_case(f"bit flipped in a slot, {index}", flip_slot, 1)
        yield "slot", lost
    for index in range(max(3, FLIPS // 4)):
        try_case(f"two slots swapped, {index}", swap_slots, 2)
    for name in ["super.a", "super.b"]:
        try_case(f"bit flipped in {name}", flip_somewhere(name), None, older=True)
        try_case(f"{name} is missing", lambda b, n=name: (b / n).unlink(), None, older=True)
        try_case(f"old {name} put back", put_back(name), None, older=True)
    yield "superblocks", try_case("bits flipped in both superblocks",
                                  both(flip_somewhere("super.a"), flip_somewhere("super.b")), None)
    yield "config", try_case("bit flipped in atrest.json", flip_somewhere("atrest.json"), None)
    yield "no config", try_case("atrest.json is missing",
                                lambda b: (b / "atrest.json").unlink(), None)
    try_case("old atrest.json put back", put_back("atrest.json"), None)
    if (original.backing / "log").exists():
        try_case("bit flipped in log", flip_somewhere("log"), None)
        try_case("old log put back", put_back("log"), None)
        try_case("log is missing", lambda b: (b / "log").unlink(), None)
    for path in segments(original.old):
        name = path.relative_to(original.old)
        try_case(f"old {name} put back", put_back(name), None)
    yield "truncated", try_case("a segment is cut in half", truncate_half, None)
    for path in segments(original.backing):
        name = path.relative_to(original.backing)
        yield "missing", try_case(f"{name} is missing", lambda b, n=name: (b / n).unlink(), None)


def judge(results):
    """The cases must have bitten, and refusals must be told apart."""
    if not any(lost for kind, lost in results if kind == "slot" and isinstance(lost, int)):
        defects.append(f"none of {FLIPS} flipped bits was noticed: the cases do not bite")
    refusals = {k: r for k, r in results if isinstance(r, tuple)}
    for kind in ["superblocks", "config", "no config"]:
        if kind not in refusals:
            defects.append(f"{kind} destroyed: mounts nevertheless")
    seen = {}
    for kind, (_, message) in refusals.items():
        if kind != "missing" and message in seen.values():
            defects.append(f"{kind}: the same message as another kind of damage: {message[:200]}")
        seen[kind] = message
    codes = {k: refusals[k][0] for k in ["superblocks", "config"] if k in refusals}
    if len(set(codes.values())) != len(codes):
        defects.append(f"exit codes do not tell damages apart: {codes}")


original = Original()
judge(list(all_cases()))
for outcome in outcomes:
    print(outcome)
for defect in defects:
    print(f"DEFECT: {defect}")
sys.exit(1 if defects else 0)
