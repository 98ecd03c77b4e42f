"""How much is measured: three sizes, and what jobs need that is made once."""

import os
import pathlib
import subprocess
import tarfile

from shell import ROOT, Failure, run

MIB = 1 << 20


class Size:
    """All amounts of one size of run."""

    def __init__(self, rounds, disk_mib, stream_mib, random_mib, commit_mib, dd_mib, seconds, files,
                 growth_files, growth_mib, limit_seconds):
        self.rounds, self.disk_mib = rounds, disk_mib
        # A large file; as much of it as random jobs touch; of a job that syncs each write; of dd.
        self.stream_mib, self.random_mib = stream_mib, random_mib
        self.commit_mib, self.dd_mib = commit_mib, dd_mib
        # How long a job runs that is bound by time, and how many files those with files make.
        self.seconds, self.files = seconds, files
        # The points of the jobs about growth.
        self.growth_files, self.growth_mib = growth_files, growth_mib
        # A command that takes longer is ended, and its peer left out of the job.
        self.limit_seconds = limit_seconds


SIZES = {
    "tiny": Size(1, 768, 8, 4, 0.125, 1, 0.5, 200, [200, 400], [4, 8], 60),
    "quick": Size(3, 2048, 256, 32, 1, 16, 3, 2000, [1000, 10_000], [64, 256], 120),
    "full": Size(5, 5120, 1024, 64, 4, 64, 10, 10_000, [10_000, 100_000, 1_000_000, 10_000_000],
                 [1024, 10_240, 51_200], 600),
}


class Setup:
    """What jobs get besides the peer."""

    def __init__(self, size_name, tree, scratch):
        self.size_name, self.size, self.scratch = size_name, SIZES[size_name], scratch
        self.tree = tree or default_tree(size_name, scratch)
        with tarfile.open(self.tree) as archive:
            self.tree_entries = len(archive.getnames())
        self.tree_mib = self.tree.stat().st_size / MIB
        self.limit_seconds = self.size.limit_seconds

    def fio_environment(self):
        """The variables that jobs/*.fio name."""
        size = self.size
        return dict(os.environ, SIZE=f"{int(size.stream_mib * MIB)}",
                    RANDOM_SIZE=f"{int(size.stream_mib * MIB)}",
                    RANDOM_IO=f"{int(size.random_mib * MIB)}",
                    COMMIT_SIZE=f"{int(size.commit_mib * MIB)}", RUNTIME=f"{size.seconds * 3:g}")

    def facts(self):
        """For the report."""
        return dict(vars(self.size), size=self.size_name, tree_entries=self.tree_entries,
                    tree_mib=round(self.tree_mib, 1))


def default_tree(size_name, scratch):
    """A real source tree: the dependencies of this project (`scripts/corpus`); in the smallest size
    this project."""
    if size_name != "tiny":
        return pathlib.Path(run([ROOT / "scripts/corpus", "small"], limit_seconds=1800).split("\n")[-2])
    path = scratch / "tree.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("src", "tests", "scripts"):
            archive.add(ROOT / name, arcname=name)
    return path


CARGO_PROJECT = {
    "Cargo.toml": """[package]
name = "built-inside"
version = "0.1.0"
edition = "2021"
[dependencies]
clap = { version = "4", features = ["derive"] }
serde = { version = "1", features = ["derive"] }
serde_json = "1"
[workspace]
""",
    "src/main.rs": """use clap::Parser;
#[derive(Parser, serde::Serialize)]
struct Arguments {
    /// Printed again.
    word: Vec<String>,
}
fn main() {
    println!("{}", serde_json::to_string(&Arguments::parse()).unwrap());
}
""",
}


def cargo_archive():
    """A tar of a program with some thirty crates, their sources with it, so that cargo asks nobody;
    made on first use."""
    path = ROOT / "target/corpus/cargo-build.tar"
    if path.exists():
        return path
    work = ROOT / "target/corpus/cargo-build.new"
    run(["rm", "-rf", work])
    for name, text in CARGO_PROJECT.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    # The versions that this project is built with; cargo drops what is not needed.
    (work / "Cargo.lock").write_bytes((ROOT / "Cargo.lock").read_bytes())
    told = subprocess.run(["cargo", "vendor", "vendor"], cwd=work, text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, check=False)
    if told.returncode:
        raise Failure(f"cargo vendor failed: {told.stderr.strip()[-300:]}")
    (work / ".cargo").mkdir()
    (work / ".cargo/config.toml").write_text(told.stdout)
    run(["tar", "-C", work, "-cf", f"{path}.new", "."])
    run(["rm", "-rf", work])
    pathlib.Path(f"{path}.new").rename(path)
    return path


def npm_cache():
    """npm's cache with what the lock of the suite `sdk-js` names, so that `npm ci` asks nobody."""
    path = ROOT / "target/corpus/npm-cache"
    if path.is_dir():
        return path
    work = ROOT / "target/corpus/npm.new"
    run(["rm", "-rf", work, f"{path}.new"])
    npm_project(work)
    run(["npm", "ci", "--cache", f"{path}.new", *NPM_QUIET], cwd=work, limit_seconds=1800)
    run(["rm", "-rf", work])
    pathlib.Path(f"{path}.new").rename(path)
    return path


NPM_QUIET = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]


def npm_project(directory):
    """The lock and its package file."""
    directory.mkdir(parents=True)
    for name, source in (("package.json", "package"), ("package-lock.json", "lock")):
        text = (ROOT / f"scripts/suites/sdk-js.{source}.json").read_text()
        (directory / name).write_text(text)
