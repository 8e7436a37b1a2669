"""Every class of error and its RPC code, once. The text ends with the class's words, as containerd's clients expect
(shim v2, §2.5); an error without a class is Unknown and has no such ending."""

from __future__ import annotations

from dunnage import errors
from dunnage.ttrpc.errors import Code, RpcError

CODES: dict[type[errors.Error], Code] = {
    errors.InvalidArgument: Code.INVALID_ARGUMENT,
    errors.NotFound: Code.NOT_FOUND,
    errors.AlreadyExists: Code.ALREADY_EXISTS,
    errors.PermissionDenied: Code.PERMISSION_DENIED,
    errors.ResourceExhausted: Code.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: Code.FAILED_PRECONDITION,
    errors.Unimplemented: Code.UNIMPLEMENTED,
    errors.Internal: Code.INTERNAL,
    errors.Unavailable: Code.UNAVAILABLE,
    errors.DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    errors.Canceled: Code.CANCELED,
}


def translate(error: BaseException) -> RpcError:
    """What a client is told of ``error``."""
    if isinstance(error, RpcError):
        return error
    for kind in type(error).__mro__:
        if kind in CODES:
            return RpcError(CODES[kind], f"{error}: {kind.kind}")
    return RpcError(Code.UNKNOWN, str(error) or type(error).__name__)
