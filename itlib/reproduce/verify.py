"""Does a record come out again? What ``python -m itlib.reproduce --verify RECORD`` says after running it a second time.

Two records agree *exactly* if every parameter, metric and tilt has the same six digits. That is owed where the processor,
the versions and the library are the same. Elsewhere numbers are rounded differently, and training is chaotic: it amplifies
the last digit of a weight until two runs of one seed differ as two seeds do. What is owed there is a *band*: with the same
parameters and several seeds the reference records span, for each figure, an interval from the lowest seed to the highest;
widened by its own length on both sides, it has to hold the new figure. How many of those seeds lie in the band of the others
is counted along, because it says how much a figure outside means.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from itlib.experiments.experiment import Record
from itlib.experiments.files import DamagedFileError
from itlib.experiments.records import load_record
from itlib.reproduce.cell import BatchError, Cell
from itlib.reproduce.execute import run_batch

#: Seeds that a band needs.
FEWEST = 3
#: Records keep six digits, so figures that do not depend on the seed agree up to the last.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Verdict:
    """What the comparison of a record with its second run found.

    Args:
        agrees: whether they agree; None if that cannot be told.
        says: the finding, one sentence.
        because: why exact agreement could, or could not, be asked for.
    """

    agrees: bool | None
    says: str
    because: str


def figures(record: Record[Any]) -> dict[str, float]:
    """The numbers by which runs are compared: all metrics, one by one, and the mean of the trace."""
    found: dict[str, float] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, list):
            for i, entry in enumerate(value):
                add(f"{name}[{i}]", entry)
        elif value is not None:
            found[name] = float(value)

    for name, value in record.metrics.items():
        add(name, value)
    if record.trace:
        add("mean of the trace", sum(record.trace) / len(record.trace))
    return found


def band(records: Sequence[Record[Any]]) -> dict[str, tuple[float, float]]:
    """For each figure that all records have: from its lowest to its highest value, widened by as much on both sides."""
    rows = [figures(record) for record in records]
    result = {}
    for name in set.intersection(*(set(row) for row in rows)):
        values = [row[name] for row in rows]
        width = max(values) - min(values) + ROUNDING * max(map(abs, values))
        result[name] = (min(values) - width, max(values) + width)
    return result


def outside(record: Record[Any], reference: Sequence[Record[Any]]) -> dict[str, tuple[float, float, float]]:
    """The figures of a record outside the band of others: {name: (value, low, high)}."""
    limits, found = band(reference), figures(record)
    return {
        name: (found.get(name, float("nan")), low, high)
        for name, (low, high) in sorted(limits.items())
        if not low <= found.get(name, float("nan")) <= high
    }


def unlike(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """What keeps two records' provenances from promising the same bits, as words; empty if nothing does."""
    reasons = [
        f"{name} {one['versions'][name]} there and {two['versions'][name]} here"
        for name in sorted(one["versions"].keys() & two["versions"].keys())
        if one["versions"][name] != two["versions"][name]
    ]
    if one["content"] != two["content"]:
        reasons.append(f"another state of the library there ({one['content']}, commit {one['commit'][:12]})")
    if "processor" not in one:
        reasons.append("a processor there that the record does not name")
    elif one["processor"] != two.get("processor"):
        reasons.append(f"{one['processor']} there and {two.get('processor')} here")
    return reasons


def _told(record: Record[Any]) -> dict[str, Any]:
    """What a second run has to repeat: all but the clocks, of which a curve may have a column."""
    told = {key: getattr(record, key) for key in ("metrics", "trace", "samples", "failure")}
    return told | {"curve": {name: column for name, column in record.curve.items() if name != "seconds"}}


