"""The kernel of a page: this environment's Python, and the library that the batch runs from.

Most of what a kernel takes to start is the import of torch and of what draws. So where processes can be forked a *spare* one
is: a copy of its worker, which has imported what its page will, and which becomes the kernel once it is told where its
connection file lies. Of its worker it keeps nothing but the modules.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn


def main(arguments: list[str]) -> None:
    """Start it, unless it would import another library than the batch, whose name the pages would carry."""
    spec = PathFinder.find_spec("itlib")
    found, wanted = Path((spec and spec.origin) or "").parent.resolve(), Path(os.environ["ITLIB_PACKAGE"])
    if found != wanted:
        sys.exit(f"it would import {found} and not {wanted}: run the batch with the Python of its own checkout")
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(arguments)


class Spare:
    """A fork of this process that waits to become a kernel, and ends with it.

    It is handled as a :class:`subprocess.Popen` is. Fork before any thread is started.
    """

    stdin = stdout = stderr = None

    def __init__(self) -> None:
        self.returncode: int | None = None
        self._orders, there = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            _wait(there)
        there.close()

    def launch(self, command: list[str], *, env: dict[str, str], stderr: Any, cwd: str | None = None, **_: Any) -> Spare:
        """Let it be the kernel of a command that would start a new one; the other options are those of any kernel."""
        changed = {name: value for name, value in env.items() if os.environ.get(name) != value}
        changed["JPY_PARENT_PID"] = str(os.getpid())  # ends with it, as a kernel does that is started anew
        order = json.dumps({"arguments": command[command.index("-f") :], "cwd": cwd or os.getcwd(), "env": changed})
        socket.send_fds(self._orders, [order.encode()], [stderr.fileno()])
        self._orders.recv(1)  # it has a group of its own by then, which can be signalled
        self._orders.close()
        return self

    def poll(self) -> int | None:
        """Its exit status, if it has ended."""
        return self._reap(os.WNOHANG)

    def wait(self) -> int | None:
        """Its exit status, when it has ended."""
        return self._reap(0)

    def _reap(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def _wait(orders: socket.socket) -> NoReturn:
    """In the fork: wait, and become a kernel, or end if none is wanted."""
    status = 1
    try:
        os.setsid()
        for name in os.listdir("/proc/self/fd"):  # else whoever reads what its worker writes would wait for this one, too
            if int(name) > 2 and int(name) != orders.fileno():
                with suppress(OSError):
                    os.close(int(name))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        message, descriptors, *_ = socket.recv_fds(orders, 1 << 16, 1)
        if message:
            order = json.loads(message)
            os.dup2(descriptors[0], 2)
            orders.send(b".")
            os.environ.update(order["env"])
            os.chdir(order["cwd"])
            sys.path.insert(0, order["cwd"])  # as for a new one
            sys.argv = [__file__, *order["arguments"]]
            main(order["arguments"])
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
