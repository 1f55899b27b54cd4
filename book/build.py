"""Run what is out of date, then build the book: `make book`, whose options are those of `python -m itlib.reproduce`.

Both steps know by themselves what to do, and take half a minute to find that it is nothing. So a complete build leaves a
hash of all that it was made from and of what it made; while both are as they were, and the same
is asked for, nothing starts.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What pages are made from, pages and records among them: the library's docstrings are pages, too.
MADE_FROM = ("book", "itlib", "notebooks", "_config.yml", "_toc.yml", "requirements.txt")
#: Of these, what a build makes itself.
MADE = ("book/pages", "book/runs")

Run = Callable[[Sequence[str], Path], int]


def files(root: Path, names: Sequence[str]) -> Iterator[Path]:
    """All files of some files and folders, in order; what Python and editors leave there does not count."""
    for name in names:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            parts = path.relative_to(root).parts
            if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
                yield path


def state(root: Path, *, sources: bool = False) -> str:
    """Hash of what the book is made from; of the sources alone if asked for."""
    digest = hashlib.sha256()
    for path in files(root, MADE_FROM):
        name = path.relative_to(root).as_posix()
        if not (sources and name.startswith(MADE)):
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def site(root: Path) -> str:
    """Hash of the names and sizes of the site's files."""
    found = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n" for path in files(root, ("_build/html",))]
    return hashlib.sha256("".join(found).encode()).hexdigest() if found else ""


def run(command: Sequence[str], root: Path) -> int:
    """Run a command; what the second step says is shown only if it fails."""
    if command[0] != "jupyter-book":
        return subprocess.run([sys.executable, *command], cwd=root, check=False).returncode
    program = Path(sys.executable).with_name("jupyter-book")
    done = subprocess.run([str(program), *command[1:]], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout + done.stderr)
    return done.returncode


def build(root: Path, arguments: Sequence[str], run: Run = run) -> int:
    """Bring the book up to date, and return the exit status of the step that failed, or 0.

    Args:
        root: the checkout.
        arguments: for `itlib.reproduce`.
        run: runs a command in a folder.
    """
    stamp = root / "_build" / "book.json"
    try:
        last = json.loads(stamp.read_text("utf-8"))
    except (OSError, ValueError):
        last = {}

    def unchanged(*keys: str) -> bool:
        now = {"state": state(root), "site": site(root), "arguments": list(arguments)}
        return bool(now["site"]) and all(last.get(key) == now[key] for key in keys)

    if unchanged("state", "site", "arguments"):
        print("Nothing has changed.")
        return 0
    before = state(root, sources=True)
    if status := run(["-m", "itlib.reproduce", *arguments], root):
        return status
    if not unchanged("state", "site"):
        stamp.unlink(missing_ok=True)
        # A page that is left alone may still link to one that changed; and a second build forgets the warnings of the first.
        if status := run(["jupyter-book", "build", ".", "--all", "-W", "--keep-going", "-q"], root):
            return status
    if state(root, sources=True) == before:  # or somebody was writing meanwhile
        stamp.parent.mkdir(exist_ok=True)
        found = {"state": state(root), "site": site(root), "arguments": list(arguments)}
        stamp.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def chosen(root: Path, arguments: Sequence[str]) -> list[str]:
    """The arguments of a build: after ``--last`` those of the one before, if there was one."""
    if arguments[:1] != ["--last"]:
        return list(arguments)
    try:
        last = json.loads((root / "_build" / "book.json").read_text("utf-8"))["arguments"]
    except (OSError, ValueError, KeyError):
        return list(arguments[1:])
    print(f"What was built last: {' '.join(last)}")
    return list(last)


def main() -> int:
    """Build, and say where the book is."""
    try:
        status = build(ROOT, chosen(ROOT, sys.argv[1:]))
    except KeyboardInterrupt:  # the step that was running has said so
        return 130
    if not status:
        print(f"The book is built. Open: {ROOT / '_build' / 'html' / 'index.html'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
