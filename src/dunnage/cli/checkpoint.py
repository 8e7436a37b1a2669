"""`dunnage checkpoint` and `restore`: a container written down while it runs, and going on from there."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from dunnage.cli.control import each
from dunnage.cli.foreground import own_streams
from dunnage.cli.run import run_made
from dunnage.client import Container, Node


@click.command()
@click.option("--exit", "exit_", is_flag=True, help="Have it end; else it runs on.")
@click.option("--tcp-established", is_flag=True, help="Allow established TCP connections.")
@click.option("--ext-unix-sk", is_flag=True, help="Allow unix sockets whose other end is outside.")
@click.option("--file-locks", is_flag=True, help="Allow file locks.")
@click.option("--empty-ns", multiple=True, metavar="NAMESPACE", help="A namespace that is made new: network.")
@click.option("--work-path", type=click.Path(path_type=Path), metavar="DIR", help="Where criu has its logs meanwhile.")
@click.option("--parent-path", type=click.Path(path_type=Path), metavar="DIR", help="An earlier checkpoint to add to.")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_context
def checkpoint(
    context: click.Context,
    exit_: bool,
    tcp_established: bool,
    ext_unix_sk: bool,
    file_locks: bool,
    empty_ns: tuple[str, ...],
    work_path: Path | None,
    parent_path: Path | None,
    name: str,
    directory: Path,
) -> None:
    """Write the running container NAME down in DIRECTORY, which is new or empty.

    `dunnage restore DIRECTORY` lets it go on from there. With --rootfs or --bundle only the place of its files is
    remembered: they are expected there again. It needs criu.
    """

    async def write(node: Node, name: str) -> None:
        container = await node.get(name)
        await container.checkpoint(
            directory,
            exit=exit_,
            tcp=tcp_established,
            unix_sockets=ext_unix_sk,
            file_locks=file_locks,
            empty_namespaces=empty_ns,
            work_directory=work_path,
            parent=parent_path,
        )

    context.exit(asyncio.run(each(context.obj, (name,), write)))


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Do not wait; print the name. Output goes to `dunnage logs`.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal, where it had one.")
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it has ended.")
@click.option("--name", metavar="NAME", help="The container's name; else the one that it had.")
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_context
def restore(
    context: click.Context,
    detach: bool,
    interactive: bool,
    tty: bool,
    remove: bool,
    name: str | None,
    directory: Path,
) -> None:
    """Let a container go on from the checkpoint in DIRECTORY, as `dunnage run` would run it.

    The exit status is the command's; 125 when dunnage itself failed, or the checkpoint cannot be restored.
    """
    if detach and tty:
        raise click.UsageError("a detached container has no terminal: leave out -d or -t")
    stdio = None if detach else own_streams(interactive=interactive, terminal=tty)

    async def make(node: Node) -> Container:
        return await node.restore(
            directory,
            id=name,
            stdio=stdio,
            detached=detach,
            keep_stdin=interactive,
            remove_when_stopped=detach and remove,
        )

    context.exit(run_made(context.obj, make, detach=detach, remove=remove))
