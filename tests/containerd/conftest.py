"""Fixtures for the tests on a real containerd: which shim, which OCI runtime, and a containerd for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.containerd import image
from tests.containerd.harness import GO_SHIM, Containerd, Shim

from dunnage.cli.install import write_launchers


@pytest.fixture(scope="session")
def image_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    image.write_image(path)
    return path


@pytest.fixture(scope="session")
def shim_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What `dunnage install` writes, under its own name and, apart from it, as the drop-in."""

    own, drop_in = tmp_path_factory.mktemp("bin"), tmp_path_factory.mktemp("bin")
    write_launchers(own)
    write_launchers(drop_in, as_runc=True)
    return {"runc": own, "crun": drop_in}


@pytest.fixture(params=["runc", pytest.param("crun", marks=pytest.mark.long)])
def shim(request: pytest.FixtureRequest) -> Shim:
    oci_runtime = request.param
    name = str(request.config.getoption("shim_runtime"))
    if shutil.which(oci_runtime) is None:
        pytest.skip(f"{oci_runtime} is not installed: ./scripts/test installs it")
    directory = Path("/nowhere") if name == GO_SHIM else request.getfixturevalue("shim_directories")[oci_runtime]
    return Shim(name, oci_runtime, directory)


@pytest.fixture
def go_shim() -> Shim:
    """Debian's own, for comparison."""
    return Shim(GO_SHIM, "runc", Path("/nowhere"))


@pytest.fixture
def containerd(
    request: pytest.FixtureRequest, shim: Shim, image_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    binary = str(request.config.getoption("containerd"))
    with Containerd(tmp_path_factory.mktemp("c"), shim, image_tar=image_tar, binary=binary) as running:
        yield running


@pytest.fixture
def dunnage_alone(shim: Shim) -> None:
    """For tests of what no other shim has or promises."""
    if shim.is_go:
        pytest.skip("about dunnage alone")
