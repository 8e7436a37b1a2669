"""The bundles of tests/runtime."""

from tests.runtime.conftest import command, hugetlb, make_bundle, rootfs

__all__ = ["command", "hugetlb", "make_bundle", "rootfs"]
