"""`dunnage`: the group of commands, each imported only when it is used, and what a failure looks like."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dunnage import __version__, errors

if TYPE_CHECKING:
    from dunnage.client import Node

# where the exit status is the container's command's, our own failure needs one that it seldom has (as with docker)
OWN_FAILURE = 125
VERBOSE = "DUNNAGE_VERBOSE"
HINT = "hint: "
"""What of an error's notes is said in any case (``client.failures``)."""

_COMMANDS = {
    "run": ("dunnage.cli.run:run", "Run a command in a new container."),
    "exec": ("dunnage.cli.exec:exec_", "Run a further command in a running container."),
    "ps": ("dunnage.cli.ps:ps", "List containers, those of every containerd on this machine included."),
    "logs": ("dunnage.cli.logs:logs", "Show what a detached container wrote."),
    "kill": ("dunnage.cli.control:kill", "Send a signal to containers."),
    "pause": ("dunnage.cli.control:pause", "Freeze containers."),
    "resume": ("dunnage.cli.control:resume", "Let paused containers go on."),
    "update": ("dunnage.cli.update:update", "Change the limits of containers, also while they run."),
    "stats": ("dunnage.cli.stats:stats", "Show what containers use: processor, memory, processes, disks."),
    "checkpoint": ("dunnage.cli.checkpoint:checkpoint", "Write a running container down in a directory."),
    "restore": ("dunnage.cli.checkpoint:restore", "Let a container go on from a checkpoint."),
    "wait": ("dunnage.cli.control:wait", "Wait for containers to end, and print their exit statuses."),
    "rm": ("dunnage.cli.control:rm", "Remove containers."),
    "inspect": ("dunnage.cli.inspect:inspect", "Show everything about a container, as JSON."),
    "events": ("dunnage.cli.events:events", "Show events as they happen."),
    "status": ("dunnage.cli.status:status", "Show the keepers and workers of this machine."),
    "stop": ("dunnage.cli.stop:stop", "Remove all local containers and end idle keepers."),
    "doctor": ("dunnage.cli.doctor:doctor", "Say what is missing on this machine, and how to get it."),
    "install": ("dunnage.cli.install:install", "Write the shim that containerd runs."),
}


class _SystemFailure(Exception):
    """An OSError on its way through click."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class LazyGroup(click.Group):
    """A group whose commands are modules, imported when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            raise _SystemFailure(error) from error  # click has an exit status of its own for a pipe without a reader

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dunnage", message="%(prog)s %(version)s")
@click.option(
    "-n",
    "--namespace",
    default="default",
    envvar="DUNNAGE_NAMESPACE",
    show_default=True,
    metavar="NAME",
    help="Where local containers have their names; ps, events and status show all.",
)
@click.option("--verbose", is_flag=True, envvar=VERBOSE, help="Of a failure of the runtime, say all that is known.")
@click.pass_context
def cli(context: click.Context, namespace: str, verbose: bool) -> None:
    """Containers with a small, crash-only shim: under containerd, and without it."""
    context.obj = namespace
    if verbose:
        os.environ[VERBOSE] = "1"  # whatever complains looks there


def main(arguments: Sequence[str] | None = None) -> None:
    """The `dunnage` program. Ends the process with the command's exit status."""
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # asyncio does without: 10 ms for nothing
    _open_standard_streams()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    runs_command = next((one for one in arguments if one in _COMMANDS), "") in ("run", "exec", "restore")
    try:
        status = cli.main(args=arguments, prog_name="dunnage", standalone_mode=False)
        sys.stdout.flush()
    except (_SystemFailure, OSError) as error:
        _end_by(error.error if isinstance(error, _SystemFailure) else error, OWN_FAILURE if runs_command else 1)
    except click.UsageError as error:
        error.show()
        sys.exit(OWN_FAILURE if runs_command else 2)
    except click.ClickException as error:
        error.show()
        sys.exit(OWN_FAILURE if runs_command else 1)
    except errors.Error as error:
        complain(error)
        sys.exit(OWN_FAILURE if runs_command else 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def _end_by(error: OSError, status: int) -> NoReturn:
    # what could not be written is not to be tried once more by the interpreter at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        sys.exit(128 + signal.SIGPIPE)
    complain(error)
    sys.exit(status)


def complain(error: errors.Error | OSError, thing: str = "") -> None:
    """Say on stderr what went wrong, with what where the error does not say it, and what is missing if it is root."""
    text = str(error).strip()  # a runtime's own words end as they please
    name = thing.partition(" ")[2]
    if thing not in text and repr(name) not in text:  # the name alone may be any word: "a", "process"
        text = f"{thing}: {text}"
    if isinstance(error, OSError) and error.strerror is not None:
        text = error.strerror.lower() if error.filename is None else f"{error.filename}: {error.strerror.lower()}"
    is_denied = isinstance(error, errors.PermissionDenied | PermissionError)
    hint = " (dunnage needs root)" if is_denied and os.geteuid() != 0 else ""
    say(f"{text}{hint}")
    for note in getattr(error, "__notes__", ()):
        if note.startswith(HINT) or os.environ.get(VERBOSE):
            say(note)


def say(text: str) -> None:
    """Say something on stderr; where that cannot be written there is nobody to tell, and the exit status says it."""
    with contextlib.suppress(OSError):
        print(f"dunnage: {text}", file=sys.stderr, flush=True)


def complain_of_silence(node: Node) -> None:
    """Say on stderr which keys did not answer: what is printed is not all there is."""
    for key in sorted(node.silent_keys):
        say(f"the worker of {key} does not answer; its log is in {node.state}/{key}/log")


def _open_standard_streams() -> None:
    """Have 0, 1 and 2 open: a stream that our caller closed must not be the number of a file that we open."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115 - it is for the whole program
            setattr(sys, name, stream)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of others, and locales that lack our characters


if __name__ == "__main__":
    main()
