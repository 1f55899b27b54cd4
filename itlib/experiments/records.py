"""Records as JSON files: a :class:`~itlib.experiments.experiment.Record` is checked when written and when read."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import P, Parameters, Q, Record
from itlib.experiments.files import DamagedFileError, located, write_atomically
from itlib.experiments.provenance import provenance

_ANEW = "delete it and run again to make it anew"
_NEEDED = ("metrics", "seconds", "provenance")
_FIELDS = ("metrics", "trace", "curve", "samples", "seconds", "failure", "provenance")


def compact(value: Any) -> Any:
    """Round floats to six significant digits, and turn NaN and infinity (not JSON) into null: small, valid records."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: compact(v) for k, v in value.items()}
    return [compact(v) for v in value] if isinstance(value, list | tuple) else value


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
        raise ValueError("at the top level, there is no object of names and values")
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
            raise ValueError(f"at {name}, there is no object of names and values")
    for name, value in found["metrics"].items():
        if not all(_numbers(v, depth=2) for v in (value.values() if isinstance(value, dict) else [value])):
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
    record = replace(record, provenance=record.provenance or provenance(type(record.parameters).__module__))
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

    Args:
        folder: where they are; from a notebook's folder or from anywhere, see :func:`~itlib.experiments.files.located`.
        kind: the class of their parameters.

    Raises:
        MissingFileError: if there is no such folder.
        DamagedFileError: if one is truncated or no record.
    """
    found = (load_record(path) for path in sorted(located(folder).glob("*.json")))
    return [record for record in found if isinstance(record.parameters, kind)]
