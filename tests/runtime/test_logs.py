"""The log that all calls of a bundle share, when calls overlap: nobody reads another's lines, and none is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dunnage.runtime.failures import Log
from dunnage.runtime.logs import CallLog, Logs, gather


def write(log: CallLog, text: str) -> None:
    with open(log.path, "a") as file:
        file.write(text)


def test_a_call_that_is_alone_logs_to_the_file_itself_and_reads_only_what_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text("before\n")
    logs = Logs(str(path))
    with logs.of_call() as log:
        assert log.path == str(path)
        write(log, "mine\n")
        assert log.read() == Log("mine\n")
    with logs.of_call() as log:
        assert log.read() == Log("")
    assert path.read_text() == "before\nmine\n"


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_of_calls_that_overlap_none_reads_another_s_and_the_file_gets_all(
    tmp_path: Path, first_ends_first: bool
) -> None:
    path = tmp_path / "log.json"
    logs = Logs(str(path))
    first, second, third = logs.of_call(), logs.of_call(), logs.of_call()
    calls = {"first\n": first.__enter__(), "second\n": second.__enter__(), "third": third.__enter__()}
    for text, log in calls.items():
        write(log, text)
    assert len({log.path for log in calls.values()}) == 3
    for call in (first, second, third) if first_ends_first else (third, second, first):
        call.__exit__(None, None, None)
        for text, log in calls.items():
            if os.path.exists(log.path) and log.path != str(path):
                assert log.read() == Log(text)
        if call is not first and not first_ends_first:
            assert calls["first\n"].read() == Log("first\n"), "what others have logged is not added while it runs"
    assert sorted(path.read_text().splitlines()) == ["first", "second", "third"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.json"]


def test_a_log_that_was_never_made_is_unreadable_and_an_own_one_is_just_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    logs = Logs(str(path))
    unreadable = Log(unreadable=f"open {path}: no such file or directory")
    with logs.of_call() as first, logs.of_call() as second:
        assert first.read() == unreadable
        assert second.read() == unreadable
        path.touch()
        assert second.read() == Log()


def test_of_a_long_log_the_end_counts_from_a_whole_line_on(tmp_path: Path) -> None:
    logs = Logs(str(tmp_path / "log.json"))
    with logs.of_call() as log:
        write(log, "x" * 63 + "\n")
        write(log, ("y" * 63 + "\n") * (1 << 14))
        write(log, "end\n")
        text = log.read().text
    assert text.startswith("y" * 63 + "\ny")
    assert text.endswith("\nend\n")


def test_a_fifo_in_the_log_s_place_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.json")
    logs = Logs(str(tmp_path / "log.json"))
    with logs.of_call(), logs.of_call() as second:
        write(second, "kept\n")
    assert Path(second.path).read_text() == "kept\n"


def test_what_a_dead_worker_s_calls_have_logged_is_gathered(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    logs = Logs(str(path))
    with logs.of_call() as first, logs.of_call() as second:
        write(first, "first\n")
        write(second, "half a li")
        (tmp_path / "other").touch()
        gather(str(path))
        assert path.read_text() == "first\nhalf a li\n"
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.json", "other"]
