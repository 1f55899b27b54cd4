"""Files that appear whole or not at all, and files of the repository that are found from anywhere.

What is written is written beside its place and moved there in one step.
"""

from __future__ import annotations

import errno
import os
import platform
from contextlib import suppress
from pathlib import Path


class DamagedFileError(ValueError):
    """A record or checkpoint that is truncated or not what it should be; the message says what to do."""


class MissingFileError(FileNotFoundError):
    """Something of the repository that is not there; the message says how to get it."""


def located(path: Path | str) -> Path:
    """A file or folder of the repository that a notebook names as seen from its own folder, wherever it is run.

    Args:
        path: such as "../book/reference/paper": as it is seen from the working folder, or else from the notebooks of the
            checkout that this library lies in.

    Raises:
        MissingFileError: if it is in neither place.
    """
    here, there = Path(path), Path(__file__).parents[2] / "notebooks" / path
    for place in (here, there):
        if place.exists():
            return place
    raise MissingFileError(
        f"{path} is not here: records and figures come with the repository (git clone it and open the notebook there), "
        "and runs of your own with 'make book' in it; or set this notebook's parameter to where you keep them"
    )


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
    errno.EFBIG: ("a limit on the size of files (ulimit -f) forbids writing", "raise it"),
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
