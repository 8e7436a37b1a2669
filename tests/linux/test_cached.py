"""What the kernel remembers of a path is told at once, and the rest is said not to be known."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.containerd.fuse import HungFilesystem

from dunnage.linux import cached


def test_what_is_remembered_is_found(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "plain").write_text("")
    for name, is_fifo in (("fifo", True), ("plain", False)):
        os.stat(tmp_path / name)
        fd = cached.open_cached(str(tmp_path / name))
        seen, status = cached.look(fd), os.stat(tmp_path / name)
        os.close(fd)
        device = (os.major(status.st_dev), os.minor(status.st_dev))
        assert seen == (is_fifo, (*device, status.st_ino))


def test_a_file_system_that_hangs_is_not_asked(tmp_path: Path) -> None:
    with HungFilesystem(tmp_path / "hung"), pytest.raises(BlockingIOError):
        cached.open_cached(str(tmp_path / "hung" / "file"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_a_kernel_that_cannot_say_it_does_not_know(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_result: int, subject: str) -> int:
        raise OSError(number, os.strerror(number), subject)

    monkeypatch.setattr(cached, "check", refuse)
    with pytest.raises(BlockingIOError):
        cached.open_cached("/")
