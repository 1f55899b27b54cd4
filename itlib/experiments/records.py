"""Run records: what a run leaves behind, as JSON.

A record holds parameters, metrics, a trace, seconds and provenance. It is validated against ``record.schema.json`` when
written and when read. Files appear whole or not at all: they are written beside their place and moved there in one step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import fastjsonschema

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import P, Parameters, Q, Record

#: The version of the record's schema.
SCHEMA = 1

#: Packages that the numbers of a record pass through.
PACKAGES = ("itlib", "torch", "numpy", "torchdiffeq", "POT")
#: What cannot change a run's numbers: how it is drawn, scheduled and compared; the rivals change only their own.
_IDLE = {"figures", "reproduce", "grids.py", "record.schema.json"}
_BYSTANDERS: dict[str, set[str]] = {
    "method": _IDLE | {"baselines", "pretrained.py", "digits"},
    "rivals": _IDLE,
    "all": set(),
}
Scope = Literal["method", "rivals", "all"]


class DamagedFileError(ValueError):
    """A record or checkpoint that is truncated or not what it should be; the message says what to do."""


# ---- files ---------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    Raises:
        OSError: if it can't be written: the message says what to do, and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if advice := _ADVICE.get(error.errno or 0):
            clear = OSError(f"{advice[0]} {path}: {advice[1]} and run again, nothing is lost")
            clear.errno = error.errno
            raise clear from None
        raise


_FULL = ("no space left to write", "free some disk")
_CLOSED = ("no permission to write", "choose another folder, or mend its permissions,")
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: ("a limit on the size of files (ulimit -f) forbids to write", "raise it"),
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: _CLOSED,
}


def sweep(folder: Path) -> None:
    """Remove what :func:`write_atomically` had begun in processes of this machine that were killed."""
    for path in folder.glob(f".*@{platform.node()}.tmp"):
        try:
            os.kill(int(path.name.rpartition("@")[0].rpartition(".")[2]), 0)
        except (ProcessLookupError, ValueError):
            path.unlink(missing_ok=True)
        except PermissionError:  # it runs, as another user
            pass


@cache
def content_hash(scope: Scope = "method") -> str:
    """Hash of the library's source, 12 hex digits: of what can change a run's numbers, a rival's numbers, or of all."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".json") and not _BYSTANDERS[scope] & set(path.relative_to(package).parts):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


# ---- records -------------------------------------------------------------------------------------------------------


@cache
def _validator() -> Any:
    return fastjsonschema.compile(json.loads(Path(__file__).with_name("record.schema.json").read_text()))


def scope_of(task: str) -> Scope:
    """What part of the library a record of this kind depends on."""
    return "rivals" if task in ("rival", "scaling", "budget", "ablation", "digits") else "method"


def _processor() -> str:
    """Its name: kernels are chosen by it, so the last digits depend on it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def provenance(scope: Scope = "method") -> dict[str, Any]:
    """Versions, commit, content hash, platform and processor of this run: what it takes to make the same bits again."""
    import torch  # here, so that a process that only reads records, or watches a run, starts in no time

    root = Path(__file__).parents[2]
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        # New records are no change of what made them.
        status = [*git, "status", "--porcelain", "-uno", "--", "itlib", "notebooks"]
        changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
        commit += "+changes" if changed else ""
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": commit,
        "content": content_hash(scope),
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread",
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})",
    }


def compact(value: Any) -> Any:
    """Round floats to six significant digits, and turn NaN and infinity (not JSON) into null: small, valid records."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: compact(v) for k, v in value.items()}
    return [compact(v) for v in value] if isinstance(value, list | tuple) else value


def write_record(
    path: Path,
    task: str,
    parameters: dict[str, Any],
    metrics: dict[str, Any],
    trace: list[float],
    seconds: dict[str, float],
    **more: Any,
) -> dict[str, Any]:
    """Validate and write a run's record, provenance added; returns it.

    ``more`` is what the schema allows besides: a rival's ``curve``, ``samples`` and ``failure``.

    Raises:
        DamagedFileError: if it does not follow the schema.
    """
    record: dict[str, Any] = compact(
        {
            "schema": SCHEMA,
            "task": task,
            "parameters": parameters,
            "metrics": metrics,
            "trace": trace,
            "seconds": seconds,
        }
        | more
    ) | {"provenance": provenance(scope_of(task))}
    _validate(record, path)
    write_atomically(Path(path), (json.dumps(record, indent=1) + "\n").encode())
    return record


def _validate(record: Any, path: Path, advice: str = "") -> None:
    try:
        _validator()(record)
    except fastjsonschema.JsonSchemaValueException as error:
        place = "/".join(error.path[1:]) or "the top level"
        what = str(error).removeprefix(str(error.name)).strip()[:200]
        raise DamagedFileError(f"{path} is not a valid run record: at {place}, {what}{advice}") from None


def read_record(path: Path) -> dict[str, Any]:
    """Read and validate one record.

    Raises:
        DamagedFileError: if it is truncated or does not follow the schema.
    """
    try:
        record: dict[str, Any] = json.loads(Path(path).read_text(), parse_constant=int)  # int("NaN") is refused
    except (ValueError, RecursionError):
        raise DamagedFileError(f"{path} is truncated or not JSON: delete it and run again to make it anew") from None
    _validate(record, path, ": delete it and run again to make it anew")
    return record


