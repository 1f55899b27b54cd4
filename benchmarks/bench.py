"""Measure speed as ratios in one run, write a record, and compare it with the committed one: ``make bench``.

Which library is the faster one differs between kinds of processor, and so do the ratios. A record keeps each kind apart,
{"processors": {kind: {"parts": ..., "beyond": ...}}}, and a kind is compared with itself only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import parts
import torch
from clocks import load
from judging import TOLERANCE, met, regressions

from itlib.experiments.files import write_atomically
from itlib.experiments.provenance import provenance
from itlib.experiments.records import compact

HERE = Path(__file__).parent
#: The record in git, which the book's chapter shows, and where a run of today goes.
COMMITTED, FOUND = HERE.parent / "book" / "bench.json", HERE.parent / "_build" / "bench.json"
#: In the order in which they run; the last ones only where they are asked for.
NAMES = (
    "sampling",
    "training",
    "attempts",
    "equal",
    "grid",
    "recommended",
    "growth",
    "seeds",
    "workers",
    "imports",
    "cluster",
    "gpu",
)
PARTS = {name: getattr(parts, name) for name in NAMES}
ASKED = ("book", "full-book")


def measure(name: str) -> dict[str, Any]:
    """One part, and what it was measured on."""
    before, start = load(), time.perf_counter()
    part = parts.book(full=name == "full-book") if name in ASKED else PARTS[name]()
    made = provenance("itlib")
    made["versions"] |= {"diffusers": version("diffusers")}
    made |= {"seconds": time.perf_counter() - start, "load before": before}
    result: dict[str, Any] = compact({**part, "made": made})
    return result


def show(name: str, part: dict[str, Any]) -> None:
    """Print the figures of a part."""
    for kind in ("ratios", "absolute"):
        for what, found in part[kind].items():
            target = ""
            if "target" in found:
                sign = "≥" if found["better"] == "high" else "≤"
                target = f"{sign} {found['target']:g} {'ok' if met(found) else 'MISSED'}"
            unit = found.get("unit", "")
            values = f"{found['median']:9.3f}  ({found['low']:.3f} to {found['high']:.3f}) {unit}"
            print(f"  {what:<44}{values:<42}{target}", flush=True)


def read(path: Path) -> dict[str, Any]:
    """What is recorded of each kind of processor, or nothing."""
    return json.loads(path.read_text())["processors"] if path.exists() else {}


def _same(made: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether a part was measured by this commit of the library, and on a machine like this one."""
    return all(made[key] == here[key] for key in ("commit", "content", "platform"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    asked = {name: (part.__doc__ or "").splitlines()[0] for name, part in PARTS.items()}
    asked |= {"book": str(parts.book.__doc__), "full-book": "The same, and then the full profile."}
    parser = argparse.ArgumentParser(
        prog="benchmarks/bench.py",
        description="Measure in turns, in one run: itlib, what one would publish, and nothing but matrix products.\n"
        "Figures are ratios, or marked as absolute. Ratios that are worse than those of the committed record,\n"
        f"{os.path.relpath(COMMITTED)}, for this kind of processor by more than {TOLERANCE:.0%} are reported, with exit\n"
        "status 1.",
        epilog="parts:\n" + "".join(f"  {name:<12} {what}\n" for name, what in asked.items())
        + "book and full-book run only where they are asked for.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=(*PARTS, *ASKED), metavar="PART", help="these parts")
    parser.add_argument("--record", action="store_true", help="write the committed record anew, part by part")
    parser.add_argument(
        "--resume", action="store_true", help="keep what a run of this commit has measured before it was stopped"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    out, here = COMMITTED if options.record else FOUND, provenance("itlib")
    kind = here["processor"]
    committed = read(COMMITTED).get(kind, {"parts": {}})
    kinds = read(out) if options.record or options.resume else {}
    record = kinds.setdefault(kind, {"parts": {}})
    done = {name for name, part in record["parts"].items() if options.resume and _same(part["made"], here)}
    names = [name for name in options.only or PARTS if name not in done]
    if "gpu" in names and not torch.cuda.is_available():
        names.remove("gpu")
    start = time.perf_counter()
    for i, name in enumerate(names, 1):
        print(f"[{i}/{len(names)}] {name}", flush=True)
        record["parts"][name] = measure(name)
        if {"grid", "cluster", "workers"} <= record["parts"].keys():
            record["beyond"] = compact(parts.beyond(record["parts"]))
        show(name, record["parts"][name])
        record["parts"] = {part: record["parts"][part] for part in (*PARTS, *ASKED) if part in record["parts"]}
        write_atomically(out, (json.dumps({"processors": kinds}, indent=1) + "\n").encode())
    print(f"{len(names)} parts in {(time.perf_counter() - start) / 60:.1f} minutes: {os.path.relpath(out)}")
    measured = {"parts": {name: part for name, part in record["parts"].items() if name in names}}
    worse = regressions(committed, measured)
    if new := [name for name in names if name not in committed["parts"]]:
        print(f"Nothing is committed of this kind of processor, {kind}, to compare with: {', '.join(new)}")
    for sentence in worse:
        print(f"worse by more than {TOLERANCE:.0%}: {sentence}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
