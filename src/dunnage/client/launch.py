"""Starting a worker for a local bundle: what containerd does with a shim's binary, done by the client.

The launcher is run as containerd runs it, with the bundle as working directory and without an address, which is what
makes it the node's `local` key.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dunnage import errors

_TIMEOUT_S = 30.0
# what containerd tells its shims; in a client's environment it would mean somebody else's containerd
_CONTAINERD_ENVIRONMENT = ("TTRPC_ADDRESS", "GRPC_ADDRESS", "MAX_SHIM_VERSION", "SCHED_CORE", "NAMESPACE")


def launcher_command() -> list[str]:
    """How this installation's launcher is run."""
    launcher = Path(__file__).resolve().parent.parent / "launcher.py"
    return [sys.executable, "-I", "-S", "-E", str(launcher)]


async def start(bundle: Path, namespace: str, id: str, command: Sequence[str] | None = None) -> str:
    """Have a worker answer for this bundle; returns the path of the socket it listens on.

    When cancelled, the launcher is waited for first: the bundle's `address` file then says whom to tell.
    """
    address = (await _run("start", bundle, namespace, id, command)).decode(errors="replace").strip()
    if not address.startswith("unix://"):
        raise errors.Internal(f"the launcher answered {address[:80]!r} where an address was expected")
    return address.removeprefix("unix://")


async def delete(bundle: Path, namespace: str, id: str, command: Sequence[str] | None = None) -> None:
    """Clean up after a container whose worker is gone: what containerd does with a dead shim."""
    await _run("delete", bundle, namespace, id, command, "-bundle", str(bundle))


async def _run(action: str, bundle: Path, namespace: str, id: str, command: Sequence[str] | None, *flags: str) -> bytes:
    environment = {name: value for name, value in os.environ.items() if name not in _CONTAINERD_ENVIRONMENT}
    try:
        process = await asyncio.create_subprocess_exec(
            *(launcher_command() if command is None else command),
            *("-namespace", namespace, "-id", id, *flags, action),
            cwd=bundle,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C at our terminal is for us: half a launch is more to clear away than one
        )
    except FileNotFoundError:
        if bundle.is_dir():
            raise
        raise errors.NotFound(f"container {id} does not exist") from None
    answer = asyncio.ensure_future(asyncio.wait_for(process.communicate(), _TIMEOUT_S))
    try:
        output, complaint = await asyncio.shield(answer)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise errors.DeadlineExceeded(f"no worker answered for container {id} within {_TIMEOUT_S:.0f} s") from None
    except asyncio.CancelledError:
        await _end(process, answer)
        raise
    if process.returncode != 0:
        said = complaint.decode(errors="replace").strip() or f"the launcher ended with status {process.returncode}"
        raise errors.Unavailable(f"no worker for container {id}: {said}")
    return output


async def _end(process: asyncio.subprocess.Process, answer: asyncio.Future[tuple[bytes, bytes]]) -> None:
    try:
        await answer
    finally:
        if process.returncode is None:  # it took too long, or we were cancelled once more
            process.kill()
            await process.wait()
