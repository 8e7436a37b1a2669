"""Any as containerd means it: the type URL is the bare full name of the message, and a reader takes a prefix too.

containerd 1.4 to 1.6 know a message by exactly its bare name, so protobuf's own `Pack` (type.googleapis.com/…) never
fits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from dunnage import errors

M = TypeVar("M", bound=Message)


def pack_bare(message: Message) -> Any:
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def type_name(any: Any) -> str:
    """The full name in a type URL, with or without something before a slash."""
    return any.type_url.rpartition("/")[2]


def unpack(any: Any, classes: Iterable[type[M]]) -> M:
    """The message in it, which must be one of `classes`; InvalidArgument for another type or bytes that are none."""
    name = type_name(any)
    wanted = {message.DESCRIPTOR.full_name: message for message in classes}
    found = wanted.get(name)
    if found is None:
        raise errors.InvalidArgument(f"type {any.type_url!r} where {' or '.join(wanted)} is expected")
    try:
        return found.FromString(any.value)
    except DecodeError as reason:
        raise errors.InvalidArgument(f"the value of an Any is no {name}: {reason}") from reason
