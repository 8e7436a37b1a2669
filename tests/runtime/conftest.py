"""Bundles for a real runtime; each test that takes one runs with runc and with crun."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime import local

from dunnage.spec import make_spec


@pytest.fixture(scope="session")
def hugetlb() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with local.hugetlb_mounted():
        yield


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local.make_rootfs(tmp_path_factory.mktemp("busybox") / "rootfs")


@pytest.fixture(params=["runc", "crun"])
def command(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"needs {name}")
    return name


@pytest.fixture
def make_bundle(command: str, rootfs: Path, tmp_path: Path, hugetlb: None) -> Iterator[Callable[..., local.Bundle]]:
    """``make_bundle(args, **what make_spec takes)``: a bundle ready to be created from."""
    made: list[local.Bundle] = []

    def make(args: list[str], **settings: Any) -> local.Bundle:
        container = f"t-{uuid.uuid4().hex[:12]}"
        bundle = local.Bundle(tmp_path / container, command, container)
        bundle.directory.mkdir()
        made.append(bundle)
        settings = {"env": ["PATH=/bin"], "rootfs_path": str(rootfs), "cgroups_path": f"/{container}"} | settings
        bundle.write(make_spec(args, **settings))
        return bundle

    with local.child_subreaper():
        yield make
        for bundle in made:
            bundle.close()
