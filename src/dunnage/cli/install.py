"""`dunnage install`: writes the launcher that containerd runs, and removes it again; touches no file of anybody else.

What is written is a copy of ``launcher.py`` with its constants filled in. Its slow way becomes a text in it, compiled
only when it is needed: compiling takes a millisecond for a hundred lines, and the whole launch is to take ten.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click

from dunnage import __version__
from dunnage.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound, PermissionDenied

LAUNCHER = "containerd-shim-dunnage-v2"
DROP_IN = "containerd-shim-runc-v2"
BIN_DIR = Path("/usr/local/bin")

MARK = "# Written by dunnage install, which may replace and remove it."
OLDEST = (3, 11)
SHEBANG_LIMIT_BYTES = 127
"""Kernels before 5.1 cut a ``#!`` line there (BINPRM_BUF_SIZE is 128); newer ones hold 255."""

_SOURCE = Path(__file__).parent.parent / "launcher.py"  # read and never imported: it shares nothing with the package
_SYSTEM_PYTHON = "/usr/bin/python3"
_SLOW_WAY = "# --- the slow way ---\n"
_SLOW_WAY_END = "# --- end of the slow way ---\n"
_LOADER = '''
def slow_way(*asked):
    """Compile the slow way, which takes this name, and go it."""
    exec(compile(SLOW_WAY, "the slow way", "exec"), globals())
    return globals()["slow_way"](*asked)


'''


@click.command()
@click.option(
    "--bin-dir",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    default=BIN_DIR,
    show_default=True,
    help="Where containerd looks for shims: a directory of its PATH.",
)
@click.option("--as-runc", is_flag=True, help=f"Write {DROP_IN} too, so that io.containerd.runc.v2 is dunnage.")
@click.option("--uninstall", is_flag=True, help="Remove what was written there.")
def install(bin_dir: Path, as_runc: bool, uninstall: bool) -> None:
    """Write the shim that containerd runs."""
    if uninstall:
        removed = remove_launchers(bin_dir)
        for path in removed:
            click.echo(f"removed {path}")
        if not removed:
            click.echo(f"nothing in {bin_dir} was written by dunnage install")
        return
    for path in write_launchers(bin_dir, as_runc=as_runc):
        click.echo(f"wrote {path}")


def write_launchers(
    bin_dir: Path = BIN_DIR,
    *,
    as_runc: bool = False,
    python: str | None = None,
    interpreter: str | None = None,
    state_root: str = "/run/dunnage",
) -> list[Path]:
    """Write the launcher, and the drop-in with ``as_runc``; returns what was written, or writes nothing and raises.

    ``python`` is the interpreter that has dunnage (this one), ``interpreter`` the one that runs the launcher.
    """
    if not bin_dir.is_dir():
        raise NotFound(f"directory {bin_dir} does not exist" if not bin_dir.exists() else f"{bin_dir} is no directory")
    paths = [bin_dir / name for name in (LAUNCHER, DROP_IN)[: 2 if as_runc else 1]]
    for path in paths:
        if os.path.lexists(path) and not is_ours(path):
            raise AlreadyExists(f"{path} was not written by dunnage install, and stays as it is")
    text = rendered(
        _SOURCE.read_text(encoding="utf-8"),
        shebang=shebang(interpreter or launcher_interpreter()),
        python=python or sys.executable,
        version=__version__,
        state_root=state_root,
    )
    for path in paths:
        _write(path, text)
    return paths


def remove_launchers(bin_dir: Path = BIN_DIR) -> list[Path]:
    """Remove what ``write_launchers`` wrote there, and nothing else; returns what was removed."""
    removed = [path for name in (LAUNCHER, DROP_IN) if is_ours(path := bin_dir / name)]
    for path in removed:
        path.unlink()
    return removed


def rendered(source: str, *, shebang: str, python: str, version: str, state_root: str) -> str:
    """The launcher's text from its source; pure."""
    hot, mark, rest = source.partition(_SLOW_WAY)
    slow, end_mark, tail = rest.partition(_SLOW_WAY_END)
    if not mark or not end_mark or "'''" in slow:
        raise Internal("the launcher's source has no slow way that could be put into a text")
    for name, value in (("PYTHON", python), ("VERSION", version), ("STATE_ROOT", state_root)):
        hot, count = re.subn(rf"(?m)^{name} = .*$", lambda _: f"{name} = {value!r}", hot)  # noqa: B023 - called at once
        if count != 1:
            raise Internal(f"the launcher's source has no one constant {name}")
    return f"{shebang}\n{MARK}\n{hot}SLOW_WAY = r'''{slow.rstrip()}\n'''\n\n{_LOADER}{tail.lstrip()}"


def shebang(interpreter: str) -> str:
    """The ``#!`` line for an interpreter; raises InvalidArgument for a path that such a line cannot hold; pure."""
    if not os.path.isabs(interpreter):
        raise InvalidArgument(f"interpreter {interpreter!r} is not an absolute path")
    if any(char.isspace() for char in interpreter):
        raise InvalidArgument(f"interpreter {interpreter!r} has a space in its path, which a #! line cannot hold")
    line = f"#!{interpreter} -ISE"  # the kernel passes what follows the path as one argument
    if len(os.fsencode(line)) > SHEBANG_LIMIT_BYTES:
        raise InvalidArgument(f"interpreter {interpreter!r} is longer than a #! line can hold")
    return line


def launcher_interpreter() -> str:
    """The system's python3, which outlives virtual environments; where it is too old, the one below this one."""
    if _is_program(_SYSTEM_PYTHON) and _version_of(_SYSTEM_PYTHON) >= OLDEST:
        return _SYSTEM_PYTHON
    base = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    if not _is_program(base):
        base = os.path.realpath("/proc/self/exe")  # pyenv and its like put a script there, which takes 70 ms more
    if not _is_program(base):
        raise FailedPrecondition(f"{base} is no interpreter that a launcher could be run by")
    return base


def is_ours(path: Path) -> bool:
    """Whether ``write_launchers`` wrote it; never through a symbolic link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        lines = os.read(fd, SHEBANG_LIMIT_BYTES + len(MARK) + 2).split(b"\n")
    except OSError:
        return False  # a directory, or a fifo that somebody writes
    finally:
        os.close(fd)
    return len(lines) > 1 and lines[1] == MARK.encode()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o755)
        os.replace(temporary, path)
    except OSError as error:
        kind = PermissionDenied if isinstance(error, PermissionError) else FailedPrecondition
        raise kind(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_program(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF" and os.access(path, os.X_OK)
    except OSError:
        return False


def _version_of(interpreter: str) -> tuple[int, ...]:
    ask = "import sys; print(*sys.version_info[:2])"
    try:
        said = subprocess.run([interpreter, "-ISE", "-c", ask], capture_output=True, timeout=20, check=True).stdout
        return tuple(int(word) for word in said.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()
