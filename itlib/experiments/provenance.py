"""What a result was made by: a hash of the code that it depends on, and the versions, processor and commit beside it.

The hash of a module covers its syntax tree and those of the modules of this library that it imports, and so on; a docstring,
a comment or a blank line is in no such tree. There is no list of files: what is imported counts, at the top of a module or
inside a function. A package's ``__init__`` counts where a name is taken from it. What is imported by a name made at run
time does not count: that is how a registry can know of everything without depending on it.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

#: The folder of this library.
PACKAGE = Path(__file__).parents[1]
#: Packages that the numbers of a record pass through.
PACKAGES = ("itlib", "torch", "numpy", "torchdiffeq", "POT")
#: Fields of a tree that do not say what it does; some versions of Python lack some of them.
_SILENT = {"ctx", "kind", "type_comment", "type_params", "type_ignores"}


# ---- code ----------------------------------------------------------------------------------------------------------


def content(module: str, package: Path = PACKAGE) -> str:
    """Hash of a module and of what it imports from this library, 12 hex digits.

    Args:
        module: its dotted name, such as "itlib.tilting".
        package: the library's folder.

    Raises:
        ModuleNotFoundError: if the library has no such module.
    """
    if _file(module, package) is None:
        raise ModuleNotFoundError(f"{package} has no module {module}", name=module)
    return _digest("", {module}, package)


def content_of(code: str, package: Path = PACKAGE) -> str:
    """Hash of some code, such as a notebook's, and of what it imports from this library, 12 hex digits."""
    shape, imports = _read(code, package)
    return _digest(shape, imports, package)


def content_of_all(package: Path = PACKAGE) -> str:
    """Hash of every module of the library: what two processes have to share to run the same code."""
    found = (path.relative_to(package.parent).with_suffix("").parts for path in package.rglob("*.py"))
    return _digest("", {".".join(parts).removesuffix(".__init__") for parts in found}, package)


def _digest(shape: str, modules: Iterable[str], package: Path) -> str:
    shapes: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in shapes:
            shapes[name], more = _read_module(name, package)
            waiting += more
    parts = [shape, *(f"{name}\0{shapes[name]}" for name in sorted(shapes))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _read_module(name: str, package: Path) -> tuple[str, frozenset[str]]:
    file = _file(name, package)
    if file is None:
        return "", frozenset()
    state = file.stat()
    return _read_file(file, package, state.st_mtime_ns, state.st_size)


@cache
def _read_file(file: Path, package: Path, changed: int, size: int) -> tuple[str, frozenset[str]]:
    """As it is now: a process that lives long sees that a module was edited."""
    return _read(file.read_text("utf-8"), package)


def _read(code: str, package: Path) -> tuple[str, frozenset[str]]:
    """What some code does, as text, and the modules of the library that it imports."""
    tree = ast.parse(code)
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            dotted = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {inner if _file(inner, package) else node.module for inner in dotted.values()}
    return _shape(tree), frozenset(name for name in found if _file(name, package))


def _file(name: str, package: Path) -> Path | None:
    """Where a module of the library is written; None if it is not of the library."""
    first, *rest = name.split(".")
    if first != package.name:
        return None
    place = package.joinpath(*rest)
    return next((file for file in (place / "__init__.py", place.with_name(f"{place.name}.py")) if file.is_file()), None)


def _shape(node: Any) -> str:
    """A syntax tree without docstrings as text, the same in every version of Python."""
    if isinstance(node, list):
        return f"[{','.join(map(_shape, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _SILENT and value not in (None, [])}
    if isinstance(node, ast.Constant):
        fields = {"value": node.value}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
        node, False
    ):
        fields["body"] = node.body[1:]
    return f"{type(node).__name__}({','.join(f'{name}={_shape(value)}' for name, value in fields.items())})"


# ---- machine -------------------------------------------------------------------------------------------------------


def _processor() -> str:
    """Its name and generation: kernels are chosen by them, so the last digits, and all speeds, depend on them.

    A virtual machine often has a bare name, such as AMD EPYC, for generations of which one is twice as fast as the other.
    """
    with suppress(OSError):
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        told = {key.strip(): value.strip() for key, _, value in reversed(list(lines))}
        if "model name" in told:
            return f"{told['model name']}, family {told.get('cpu family', '?')} model {told.get('model', '?')}"
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """The commit of the checkout that this library lies in, "+changes" if its code is not as committed; or "unknown".

    A repository around the library that does not hold its files, such as one in whose folder it was installed, says
    nothing of them.
    """
    try:
        if not _git("ls-files", "--", __file__):
            return "unknown"
        # New records are no change of what made them.
        changed = _git("status", "--porcelain", "-uno", "--", ":/itlib", ":/notebooks")
        return _git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(module: str) -> dict[str, Any]:
    """What it takes to make the same bits again: versions, commit, platform and processor, and the code behind a module.

    Args:
        module: dotted name of the module whose run it was.
    """
    import torch  # here, so that a process that only reads records, or watches a run, starts in no time

    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": commit(),
        "content": content(module),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread",
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
    }
