"""`dunnage exec`: a further command in a running container."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import Any

import click

from dunnage import errors
from dunnage.cli.foreground import failing_as_docker_does, own_streams, run_in_foreground
from dunnage.cli.run import resolve_variables
from dunnage.cli.signals import Signals, run_with_signals
from dunnage.client import LOCAL_KEY, Container, Node, Process, Status, Stdio
from dunnage.spec import resolve_user


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Do not wait; its output goes nowhere.")
@click.option("-i", "--interactive", is_flag=True, help="Give it our standard input.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", multiple=True, metavar="K=V", help="Set a variable; K alone takes ours, where it is set.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory of the command.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="User to run as, by name or number.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(
    context: click.Context,
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    name: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in the running container NAME, with that container's environment and user.

    The exit status is the command's; 125, 126 and 127 as for `dunnage run`.
    """
    if detach and tty:
        raise click.UsageError("a detached command has no terminal: leave out -d or -t")
    if command[0] == "--":  # `exec NAME -- CMD`: what stands behind the first argument is not parsed any more
        command = command[1:]
    if not command:
        raise click.UsageError("no command to run")
    stdio = Stdio() if detach else own_streams(interactive=interactive, terminal=tty)
    variables = resolve_variables(env)
    with failing_as_docker_does(f"container {name}"):

        async def work(signals: Signals) -> int:
            return await _exec(context.obj, name, command, variables, workdir, user, stdio, detach, signals)

        context.exit(run_with_signals(work))


async def _exec(
    namespace: str,
    name: str,
    command: tuple[str, ...],
    env: list[str],
    cwd: str | None,
    user: str | None,
    stdio: Stdio,
    detach: bool,
    signals: Signals,
) -> int:
    async with Node(namespace=namespace) as node:
        container = await node.get(name)
        oci_user = None if user is None else await _resolve_user(container, user)
        if detach:  # nobody waits for those that went before: whoever adds one clears away what has ended
            await node.delete_ended(await node.containers(keys=(LOCAL_KEY,)))
        process = await container.exec(command, env=env, cwd=cwd, user=oci_user, stdio=stdio, detached=detach)
        try:
            if detach:
                await process.start()
                return 0
            status = await run_in_foreground(process, signals)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                await _end(process)
            await _forget(process)
            raise
        await process.delete()
        return status


async def _resolve_user(container: Container, user: str) -> dict[str, Any]:
    # through the init's own root: whatever the container's passwd file is now, and wherever it is mounted
    state = await container.state()
    if state.status is not Status.RUNNING:
        raise errors.FailedPrecondition(f"container {container.id} is {state.status.value}, not running")
    return resolve_user(user, Path(f"/proc/{state.pid}/root"))


async def _end(process: Process) -> None:
    with contextlib.suppress(errors.Error):  # it was never started, or has ended
        await process.kill(signal.SIGKILL)
        await process.wait()


async def _forget(process: Process) -> None:
    try:
        await process.delete()
    except errors.Error:
        await process.close()  # it runs on, and the container's end will be its own
