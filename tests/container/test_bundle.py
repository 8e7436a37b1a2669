"""The files of a bundle: written whole or not at all, wherever the bundle lies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dunnage.container.bundle import Bundle, has_private_pid_namespace
from dunnage.errors import Error, FailedPrecondition, InvalidArgument


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    opened = Bundle.open(str(tmp_path))
    yield opened
    opened.close()


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match=r"none cannot be opened: No such file or directory$"):
        Bundle.open(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match=r"file cannot be opened: Not a directory$"):
        Bundle.open(str(tmp_path / "file"))


def test_options_and_runtime_are_left_for_a_later_delete(bundle: Bundle, tmp_path: Path) -> None:
    bundle.write_options({}, "")
    assert (tmp_path / "options.json").read_text() == "{}"
    assert (tmp_path / "runtime").read_text() == ""
    bundle.write_options({"binary_name": "crun", "systemd_cgroup": True}, "crun")
    assert json.loads((tmp_path / "options.json").read_text()) == {"binary_name": "crun", "systemd_cgroup": True}
    assert (tmp_path / "runtime").read_text() == "crun"
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "options.json": 0o600,
        "runtime": 0o600,
    }


def test_a_record_is_replaced_whole(bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.read_record() is None
    bundle.save({"id": "c1"})
    inode = (tmp_path / "dunnage.json").stat().st_ino
    with open(tmp_path / "dunnage.json", encoding="utf-8") as reader:
        bundle.save({"id": "c1", "pid": 2})
        assert json.load(reader) == {"version": 1, "id": "c1"}, "a reader sees the old one or the new one"
    assert (tmp_path / "dunnage.json").stat().st_ino != inode
    assert bundle.read_record() == {"version": 1, "id": "c1", "pid": 2}
    assert os.listdir(tmp_path) == ["dunnage.json"]


def test_a_record_that_cannot_be_written_leaves_the_one_before(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save({"id": "c1"})
    with pytest.raises(TypeError):
        bundle.save({"id": object()})
    assert bundle.read_record() == {"version": 1, "id": "c1"}
    bundle.save({"id": "c1", "pid": 2})
    assert os.listdir(tmp_path) == ["dunnage.json"]


def test_a_record_of_a_newer_version_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "dunnage.json").write_text('{"version": 2, "init": []}')
    with pytest.raises(Error, match=r"dunnage\.json is of version 2; this dunnage reads 1$"):
        bundle.read_record()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": "x"}', "\xff"])
def test_a_record_that_is_none_is_an_error(bundle: Bundle, tmp_path: Path, text: str) -> None:
    (tmp_path / "dunnage.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Error, match=r"dunnage\.json"):
        bundle.read_record()


def test_what_a_living_container_needs_is_forgotten(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    bundle.write_launch({"group": "c1", "env": {}})
    bundle.save({"id": "c1"})
    assert bundle.read_launch() == {"group": "c1", "env": {}}
    bundle.forget()
    bundle.forget()
    assert os.listdir(tmp_path) == ["config.json"]
    assert bundle.read_launch() is None


@pytest.mark.parametrize("name", ["with space", "quote'\"", "new\nline", "ünïcode", "-rf", "$HOME", "%s", "a\\b"])
def test_odd_paths_are_paths(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    bundle = Bundle.open(str(tmp_path / name))
    bundle.save({"id": "c1"})
    bundle.make_rootfs()
    bundle.make_rootfs()
    assert bundle.read_record() == {"version": 1, "id": "c1"}
    assert sorted(os.listdir(tmp_path / name)) == ["dunnage.json", "rootfs"]
    assert os.stat(bundle.rootfs).st_mode & 0o777 == 0o711
    bundle.close()


def test_a_path_of_4000_characters(tmp_path: Path) -> None:
    path = str(tmp_path)
    while len(path) < 4000:
        path = os.path.join(path, "d" * min(200, max(1, 3999 - len(path))))
    os.makedirs(path)
    assert len(path) == 4000
    bundle = Bundle.open(path)
    bundle.save({"id": "c1"})
    bundle.write_options({}, "runc")
    assert bundle.read_record() == {"version": 1, "id": "c1"}
    bundle.forget()
    bundle.close()


def test_a_bundle_is_found_again_where_its_directory_leads(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    bundle = Bundle.open(str(tmp_path / "before"))
    identity = bundle.identity
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "before").mkdir()
    bundle.save({"id": "c1"})
    assert (tmp_path / "after/dunnage.json").exists()
    later = Bundle.open(str(tmp_path / "before"))
    assert later.identity != identity
    bundle.close()
    bundle.close()
    later.close()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not JSON: "),
        ('{"process":', "is not JSON: "),
        ("\xff", "is not JSON: "),
        ("[]", "is not a JSON object"),
    ],
)
def test_a_spec_that_cannot_be_used_is_named(bundle: Bundle, tmp_path: Path, content: str | None, fact: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InvalidArgument) as told:
        bundle.read_spec()
    assert str(told.value).startswith(f"{tmp_path}/config.json {fact}")


@pytest.mark.parametrize(
    ("spec", "private"),
    [
        ({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}, True),
        ({"linux": {"namespaces": [{"type": "pid", "path": ""}]}}, True),
        ({"linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}, False),
        ({"linux": {"namespaces": [{"type": "mount"}]}}, False),
        ({"linux": {"namespaces": []}}, False),
        ({"linux": {}}, False),
        ({"linux": None}, False),
        ({"linux": {"namespaces": None}}, False),
        ({"linux": {"namespaces": ["pid"]}}, False),
        ({}, False),
    ],
)
def test_only_a_pid_namespace_of_its_own_ends_with_its_init(spec: dict[str, Any], private: bool) -> None:
    assert has_private_pid_namespace(spec) is private


def test_a_write_that_fails_leaves_nothing_of_it(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save({"id": "c1"})
    with pytest.raises(UnicodeEncodeError):
        bundle.write_options({}, "\udcff")
    assert sorted(os.listdir(tmp_path)) == ["dunnage.json", "options.json"]
    assert bundle.read_record() == {"version": 1, "id": "c1"}


def test_what_a_dead_worker_was_writing_is_removed(bundle: Bundle, tmp_path: Path) -> None:
    mine = ["config.json", "e1.pid", "process.json", "processes.json", "log.json", ".hidden"]
    for name in [*mine, "processab12_x9z.json", ".dunnage.json.new", ".options.json.new"]:
        (tmp_path / name).touch()
    bundle.remove_unfinished()
    assert sorted(os.listdir(tmp_path)) == sorted(mine)


def test_what_overlapping_calls_of_a_dead_worker_logged_is_put_to_the_rest(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("first\n")
    (tmp_path / "dunnage-call-0123456789abcdef").write_text("second\n")
    bundle.remove_unfinished()
    assert os.listdir(tmp_path) == ["log.json"]
    assert (tmp_path / "log.json").read_text() == "first\nsecond\n"
