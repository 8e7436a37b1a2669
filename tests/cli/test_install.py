"""`dunnage install` writes a launcher that runs, and never touches what it did not write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dunnage import __version__, launcher
from dunnage.cli import install
from dunnage.errors import AlreadyExists, FailedPrecondition, Internal, InvalidArgument, NotFound

SOURCE = Path(launcher.__file__).read_text()


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(install.install, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_it_says_what_it_wrote(tmp_path: Path) -> None:
    assert run("--bin-dir", str(tmp_path)) == (0, f"wrote {tmp_path}/containerd-shim-dunnage-v2\n")
    assert [path.name for path in tmp_path.iterdir()] == ["containerd-shim-dunnage-v2"]


def test_the_drop_in_is_the_same_launcher_by_another_name(tmp_path: Path) -> None:
    _, said = run("--bin-dir", str(tmp_path), "--as-runc")
    own, drop_in = tmp_path / "containerd-shim-dunnage-v2", tmp_path / "containerd-shim-runc-v2"
    assert said == f"wrote {own}\nwrote {drop_in}\n"
    assert own.read_bytes() == drop_in.read_bytes()
    assert stat.S_IMODE(own.stat().st_mode) == stat.S_IMODE(drop_in.stat().st_mode) == 0o755


def test_what_it_wrote_runs(tmp_path: Path) -> None:
    (path,) = install.write_launchers(tmp_path)
    done = subprocess.run([path, "-v"], capture_output=True, timeout=30)
    assert done.stdout.decode().startswith(f"containerd-shim-dunnage-v2:\n  Version:  {__version__}\n")


def test_it_may_write_again(tmp_path: Path) -> None:
    first = install.write_launchers(tmp_path, as_runc=True)
    assert install.write_launchers(tmp_path, as_runc=True) == first


@pytest.mark.parametrize("text", ["#!/bin/sh\n", "", f"\n\n{install.MARK}\n", "\x7fELF" + "\0" * 900])
def test_what_it_did_not_write_stays(tmp_path: Path, text: str) -> None:
    other = tmp_path / "containerd-shim-runc-v2"
    other.write_text(text)
    with pytest.raises(AlreadyExists, match="containerd-shim-runc-v2 was not written by dunnage install"):
        install.write_launchers(tmp_path, as_runc=True)
    assert other.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == [other.name]
    assert install.remove_launchers(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
def test_what_is_no_file_stays(tmp_path: Path, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (written,) = install.write_launchers(tmp_path / "elsewhere")
    path = tmp_path / "containerd-shim-dunnage-v2"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to(written if kind == "link" else "nowhere")
    with pytest.raises(AlreadyExists):
        install.write_launchers(tmp_path)
    assert install.remove_launchers(tmp_path) == []
    assert os.path.lexists(path)


def test_it_removes_what_it_wrote_and_says_so(tmp_path: Path) -> None:
    install.write_launchers(tmp_path, as_runc=True)
    (tmp_path / "containerd-shim-kata-v2").write_text("")
    _, said = run("--bin-dir", str(tmp_path), "--uninstall")
    assert said.splitlines() == [f"removed {tmp_path}/containerd-shim-{name}-v2" for name in ("dunnage", "runc")]
    assert [path.name for path in tmp_path.iterdir()] == ["containerd-shim-kata-v2"]
    _, said = run("--bin-dir", str(tmp_path), "--uninstall")
    assert said == f"nothing in {tmp_path} was written by dunnage install\n"


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        install.write_launchers(tmp_path / "typo")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        install.write_launchers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_shebang_passes_its_flags_as_one_argument() -> None:
    assert install.shebang("/usr/bin/python3") == "#!/usr/bin/python3 -ISE"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/opt/my python/bin/python3", "has a space in its path"),
        ("/opt/\tpython3", "has a space in its path"),
        ("/opt/\npython3", "has a space in its path"),
        ("/" + "a" * 120, "is longer than a #! line can hold"),
        ("/" + "ä" * 61, "is longer than a #! line can hold"),
        ("python3", "is not an absolute path"),
    ],
)
def test_an_interpreter_that_a_shebang_cannot_hold_is_refused(tmp_path: Path, path: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        install.write_launchers(tmp_path, interpreter=path)
    assert not list(tmp_path.iterdir())


def test_the_longest_shebang_is_held() -> None:
    assert len(install.shebang("/" + "a" * 119)) == 127


def test_the_interpreter_is_a_program_and_new_enough() -> None:
    path = install.launcher_interpreter()
    assert Path(path).read_bytes()[:4] == b"\x7fELF"
    code = "import sys; sys.exit(sys.version_info < (3, 11))"
    assert subprocess.run([path, "-ISE", "-c", code], timeout=30).returncode == 0


def test_where_the_system_s_is_too_old_the_base_interpreter_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "OLDEST", (99, 0))
    path = install.launcher_interpreter()
    assert path == os.path.realpath(sys.executable)
    assert not Path(path).is_symlink()


def test_a_script_in_the_base_interpreter_s_place_is_seen_through(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "python3"
    script.write_text("#!/bin/sh\nexec python3\n")
    script.chmod(0o755)
    monkeypatch.setattr(install, "OLDEST", (99, 0))
    monkeypatch.setattr(sys, "_base_executable", str(script), raising=False)
    assert install.launcher_interpreter() == os.path.realpath("/proc/self/exe")


def test_no_usable_interpreter_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_is_program", lambda path: False)
    with pytest.raises(FailedPrecondition, match="is no interpreter"):
        install.write_launchers(tmp_path)


def test_the_constants_are_filled_in() -> None:
    text = install.rendered(SOURCE, shebang="#!/p -ISE", python="/a 'b'\\1", version="1.2", state_root="/run/x")
    lines = text.splitlines()
    assert lines[:2] == ["#!/p -ISE", install.MARK]
    assert f"PYTHON = {chr(34)}/a 'b'\\\\1{chr(34)}" in lines
    assert "VERSION = '1.2'" in lines
    assert "STATE_ROOT = '/run/x'" in lines


def test_the_slow_way_is_a_text_that_compiles_to_the_same() -> None:
    text = install.rendered(SOURCE, shebang="#!/p", python="/p", version="1", state_root="/s")
    filled: dict[str, object] = {"__name__": "launcher"}
    exec(compile(text, "launcher", "exec"), filled)
    exec(compile(str(filled["SLOW_WAY"]), "slow", "exec"), filled)
    defined = {name for name in vars(launcher) if not name.startswith("__")}
    assert defined <= set(filled)


@pytest.mark.parametrize(
    "source",
    [
        SOURCE.replace("# --- the slow way ---\n", ""),
        SOURCE.replace('"""What cannot be done', "'''What cannot be done"),
        SOURCE.replace("PYTHON = ", "PYTHONS = "),
    ],
)
def test_a_source_that_cannot_be_filled_in_is_refused(source: str) -> None:
    with pytest.raises(Internal):
        install.rendered(source, shebang="#!/p", python="/p", version="1", state_root="/s")