def judge(record: Record[Any], again: Record[Any], reference: Sequence[Record[Any]]) -> Verdict:
    """Compare a record with what its second run left.

    Args:
        record: the record to verify.
        again: of the same cell, run again here.
        reference: records with the same parameters but the seed.
    """
    reasons = unlike(record.provenance, again.provenance)
    because = "made with " + "; ".join(reasons) if reasons else "made with this processor, these versions and this library"
    one, two = _told(record), _told(again)
    changed = [key for key in one if one[key] != two[key]]
    if not changed:
        return Verdict(True, "the same in every digit: parameters, metrics and trace", because)
    was, now = figures(record), figures(again)
    moved = {n: abs(was[n] - now[n]) / max(abs(was[n]), 1e-12) for n in was.keys() & now.keys() if was[n] != now[n]}
    most = max(moved, key=moved.__getitem__, default="")
    gap = f"{most} by {100 * moved[most]:.2g} %" if most else " and ".join(changed)
    if not reasons:
        return Verdict(False, f"differs, and must not on the same machine: {gap}", because)
    if len(reference) < FEWEST:
        few = f"the reference has {len(reference)} seeds of these parameters and a band takes {FEWEST}"
        return Verdict(None, f"differs ({gap} at most), and there is no band to tell whether that is chance: {few}", because)
    known = sum(not outside(r, [o for o in reference if o is not r]) for r in reference)
    seeds = f"the band of {len(reference)} seeds (in which {known} of them lie if left out themselves)"
    if wrong := outside(again, reference):
        listed = ", ".join(
            f"{name} {value:.4g} not in {low:.4g} to {high:.4g}" for name, (value, low, high) in wrong.items()
        )
        return Verdict(False, f"outside {seeds}: {listed}", because)
    return Verdict(True, f"inside {seeds}; not the same digits ({gap} at most)", because)


# ---- running a record again ----------------------------------------------------------------------------------------


def verify(paths: Sequence[Path], root: Path, work: Path, executor: Executor, jobs: int) -> int:
    """Run records again, say of each whether the same comes out, and return the exit status.

    Args:
        paths: the records.
        root: the checkout, whose reference records make the bands.
        work: folder for everything that is written; it is removed if all could be run.
        executor: where to run them.
        jobs: how many at a time.

    Raises:
        BatchError: if one of them is no record.
    """
    records = {path: _given(path) for path in paths}
    cells = {path: cell_of(record, path, work) for path, record in records.items()}
    failures = run_batch(list(cells.values()), executor, scratch=work / "progress", jobs=jobs)
    reference = []
    for path in sorted((root / "book" / "reference").rglob("*.json")):
        try:
            reference.append(load_record(path))
        except DamagedFileError as error:
            print(f"left out of the bands: {error}")
    statuses = []
    for path, cell in cells.items():
        if cell.name in failures:
            print(f"{path}\n  could not be run again: {failures[cell.name]}")
            statuses.append(2)
            continue
        verdict = judge(records[path], load_record(Path(cell.record)), peers(records[path], reference))
        print(f"{path}\n  {verdict.says}\n  {verdict.because}")
        statuses.append({True: 0, False: 1, None: 2}[verdict.agrees])
    if not failures:
        shutil.rmtree(work)
    return max(statuses)


def cell_of(record: Record[Any], path: Path, work: Path) -> Cell:
    """The cell that makes a record again. The records that it starts from are those beside it; they are read only."""
    path = path.resolve()
    name = f"{path.parent.name}_{path.stem}"
    new = str(work / f"{name}.json")
    return Cell(name, record.experiment, record.parameters.changes(), record=new, folder=str(path.parent))


def peers(record: Record[Any], records: Sequence[Record[Any]]) -> list[Record[Any]]:
    """The records with the same parameters but the seed."""

    def settings(other: Record[Any]) -> Any:
        return replace(other.parameters, seed=0)

    mine = [r for r in records if type(r.parameters) is type(record.parameters)]
    return [r for r in mine if settings(r) == settings(record)]


def _given(path: Path) -> Record[Any]:
    """A record that somebody names, which may be any file of theirs: no advice to delete it."""
    try:
        return load_record(path)
    except FileNotFoundError:
        raise BatchError(f"there is no file {path}") from None
    except (DamagedFileError, OSError, UnicodeDecodeError):
        raise BatchError(
            f"{path} is no record of a run, or damaged: --verify takes the .json file that a run left"
        ) from None
