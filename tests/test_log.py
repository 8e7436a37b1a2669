"""Lines reach the fifo of their bundle in logrus' form, and none of them ever waits."""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dunnage import log as log_module
from dunnage.log import LogrusFormatter, StderrHandler, container_logger, write_to_stderr

LINE = re.compile(
    r'time="\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z" level=(?P<level>\w+) msg=(?P<msg>"(?:[^"\\]|\\.)*"|\S+)(?P<rest>.*)'
)


class Bundle:
    """A directory with a fifo, a logger that writes to it, and the lines that went elsewhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fallen: list[str] = []
        self.directory = os.open(path, os.O_PATH | os.O_DIRECTORY)
        self.logger = container_logger(lambda: self.directory, "default", "c1")
        self._reader = -1

    def open_reader(self) -> None:
        self._reader = os.open(self.path / "log", os.O_RDONLY | os.O_NONBLOCK)

    def close_reader(self) -> None:
        os.close(self._reader)
        self._reader = -1

    def read(self) -> str:
        return os.read(self._reader, 1 << 20).decode()

    def close(self) -> None:
        if self._reader >= 0:
            self.close_reader()
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    node = logging.getLogger("dunnage")
    before = node.handlers, node.level, node.propagate
    made = Bundle(tmp_path)
    handler = logging.Handler()
    handler.setFormatter(LogrusFormatter())
    handler.emit = lambda record: made.fallen.append(handler.format(record))  # type: ignore[method-assign]  # a list
    node.handlers, node.propagate = [handler], False
    node.setLevel("INFO")
    made.logger.setLevel("INFO")
    yield made
    node.handlers, node.propagate = before[0], before[2]
    node.setLevel(before[1])
    made.close()


def parsed(line: str) -> dict[str, str]:
    match = LINE.fullmatch(line)
    assert match is not None, line
    return match.groupdict()


def test_a_line_reaches_the_fifo(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.open_reader()
    bundle.logger.warning("failed to drain %s io", "exec")
    assert parsed(bundle.read().rstrip("\n")) == {"level": "warning", "msg": '"failed to drain exec io"', "rest": ""}
    assert bundle.fallen == []


@pytest.mark.parametrize(
    ("message", "quoted"),
    [
        ("plain", "plain"),
        ("a-b._/@^+c", "a-b._/@^+c"),
        ("two words", '"two words"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("two\nlines", r'"two\nlines"'),
        ("a=b", '"a=b"'),
        ("", '""'),
        ("ünïcode", '"ünïcode"'),
        ("\udcff", r'"\udcff"'),
        ("\0", r'"\u0000"'),
    ],
)
def test_what_is_not_plain_is_quoted(bundle: Bundle, message: str, quoted: str) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.open_reader()
    bundle.logger.error(message)
    line = bundle.read()
    assert line.count("\n") == 1
    assert parsed(line.rstrip("\n")) == {"level": "error", "msg": quoted, "rest": ""}


def test_an_error_has_its_traceback(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.open_reader()
    try:
        raise ValueError("no such thing")
    except ValueError:
        bundle.logger.exception("it failed")
    rest = parsed(bundle.read().rstrip("\n"))["rest"]
    assert rest.startswith(""" error="ValueError('no such thing')" stack="Traceback (most recent call last):\\n""")
    assert rest.endswith('ValueError: no such thing"')


def test_a_line_that_is_too_long_is_whole_elsewhere(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.open_reader()
    bundle.logger.error("ü" * 5000)
    line = bundle.read()
    assert len(line.encode()) <= 4096
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert len(bundle.fallen) == 1
    assert "ü" * 5000 in bundle.fallen[0]


def fallen(bundle: Bundle) -> list[dict[str, str]]:
    return [parsed(line) for line in bundle.fallen]


def test_without_a_fifo_the_line_falls_back_with_its_container_s_name(bundle: Bundle) -> None:
    bundle.logger.error("lost")
    assert fallen(bundle) == [{"level": "error", "msg": "lost", "rest": " container=default/c1"}]
    assert os.listdir(bundle.path) == []


def test_a_file_that_is_no_fifo_is_left_alone(bundle: Bundle) -> None:
    (bundle.path / "log").write_text("mine")
    bundle.logger.error("lost")
    assert [line["msg"] for line in fallen(bundle)] == ["lost"]
    assert (bundle.path / "log").read_text() == "mine"


def test_without_a_reader_the_line_falls_back(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.logger.error("nobody reads")
    bundle.open_reader()
    bundle.logger.error("read")
    bundle.close_reader()
    bundle.logger.error("gone")
    bundle.open_reader()
    bundle.logger.error("back")
    assert parsed(bundle.read().rstrip("\n"))["msg"] == "back"
    assert [line["msg"] for line in fallen(bundle)] == ['"nobody reads"', "gone"]


def test_a_full_fifo_makes_nobody_wait(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.open_reader()
    writer = os.open(bundle.path / "log", os.O_WRONLY | os.O_NONBLOCK)
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, b"x" * size)
    bundle.logger.error("full")
    assert [line["msg"] for line in fallen(bundle)] == ["full"]
    bundle.read()
    bundle.logger.error("room")
    assert parsed(bundle.read().rstrip("\n"))["msg"] == "room"
    os.close(writer)


def test_a_line_for_a_bundle_that_is_closed_goes_to_no_other(bundle: Bundle, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    bundle.open_reader()
    os.close(bundle.directory)
    other = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)  # of the same number
    bundle.directory = -1
    bundle.logger.error("late")
    assert [line["msg"] for line in fallen(bundle)] == ["late"]
    assert bundle.read() == "", "no writer was ever there"
    os.close(other)


def test_no_descriptor_stays_open(bundle: Bundle) -> None:
    os.mkfifo(bundle.path / "log")
    bundle.open_reader()
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        bundle.logger.error("line")
    assert os.listdir("/proc/self/fd") == before


@contextmanager
def stderr_is(path: Path) -> Iterator[None]:
    """A file, opened as the launcher opens the node's log."""
    stderr = os.dup(2)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def test_a_node_s_log_that_becomes_long_keeps_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody takes its lines away, and it lies in memory; while containerd is away all lines of containers go there."""
    monkeypatch.setattr(log_module, "_NODE_LOG_BYTES", 10_000)
    monkeypatch.setattr(log_module, "_NODE_LOG_KEPT_BYTES", 1_000)
    path = tmp_path / "node-log"
    longest = 0
    with stderr_is(path):
        for number in range(1000):
            write_to_stderr(f"line {number} {'x' * 50}\n")
            longest = max(longest, path.stat().st_size)
    assert 10_000 < longest < 10_100
    numbers = [int(line.split()[1]) for line in path.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 1000)), "whole lines, in their order, up to the last"
    assert len(numbers) >= 10


def test_a_node_s_log_that_cannot_be_written_stops_nobody() -> None:
    with stderr_is(Path("/dev/full")):
        write_to_stderr("lost\n")


def test_a_line_that_is_wrong_stops_nobody_who_logs(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    node = logging.getLogger("dunnage")
    node.handlers = [StderrHandler()]
    for logger in (node, bundle.logger):
        logger.error("process %d", "none")
        assert "TypeError: %d format" in capsys.readouterr().err
