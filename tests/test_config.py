"""Every key has a default, and every mistake is named with its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dunnage import config
from dunnage.config import Config
from dunnage.errors import InvalidArgument


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert config.load(str(tmp_path / "none.toml")) == Config()


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("# nothing\n")
    assert config.load(str(tmp_path / "config.toml")) == Config()


def test_every_key_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("""
        group = "pod"
        runtime = "crun"
        runtime_root = "/run/elsewhere"
        log_level = "debug"
        runtime_timeout_s = 1
        checkpoint_timeout_s = 1.5
        mount_timeout_s = 2.5
        io_drain_timeout_s = 3
        create_timeout_s = 4
        idle_exit_s = 86400
    """)
    found = config.load(str(tmp_path / "config.toml"))
    assert found == Config("pod", "crun", "/run/elsewhere", "debug", 1.0, 1.5, 2.5, 3.0, 4.0, 86400.0)
    changed = [
        field.name for field in dataclasses.fields(found) if getattr(found, field.name) != getattr(Config(), field.name)
    ]
    assert len(changed) == len(dataclasses.fields(Config)), "this test knows every key"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("groups = 1", "unknown key groups; known are checkpoint_timeout_s, create_timeout_s, group, "),
        ('group = "namespace"', "group is 'namespace'; it may be node, pod, container"),
        ("group = ['node']", "group is ['node']; it may be node, pod, container"),
        ('log_level = "trace"', "log_level is 'trace'; it may be debug, info, warning, error"),
        ('runtime = ""', "runtime is ''; it must be a text that is not empty"),
        ("runtime = 3", "runtime is 3; it must be a text that is not empty"),
        ("idle_exit_s = 0", "idle_exit_s is 0; it must be a number of seconds, up to 86400"),
        ("idle_exit_s = -1", "idle_exit_s is -1; it must be a number of seconds, up to 86400"),
        ("idle_exit_s = nan", "idle_exit_s is nan; it must be a number of seconds, up to 86400"),
        ("idle_exit_s = inf", "idle_exit_s is inf; it must be a number of seconds, up to 86400"),
        ("idle_exit_s = true", "idle_exit_s is True; it must be a number of seconds, up to 86400"),
        ('idle_exit_s = "30"', "idle_exit_s is '30'; it must be a number of seconds, up to 86400"),
        ("[worker]\ngroup = 'node'", "unknown key worker; known are "),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, fact: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as told:
        config.load(str(path))
    assert str(told.value).startswith(f"{path}: {fact}")


@pytest.mark.parametrize("content", [b"group = ", b"\xff", b'group = "node"\ngroup = "pod"'])
def test_what_is_no_toml_is_said_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as told:
        config.load(str(path))
    assert str(told.value).startswith(f"{path} is not TOML: ")


def test_a_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as told:
        config.load(str(tmp_path))
    assert str(told.value) == f"{tmp_path} cannot be read: Is a directory"
