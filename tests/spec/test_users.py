"""Users as the container's own files know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dunnage import errors
from dunnage.spec import resolve_user

PASSWD = "root:x:0:0:root:/root:/bin/sh\n\n# a comment\nbroken\nweb:x:33:44:web:/:/bin/sh\nold:x:70:\n"
GROUP = "root:x:0:\nweb:x:44:web\nlogs:x:55:web,root\nadm:x:66:other,web\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "user"),
    [
        (None, {"uid": 0, "gid": 0}),
        ("", {"uid": 0, "gid": 0}),
        ("1000", {"uid": 1000, "gid": 0, "additionalGids": [0]}),
        ("1000:1001", {"uid": 1000, "gid": 1001, "additionalGids": [1001]}),
        ("web", {"uid": 33, "gid": 44, "additionalGids": [44, 55, 66]}),
        ("33", {"uid": 33, "gid": 44, "additionalGids": [44, 55, 66]}),
        ("web:logs", {"uid": 33, "gid": 55, "additionalGids": [55]}),
        ("web:7", {"uid": 33, "gid": 7, "additionalGids": [7]}),
        ("old", {"uid": 70, "gid": 0, "additionalGids": [0]}),
    ],
)
def test_a_user(root: Path, text: str | None, user: dict[str, Any]) -> None:
    assert resolve_user(text, root) == user


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nobody", "^user nobody is not in the container's /etc/passwd$"),
        ("web:nogroup", "^group nogroup is not in the container's /etc/group$"),
        ("web:", "^user 'web:' is not of the form"),
        (":web", "^user ':web' is not of the form"),
        ("4294967295", "^4294967295 is too large"),
        ("-1", "^user -1 is not in"),
    ],
)
def test_what_is_no_user(root: Path, text: str, reason: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=reason):
        resolve_user(text, root)


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert resolve_user("7:8", tmp_path) == {"uid": 7, "gid": 8, "additionalGids": [8]}
    with pytest.raises(errors.InvalidArgument, match="not in the container's"):
        resolve_user("root", tmp_path)


@pytest.mark.parametrize("link", ["/data/passwd", "../data/passwd", "../../../../data/passwd", "/etc/../data/./passwd"])
def test_links_stay_below_the_root(root: Path, link: str) -> None:
    (root / "data").mkdir()
    (root / "etc/passwd").rename(root / "data/passwd")
    (root / "etc/passwd").symlink_to(link)
    assert resolve_user("web", root)["uid"] == 33


def test_a_loop_of_links_is_no_file(root: Path) -> None:
    (root / "etc/passwd").unlink()
    (root / "etc/passwd").symlink_to("passwd")
    with pytest.raises(errors.InvalidArgument, match="user web is not in"):
        resolve_user("web", root)
