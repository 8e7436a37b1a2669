"""`dunnage run`: a command in a new container."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Literal

import click

from dunnage import errors
from dunnage.cli.foreground import failing_as_docker_does, own_streams, run_in_foreground
from dunnage.cli.memory import say_if_out_of_memory
from dunnage.cli.signals import Signals, run_with_signals
from dunnage.client import Container, Node, Settings
from dunnage.spec import parse_cpus, parse_memory


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Do not wait; print the name. Output goes to `dunnage logs`.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("--name", metavar="NAME", help="The container's name; else one is made up.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set a variable; K alone takes ours, where it is set.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory of the command.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="User to run as, by name or number.")
@click.option("--hostname", metavar="NAME", help="The host name it sees; else its own name.")
@click.option(
    "-v",
    "--mount",
    multiple=True,
    metavar="MOUNT",
    help="SOURCE:TARGET[:ro], or type=bind|tmpfs|…,source=…,target=…[,readonly].",
)
@click.option("-m", "--memory", metavar="BYTES", help="Limit of its memory: 64M, 1G.")
@click.option("--cpus", metavar="N", help="Limit of its processor time, in processors: 0.5.")
@click.option(
    "--pids",
    "--pids-limit",
    "pids",
    type=click.IntRange(min=1),
    metavar="N",
    help="Limit of its processes and threads.",
)
@click.option(
    "--network", type=click.Choice(["host", "none"]), default="host", show_default=True, help="This machine's, or none."
)
@click.option("--read-only", is_flag=True, help="It may not write to its root.")
@click.option("--rootfs", type=click.Path(file_okay=False, exists=True, path_type=Path), help="A directory as root.")
@click.option("--bundle", type=click.Path(file_okay=False, exists=True, path_type=Path), help="An OCI bundle.")
@click.option("--runtime", default="runc", show_default=True, metavar="runc|crun|PATH", help="The OCI runtime.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    context: click.Context,
    detach: bool,
    interactive: bool,
    tty: bool,
    remove: bool,
    name: str | None,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    hostname: str | None,
    mount: tuple[str, ...],
    memory: str | None,
    cpus: str | None,
    pids: int | None,
    network: Literal["host", "none"],
    read_only: bool,
    rootfs: Path | None,
    bundle: Path | None,
    runtime: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a new container.

    With neither --rootfs nor --bundle its root is this machine's own /, under a layer that is thrown away with the
    container: it changes nothing, but it can read what root can read.

    The exit status is the command's; 125 when dunnage itself failed, 126 when the command cannot be executed, 127 when
    it is not there.
    """
    if detach and tty:
        raise click.UsageError("a detached container has no terminal: leave out -d or -t")
    stdio = None if detach else own_streams(interactive=interactive, terminal=tty)
    settings = Settings(
        args=command,
        rootfs=rootfs,
        bundle=bundle,
        env=resolve_variables(env),
        cwd=workdir,
        user=user,
        hostname=hostname,
        mounts=mount,
        memory_bytes=None if memory is None else parse_memory(memory),
        cpus=None if cpus is None else parse_cpus(cpus),
        pids=pids,
        network=network,
        read_only=read_only,
        runtime=runtime,
    )

    async def make(node: Node) -> Container:
        return await node.create(
            settings,
            id=name,
            stdio=stdio,
            detached=detach,
            keep_stdin=interactive,
            remove_when_stopped=detach and remove,
        )

    context.exit(run_made(context.obj, make, detach=detach, remove=remove))


def resolve_variables(texts: Iterable[str]) -> list[str]:
    """``K=V`` as it is; ``K`` with the value that it has here, and left out where it has none."""
    found: list[str] = []
    for text in texts:
        name, separator, _ = text.partition("=")
        if not name:
            raise errors.InvalidArgument(f"variable {text!r} has no name")
        if separator or name in os.environ:
            found.append(text if separator else f"{name}={os.environ[name]}")
    return found


def run_made(namespace: str, make: Callable[[Node], Awaitable[Container]], *, detach: bool, remove: bool) -> int:
    """Run the container that ``make`` makes, in the foreground or detached; the program's exit status."""
    run = _run_detached if detach else _run_here

    async def work(signals: Signals) -> int:
        return await run(namespace, make, remove, signals)

    with failing_as_docker_does():
        return run_with_signals(work)


async def _run_here(
    namespace: str, make: Callable[[Node], Awaitable[Container]], remove: bool, signals: Signals
) -> int:
    """Make a container, start it, and wait until it has ended; its exit status."""
    async with Node(namespace=namespace) as node:
        container = await make(node)
        try:
            status = await run_in_foreground(container, signals)
        except errors.Error:
            # a container that was never started is nobody's; one whose worker failed us may still be running
            await _remove_if_not_running(container)
            raise
        except BaseException:
            await container.remove(force=True)
            raise
        await say_if_out_of_memory(container, status)
        if remove:
            await container.remove()
        return status


async def _run_detached(
    namespace: str, make: Callable[[Node], Awaitable[Container]], remove: bool, signals: Signals
) -> int:
    """Make a container, start it, and print its name."""
    async with Node(namespace=namespace) as node:
        container = await make(node)
        try:
            await container.start()
        except errors.Error:
            await _remove_if_not_running(container)
            raise
        except BaseException:
            await container.remove(force=True)
            raise
        signals.begin_tidying()
        if remove:
            _remove_when_stopped(namespace, container.id)
        print(container.id, flush=True)
        return 0


async def _remove_if_not_running(container: Container) -> None:
    with contextlib.suppress(errors.FailedPrecondition, errors.Unavailable):
        await container.remove()


def _remove_when_stopped(namespace: str, id: str) -> None:
    """Leave a process behind that waits: with the container's own worker there is nobody else to remove it."""
    subprocess.Popen(
        [sys.executable, "-m", "dunnage.cli.main", "--namespace", namespace, "rm", "--when-stopped", id],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
