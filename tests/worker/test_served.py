"""Where a group listens, and whom it finds there."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from dunnage.errors import Error, InvalidArgument
from dunnage.linux.attributes import Attributes
from dunnage.worker.served import Launch, group_name, listen, retire, socket_path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    return "s/socket"


def test_the_path_is_the_one_that_every_shim_reckons() -> None:
    digest = hashlib.sha256(b"/run/containerd/containerd.sock/default/c1").hexdigest()
    assert socket_path("/run/containerd/s", "/run/containerd/containerd.sock", "default", "c1") == (
        f"/run/containerd/s/{digest}"
    )
    alone = hashlib.sha256(b"default/c1").hexdigest()
    assert socket_path("/s", "", "default", "c1") == f"/s/{alone}"


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"unix socket path too long \(> 106\)$"):
        socket_path("/" + "d" * 60, "", "default", "c1")


def test_a_socket_is_made_for_its_owner_alone(path: str) -> None:
    listener = listen(path)
    assert listener is not None
    assert os.stat(path).st_mode & 0o777 == 0o600
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_dead_socket_is_replaced(path: str) -> None:
    first = listen(path)
    assert first is not None
    first.close()
    second = listen(path)
    assert second is not None
    second.close()


def test_who_listens_already_is_left_alone(path: str) -> None:
    first = listen(path)
    assert first is not None
    with first:
        assert listen(path) is None
        assert os.path.exists(path)


def test_who_listens_with_a_full_backlog_is_left_alone(path: str) -> None:
    os.mkdir("s")
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(path)
        first.listen(0)
        waiting: list[socket.socket] = []
        while True:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            waiting.append(client)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        assert listen(path) is None
        for client in waiting:
            client.close()


def test_who_is_retired_is_replaced_though_somebody_holds_it(path: str) -> None:
    first = listen(path)
    assert first is not None
    with first.dup():
        retire(first)
        second = listen(path)
        assert second is not None
        with second, socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


def test_a_directory_in_the_place_of_a_socket_is_an_error(path: str) -> None:
    os.makedirs(path)
    with pytest.raises(Error, match=r"^socket s/socket cannot be made: Is a directory$"):
        listen(path)


def test_a_launch_is_the_same_after_a_life_in_a_file() -> None:
    launch = Launch({"PATH": "/bin", "ODD": "a=b\n\udcff"}, Attributes.of(os.getpid()))
    assert Launch.from_json(launch.to_json()) == launch


def test_a_group_is_named_by_its_namespace_too() -> None:
    assert group_name("default", "c1") != group_name("k8s.io", "c1")


def test_a_group_s_name_is_never_taken_for_a_connection_s() -> None:
    assert "#" not in group_name("default", "a#1")
    assert group_name("default", "a#1") != group_name("default", "a%231")
