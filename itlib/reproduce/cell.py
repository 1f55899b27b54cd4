"""A cell of a batch: one run of an experiment, or one page.

An experiment's cell calls its ``run`` and keeps the record. Where an experiment has a notebook (its header says which:
``itlib: {experiment: paper}``) and a page is wanted, papermill executes the notebook instead, with the same parameters, and
the notebook leaves the same record. Any other notebook is a chapter; its header says which records it ``reads``.

A cell is *fresh* if what it would leave is there, made from the same parameters and the same code
(:mod:`itlib.experiments.provenance`); for a page that is the text of its notebook, too, and the records that it reads. Dates
mean nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import Parameters
from itlib.experiments.files import write_atomically
from itlib.experiments.provenance import content, content_of
from itlib.experiments.records import load_record, save_record
from itlib.reproduce.kernel import Spare

_HEADER = re.compile(r"\A# ---\n((?:#.*\n)*?)# ---\n")


class BatchError(Exception):
    """Something the user can mend; the message is all that they need to see."""


@dataclass(frozen=True)
class Cell:
    """One run of an experiment, or one page.

    Args:
        name: unique, and the stem of what it leaves.
        experiment: which it runs; "" for a chapter.
        parameters: of the experiment, those that differ from the defaults; of a chapter, for its parameters cell.
        record: where its record goes; "" for a chapter.
        folder: where the records are that it starts from; the folder of its own record if left out.
        notebook: path of the jupytext source behind its page; "" if it leaves none.
        page: where the executed notebook goes.
        title: appended to its first heading.
        after: names of cells that have to end first, and to succeed unless this is a chapter.
        reads: folders of records, and files, that the page shows: it is stale when they change.
        work: how long it takes, in tilts.
    """

    name: str
    experiment: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    record: str = ""
    folder: str = ""
    notebook: str = ""
    page: str = ""
    title: str = ""
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    work: int = 5

    @property
    def chapter(self) -> bool:
        """Whether it takes what the others leave free, and is made even if what it waits for failed."""
        return not self.experiment

    def asked(self) -> Parameters:
        """The parameters of its experiment, as the record has to show them."""
        found: Parameters = EXPERIMENTS[self.experiment].parameters.of(self.parameters)
        return found

    def injected(self) -> dict[str, Any]:
        """What papermill gives its notebook. Paths begin at the notebook's folder, and say nothing of this machine."""
        kept = {"record": os.path.relpath(self.record, Path(self.notebook).parent)} if self.record else {}
        return self.parameters | kept

    def code(self) -> str:
        """Hash of the code that it runs: a process that would run another one is refused."""
        if self.notebook:
            return content_of(Path(self.notebook).read_text("utf-8"))
        return content(EXPERIMENTS[self.experiment].parameters.__module__)

    def key(self) -> str:
        """Hash of everything the page depends on."""
        text = _HEADER.sub("", Path(self.notebook).read_text("utf-8"))  # editors rewrite the header
        digest = hashlib.sha256(text.encode())
        digest.update(json.dumps([content_of(text), self.injected(), self.title], sort_keys=True).encode())
        read = map(Path, self.reads)
        for path in sorted(p for place in read for p in ([place] if place.is_file() else place.rglob("*.json"))):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def is_fresh(self) -> bool:
        """Whether what the cell would leave is there already.

        Raises:
            DamagedFileError: if its record can't be read.
        """
        return (not self.record or self._record_is_fresh()) and (not self.page or self._page_is_fresh())

    def _record_is_fresh(self) -> bool:
        if not Path(self.record).exists():
            return False
        found, asked = load_record(Path(self.record)), self.asked()
        return bool(found.parameters == asked) and found.provenance["content"] == content(type(asked).__module__)

    def _page_is_fresh(self) -> bool:
        try:
            metadata = json.loads(Path(self.page).read_text("utf-8"))["metadata"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(metadata.get("itlib", {}).get("key") == self.key())


# ---- notebooks -----------------------------------------------------------------------------------------------------


def header(notebook: Path) -> dict[str, Any]:
    """What the header of a notebook says under ``itlib``: the experiment that it is the page of, and what it reads."""
    import yaml

    lines = _HEADER.match(notebook.read_text("utf-8"))
    found = yaml.safe_load("\n".join(line[2:] for line in lines[1].splitlines())) if lines else {}
    own: dict[str, Any] = found.get("jupyter", {}).get("itlib", {})
    return own


def parameters_of(notebook: str) -> dict[str, Any]:
    """Names and defaults in the parameters cell of a notebook."""
    import jupytext

    cell = next(c for c in jupytext.read(notebook).cells if "parameters" in c.metadata.get("tags", ()))
    lines = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
    return {ast.unparse(line.targets[0]): ast.literal_eval(line.value) for line in lines}


# ---- what a cell does ----------------------------------------------------------------------------------------------


def execute(cell: Cell, spare: Spare | None = None) -> None:
    """Run a cell in this process, and leave its record and its page.

    Args:
        cell: what to run.
        spare: becomes the kernel of its page; one is started if left out.

    Raises:
        BatchError: naming what went wrong in the notebook.
        Exception: whatever the experiment raises.
    """
    if not cell.notebook:
        asked = cell.asked()
        record = Path(cell.record)
        save_record(record, EXPERIMENTS[cell.experiment].run(asked, Path(cell.folder or record.parent)))
        return
    before = cell.key()
    done = _papermill(cell, spare)
    if cell.page:
        # Its record is among what some pages read, and is written meanwhile; the code must not be.
        if not cell.reads and cell.key() != before:
            raise BatchError("its notebook or the library was edited while it ran: run it again")
        _leave(cell, done)


def _papermill(cell: Cell, spare: Spare | None) -> Any:
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError

    notebook = jupytext.read(cell.notebook)
    if cell.title:
        first = next(c for c in notebook.cells if c.cell_type == "markdown")
        first.source = re.sub(r"^# .*$", rf"\g<0>: {cell.title}", first.source, count=1, flags=re.MULTILINE)
    # Kernels that start together may be given the same port, and then one never answers or ends at once: nothing ran,
    # so try again. Where sockets can be files, nobody else is given them.
    for attempt in (1, 2, 3):
        with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as sockets:
            try:
                done = papermill.execute_notebook(
                    notebook,
                    None,
                    parameters=cell.injected(),
                    kernel_name="python3",
                    kernel_manager_class=_kernel_manager(errors, sockets, spare if attempt == 1 else None),
                    cwd=str(Path(cell.notebook).parent),
                    progress_bar=False,
                )
                for part in done.cells:
                    if part.cell_type == "code":
                        part.outputs = joined(part.outputs)
                return done
            except papermill.PapermillExecutionError as error:
                advice = "; run fewer --jobs" if "memory" in f"{error.ename} {error.evalue}".lower() else ""
                raise BatchError(f"{error.ename}: {error.evalue}{advice}") from None
            except DeadKernelError:
                said = _last_line(errors)
                raise BatchError(
                    f"its kernel died{said or ' without a word; if memory was short, run fewer --jobs'}"
                ) from None
            except RuntimeError as error:
                said = _last_line(errors)
                if attempt == 3 or not ("didn't respond" in str(error) or "Address already in use" in said):
                    raise BatchError(f"its kernel did not start{said or f': {error}'}") from None
    raise AssertionError


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs of a cell, with the pieces of a stream put together: where a kernel cuts it depends on the moment."""
    found: list[Any] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output["output_type"] == last.get("output_type") == "stream" and output["name"] == last["name"]:
            last["text"] += output["text"]
        else:
            found.append(output)
    return found


def _kernel_manager(errors: Any, sockets: str, spare: Spare | None) -> type:
    """The kernel of this environment and no other that is called the same, with the library of this process.

    Args:
        errors: a file for what it writes to its standard error.
        sockets: a folder for those that it listens at. If its name leaves no room for theirs, ports are used, as on Windows.
        spare: becomes the kernel; None starts a new process.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    files = os.name == "posix" and len(sockets) < 80  # of about 100 characters

    class Own(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options, **({"transport": "ipc", "ip": f"{sockets}/kernel"} if files else {}))

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "itlib.reproduce.kernel", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]  # it is called by name only
            await super().start_kernel(stderr=errors, **options)

        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            if spare is None:
                await super()._async_launch_kernel(kernel_cmd, **options)
                return
            own: Any = self.provisioner
            own.process, own.pid, own.pgid = spare.launch(kernel_cmd, **options), spare.pid, spare.pid
            self._reconcile_connection_info(own.connection_info)

    return Own


def _last_line(errors: Any) -> str:
    """The last line of a kernel's standard error that names an error, after a colon; "" if there is none."""
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").splitlines()
    named = [line.strip() for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b|Fatal |it would import ", line)]
    return f": {named[-1]}" if named else ""


def _leave(cell: Cell, done: Any) -> None:
    """Write a page. What differs from run to run without meaning anything (times, ids, progress bars) is left out."""
    import nbformat

    done.metadata.pop("papermill", None)
    done.metadata["itlib"] = {**done.metadata.get("itlib", {}), "key": cell.key()}
    for i, c in enumerate(done.cells):
        c.id = f"cell-{i}"
        for noisy in ("papermill", "execution"):
            c.metadata.pop(noisy, None)
        if "injected-parameters" in c.metadata.get("tags", []):
            c.metadata.tags += [tag for tag in done.cells[i - 1].metadata.tags if tag != "parameters"]
        if c.cell_type == "code":
            c.outputs = [o for o in c.outputs if o.get("name") != "stderr"]
    write_atomically(Path(cell.page), nbformat.writes(done).encode())
