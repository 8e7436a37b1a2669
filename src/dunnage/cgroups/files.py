"""The formats of the kernel's cgroup files: text in, numbers out; and reading them, where "gone" is one error.

Numbers are taken as containerd's cgroups library takes them: decimal, at most 64 bits, a negative one is 0. Whatever
else stands where a number should be raises BadFormat.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from dunnage.cgroups.values import RdmaEntry
from dunnage.errors import Error

MAX_UINT64 = 2**64 - 1
MAX_UINT32 = 2**32 - 1

_DIGITS = re.compile(r"[0-9]+")
_NEGATIVE = re.compile(r"-[0-9]+")
_HUGEPAGES = re.compile(r"hugepages-([0-9]{1,19})kB")


class BadFormat(Error):
    """A file of the kernel's holds what no kernel writes."""


def read(directory: str, name: str) -> str:
    """A file's text. FileNotFoundError: file or cgroup does not exist; Error: the file can not be read."""
    path = f"{directory}/{name}"
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return file.read()
    except OSError as error:
        # ENODEV: the cgroup was removed between open and read
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
        raise Error(f"read {path}: {error.strerror}") from error


def lines(text: str) -> Iterator[str]:
    """Each line without its end; nothing after the last newline is no line."""
    for line in text.removesuffix("\n").split("\n") if text else ():
        yield line.removesuffix("\r")


def unsigned(text: str, *, largest: int = MAX_UINT64) -> int:
    """Decimal digits only."""
    # twenty digits hold every 64-bit number; int() of thousands would cost time or be refused
    if not _DIGITS.fullmatch(text) or len(text.lstrip("0")) > 20 or int(text.lstrip("0") or "0") > largest:
        raise BadFormat(f"{_quoted(text)} is not a number from 0 to {largest}")
    return int(text.lstrip("0") or "0")


def number(text: str, *, largest: int = MAX_UINT64) -> int:
    """As ``unsigned``, but a negative number is 0."""
    return 0 if _NEGATIVE.fullmatch(text) else unsigned(text, largest=largest)


def single(text: str, *, unlimited: int) -> int:
    """The number that is all a file holds; the word ``max`` is ``unlimited``."""
    word = text.strip()
    return unlimited if word == "max" else number(word)


def key_values(name: str, text: str) -> dict[str, int]:
    """``key number`` on each line; ``name`` is the file's, for the error."""
    values = {}
    for index, line in enumerate(lines(text), start=1):
        words = line.split()
        if len(words) != 2:
            raise BadFormat(f"{name} line {index}: {_quoted(line)} is not a key and a number")
        try:
            values[words[0]] = number(words[1])
        except BadFormat as error:
            raise BadFormat(f"{name} line {index}: {error}") from error
    return values


def rdma_entries(text: str) -> tuple[RdmaEntry, ...]:
    """``device hca_handle=n hca_object=n|max``: a line of another shape is skipped, and so is a value that is none."""
    return tuple(_rdma_entry(*words) for line in text.split("\n") if len(words := line.split()) == 3)


def _rdma_entry(device: str, *pairs: str) -> RdmaEntry:
    found = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            found[key] = MAX_UINT32 if value == "max" else number(value, largest=MAX_UINT32)
        except BadFormat:
            continue  # as the Go shim: the entry stays, with a zero
    return RdmaEntry(device, found.get("hca_handle", 0), found.get("hca_object", 0))


def huge_page_sizes(directory: str) -> tuple[str, ...]:
    """The names (``2MB``, ``1GB``) in the hugetlb files of the sizes this kernel has, from /sys/kernel/mm/hugepages."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return ()
    return tuple(_size_name(int(match[1])) for name in names if (match := _HUGEPAGES.fullmatch(name)))


def _size_name(kibibytes: int) -> str:
    # mm/hugetlb_cgroup.c, mem_fmt: whole units only
    if kibibytes >= 1 << 20:
        return f"{kibibytes >> 20}GB"
    if kibibytes >= 1 << 10:
        return f"{kibibytes >> 10}MB"
    return f"{kibibytes}KB"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}…")
