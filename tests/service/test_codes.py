"""Every class of error has its code, and its text ends as containerd's clients expect (shim v2, §2.5)."""

from __future__ import annotations

import pytest

from dunnage import errors
from dunnage.runtime.failures import CommandFailed
from dunnage.service.codes import CODES, translate
from dunnage.ttrpc.errors import Code, RpcError


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (errors.InvalidArgument("id is empty"), 3, "id is empty: invalid argument"),
        (errors.NotFound("container not created"), 5, "container not created: not found"),
        (errors.AlreadyExists("id e1"), 6, "id e1: already exists"),
        (errors.PermissionDenied("no"), 7, "no: permission denied"),
        (errors.ResourceExhausted("no room"), 8, "no room: resource exhausted"),
        (errors.FailedPrecondition("process not created"), 9, "process not created: failed precondition"),
        (errors.Unimplemented("stats"), 12, "stats: not implemented"),
        (errors.Internal("no"), 13, "no: internal"),
        (errors.Unavailable("the keeper is gone"), 14, "the keeper is gone: unavailable"),
        (errors.Canceled("no"), 1, "no: context canceled"),
        (errors.DeadlineExceeded("runc start hangs"), 4, "runc start hangs: context deadline exceeded"),
        (errors.Error("cannot start a running process"), 2, "cannot start a running process"),
        (CommandFailed("runc did not terminate"), 2, "runc did not terminate"),
        (ValueError("odd"), 2, "odd"),
        (ValueError(), 2, "ValueError"),
    ],
)
def test_an_error_is_told_with_its_code(error: Exception, code: int, text: str) -> None:
    told = translate(error)
    assert (told.code, str(told.message)) == (code, text)


def test_what_is_an_rpc_error_already_is_told_as_it_is() -> None:
    error = RpcError(Code.ABORTED, "as it is")
    assert translate(error) is error


def test_every_class_with_words_has_a_code() -> None:
    def classes(base: type[errors.Error]) -> list[type[errors.Error]]:
        return [base, *(found for sub in base.__subclasses__() for found in classes(sub))]

    for kind in classes(errors.Error):
        if "kind" in vars(kind) and kind.kind:
            assert kind in CODES
