"""What ``scripts/newer`` has fetched of a newer Debian, and this machine's own Go shim."""

from __future__ import annotations

from pathlib import Path
from typing import Final

GO_SHIM: Final = "/usr/bin/containerd-shim-runc-v2"
_CACHE: Final = Path(__file__).parents[1] / ".cache/newer"


def directory(package: str) -> Path:
    """Where the package's programs are, to be put in front of the PATH; a failure, and no skip, if they are not."""
    path = _CACHE / package / "bin"
    assert path.is_dir(), f"run scripts/newer {package}"
    return path


def go_shim() -> Path:
    return directory("containerd") / "containerd-shim-runc-v2"
