"""One tree of errors: what went wrong, said once, in words that a client may show.

A message is lowercase, has no full stop, and names the thing and the fact. ``kind`` is the class text that containerd's
clients expect at the end of a message (errdefs); ``service.codes`` maps each class to an RPC code, once.
"""

from __future__ import annotations

from typing import ClassVar


class Error(Exception):
    """What dunnage tells a client went wrong; without a class of its own it is code 2, Unknown, and has no suffix."""

    kind: ClassVar[str] = ""


class InvalidArgument(Error):
    kind = "invalid argument"


class NotFound(Error):
    kind = "not found"


class AlreadyExists(Error):
    kind = "already exists"


class PermissionDenied(Error):
    kind = "permission denied"


class ResourceExhausted(Error):
    kind = "resource exhausted"


class FailedPrecondition(Error):
    kind = "failed precondition"


class Unimplemented(Error):
    kind = "not implemented"


class Internal(Error):
    kind = "internal"


class Unavailable(Error):
    kind = "unavailable"


class DeadlineExceeded(Error):
    kind = "context deadline exceeded"


class Canceled(Error):
    kind = "context canceled"