def read_records(folder: Path, pattern: str = "*.json") -> list[dict[str, Any]]:
    """All records of a folder, in the order of their names."""
    return [read_record(path) for path in sorted(Path(folder).glob(pattern))]


# ---- typed records -------------------------------------------------------------------------------------------------

_ANEW = "delete it and run again to make it anew"
_NEEDED = ("metrics", "seconds", "provenance")
_FIELDS = ("metrics", "trace", "curve", "samples", "seconds", "failure", "provenance")


def record_to_json(record: Record[Parameters]) -> dict[str, Any]:
    """A record as what JSON can hold: figures with six significant digits, parameters with all, and no empty fields."""
    parts = {name: compact(getattr(record, name)) for name in _FIELDS}
    parameters = asdict(record.parameters)
    return {"experiment": record.experiment, "parameters": parameters} | {
        k: v for k, v in parts.items() if v or k in _NEEDED
    }


def record_from_json(found: Any) -> Record[Any]:
    """The record that :func:`record_to_json` has written.

    Raises:
        ValueError: if it is none, saying where.
    """
    if not isinstance(found, dict):
        raise ValueError("at the top level, there are no names")
    if missing := [name for name in ("experiment", "parameters", *_NEEDED) if name not in found]:
        raise ValueError(f"at the top level, {missing[0]} is missing")
    if unknown := sorted(found.keys() - {"experiment", "parameters", *_FIELDS}):
        raise ValueError(f"at the top level, {unknown[0]} has no meaning")
    _check_parts(found)
    kind = EXPERIMENTS[found["experiment"]].parameters
    try:
        parameters = kind.of(found["parameters"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"at parameters, {error}") from None
    return Record(parameters, **{name: found[name] for name in _FIELDS if name in found})


def _check_parts(found: dict[str, Any]) -> None:
    """Raise a ValueError for what is not shaped as a :class:`Record` is."""
    for name in ("parameters", "metrics", "curve", "seconds", "provenance"):
        if not isinstance(found.get(name, {}), dict):
            raise ValueError(f"at {name}, there are no names")
    for name, value in found["metrics"].items():
        if not _numbers(value, depth=2):
            raise ValueError(f"at metrics/{name}, there are no numbers")
    for name, value in found["seconds"].items():
        if not isinstance(value, float | int) or value < 0:
            raise ValueError(f"at seconds/{name}, there is no time")
    for name, value in found.get("curve", {}).items():
        if not (isinstance(value, list) and _numbers(value, depth=1)):
            raise ValueError(f"at curve/{name}, there is no column of numbers")
    if len({len(column) for column in found.get("curve", {}).values()}) > 1:
        raise ValueError("at curve, the columns are not equally long")
    for name in ("trace", "samples"):
        if not (isinstance(found.get(name, []), list) and _numbers(found.get(name, []), depth=2)):
            raise ValueError(f"at {name}, there is no list of numbers")
    if not isinstance(found.get("failure"), str | None):
        raise ValueError("at failure, there are no words")
    if missing := {"versions", "commit", "content", "platform"} - found["provenance"].keys():
        raise ValueError(f"at provenance, {min(missing)} is missing")


def _numbers(value: Any, depth: int) -> bool:
    """Whether it is a number, null, or a list of such, nested at most so deep."""
    if isinstance(value, list):
        return depth > 0 and all(_numbers(entry, depth - 1) for entry in value)
    return value is None or (isinstance(value, float | int) and not isinstance(value, bool))


def save_record(path: Path, record: Record[Q]) -> Record[Q]:
    """Write a record, its provenance added, and its tensors beside it; returns it as it can be read.

    Raises:
        DamagedFileError: if it is not what a record can be, and nothing is written.
    """
    path = Path(path)
    record = replace(record, provenance=record.provenance or provenance("rivals"))
    found = record_to_json(record)
    try:
        checked: Record[Q] = record_from_json(found)
    except ValueError as error:
        raise DamagedFileError(f"{path} is not a valid record: {error}") from None
    if record.tensors:
        import safetensors.torch

        tensors = {name: value.detach().cpu().contiguous() for name, value in record.tensors.items()}
        write_atomically(path.with_suffix(".safetensors"), safetensors.torch.save(tensors))
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    return checked


def load_record(path: Path) -> Record[Any]:
    """Read one record.

    Raises:
        DamagedFileError: if it is truncated or no record.
    """
    try:
        found = json.loads(Path(path).read_text(), parse_constant=int)  # int("NaN") is refused
    except (ValueError, RecursionError):
        raise DamagedFileError(f"{path} is truncated or not JSON: {_ANEW}") from None
    try:
        return record_from_json(found)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is not a valid record: {error}: {_ANEW}") from None


def load_records(folder: Path, kind: type[P]) -> list[Record[P]]:
    """The records of a folder whose parameters are of one kind, in the order of their names.

    Raises:
        DamagedFileError: if one is truncated or no record.
    """
    found = (load_record(path) for path in sorted(Path(folder).glob("*.json")))
    return [record for record in found if isinstance(record.parameters, kind)]
