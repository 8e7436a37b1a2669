"""`dunnage`: the group of commands, each imported only when it is used, and what a failure looks like."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dunnage import __version__, errors

if TYPE_CHECKING:
    from dunnage.client import Node

# where the exit status is the container's command's, our own failure needs one that it seldom has (as with docker)
OWN_FAILURE = 125

_COMMANDS = {
    "run": ("dunnage.cli.run:run", "Run a command in a new container."),
    "exec": ("dunnage.cli.exec:exec_", "Run a further command in a running container."),
    "ps": ("dunnage.cli.ps:ps", "List containers, those of every containerd on this machine included."),
    "logs": ("dunnage.cli.logs:logs", "Show what a detached container wrote."),
    "kill": ("dunnage.cli.control:kill", "Send a signal to containers."),
    "wait": ("dunnage.cli.control:wait", "Wait for containers to end, and print their exit statuses."),
    "rm": ("dunnage.cli.control:rm", "Remove containers."),
    "inspect": ("dunnage.cli.inspect:inspect", "Show everything about a container, as JSON."),
    "events": ("dunnage.cli.events:events", "Show events as they happen."),
    "status": ("dunnage.cli.status:status", "Show the keepers and workers of this machine."),
    "stop": ("dunnage.cli.stop:stop", "Remove all local containers and end idle keepers."),
    "doctor": ("dunnage.cli.doctor:doctor", "Say what is missing on this machine, and how to get it."),
    "install": ("dunnage.cli.install:install", "Write the shim that containerd runs."),
}


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
    help="Keeps the names of local containers apart.",
)
@click.pass_context
def cli(context: click.Context, namespace: str) -> None:
    """Containers with a small, crash-only shim: under containerd, and without it."""
    context.obj = namespace


def main(arguments: Sequence[str] | None = None) -> None:
    """The `dunnage` program. Ends the process with the command's exit status."""
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]  # asyncio does without: 10 ms for nothing
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    runs_command = next((one for one in arguments if one in _COMMANDS), "") in ("run", "exec")
    try:
        status = cli.main(args=arguments, prog_name="dunnage", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(OWN_FAILURE if runs_command else 2)
    except click.ClickException as error:
        error.show()
        sys.exit(OWN_FAILURE if runs_command else 1)
    except errors.Error as error:
        complain(error)
        sys.exit(OWN_FAILURE if runs_command else 1)
    except BrokenPipeError:
        sys.stdout = None  # nobody reads: the interpreter must not flush it once more
        sys.exit(141)
    except OSError as error:
        complain(error)
        sys.exit(OWN_FAILURE if runs_command else 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def complain(error: errors.Error | OSError) -> None:
    """Say on stderr what went wrong, and what is missing where it is root."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {(error.strerror or '').lower()}"
    is_denied = isinstance(error, errors.PermissionDenied | PermissionError)
    hint = " (dunnage needs root)" if is_denied and os.geteuid() != 0 else ""
    print(f"dunnage: {text}{hint}", file=sys.stderr)


def complain_of_silence(node: Node) -> None:
    """Say on stderr which keys did not answer: what is printed is not all there is."""
    for key in sorted(node.silent_keys):
        print(f"dunnage: the worker of {key} does not answer; its log is in {node.state}/{key}/log", file=sys.stderr)


if __name__ == "__main__":
    main()
