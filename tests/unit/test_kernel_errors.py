"""Every errno of bpf(2) becomes a typed error that names the map and a way out."""

from __future__ import annotations

import errno

import pytest

from bridge.errors import BridgeError, Exit, PrivilegeError
from bridge.kernel import errors
from bridge.kernel.errors import Asked, check, translate
from bridge.kernel.maptypes import MapType, type_name

SUBJECT = "map conntrack (id 7)"


@pytest.mark.parametrize(
    ("code", "asked", "kind", "exit_code"),
    [
        (errno.E2BIG, Asked.ELEMENT, errors.MapFullError, Exit.FAILURE),
        (errno.EEXIST, Asked.ELEMENT, errors.KeyExistsError, Exit.FAILURE),
        (errno.ENOENT, Asked.ELEMENT, errors.KeyMissingError, Exit.FAILURE),
        (errno.EPERM, Asked.ELEMENT, errors.MapReadOnlyError, Exit.CONFIG),
        (errno.EBUSY, Asked.ELEMENT, errors.MapBusyError, Exit.TEMPORARY),
        (errno.EAGAIN, Asked.ELEMENT, errors.MapBusyError, Exit.TEMPORARY),
        (errno.EDEADLK, Asked.ELEMENT, errors.MapBusyError, Exit.TEMPORARY),
        (errno.ETIMEDOUT, Asked.ELEMENT, errors.MapBusyError, Exit.TEMPORARY),
        (errno.ENOMEM, Asked.ELEMENT, errors.KernelMemoryError, Exit.TEMPORARY),
        (errno.EINVAL, Asked.ELEMENT, errors.InvalidError, Exit.FAILURE),
        (524, Asked.ELEMENT, errors.UnsupportedError, Exit.UNAVAILABLE),
        (errno.EOPNOTSUPP, Asked.ELEMENT, errors.UnsupportedError, Exit.UNAVAILABLE),
        (errno.EBADF, Asked.ELEMENT, errors.MapClosedError, Exit.INVARIANT),
        (errno.EPERM, Asked.CREATE, errors.KernelPrivilegeError, Exit.PRIVILEGE),
        (errno.E2BIG, Asked.CREATE, errors.KernelError, Exit.FAILURE),
        (errno.EPERM, Asked.OPEN, errors.KernelPrivilegeError, Exit.PRIVILEGE),
        (errno.EACCES, Asked.OPEN, errors.KernelPrivilegeError, Exit.PRIVILEGE),
        (errno.ENOENT, Asked.OPEN, errors.MapNotFoundError, Exit.UNAVAILABLE),
        (errno.EEXIST, Asked.PIN, errors.PathTakenError, Exit.FAILURE),
        (errno.ENOENT, Asked.PIN, errors.KernelError, Exit.FAILURE),
        (errno.EPERM, Asked.PROGRAM, errors.KernelPrivilegeError, Exit.PRIVILEGE),
        (errno.EXDEV, Asked.ELEMENT, errors.KernelError, Exit.FAILURE),
    ],
)
def test_table(code: int, asked: Asked, kind: type[errors.KernelError], exit_code: Exit) -> None:
    error = translate(code, asked, SUBJECT, "update")
    assert type(error) is kind
    assert error.exit_code is exit_code
    assert error.errno == code
    assert error.hint
    assert str(error).startswith(f"{SUBJECT}: update: ")
    name = "ENOTSUPP" if code == 524 else errno.errorcode[code]
    assert str(error).endswith(f"(got {name})")


@pytest.mark.parametrize("asked", list(Asked))
def test_every_errno_has_an_error(asked: Asked) -> None:
    for code in (*errno.errorcode, 524, 9999):
        error = translate(code, asked, SUBJECT, "action")
        assert isinstance(error, BridgeError)
        assert error.hint
        assert not str(error).endswith(".")


def test_busy_ones_are_temporary() -> None:
    for code in errors.BUSY:
        assert type(translate(code, Asked.ELEMENT, SUBJECT, "update")) is errors.MapBusyError


def test_privilege_is_caught_as_such() -> None:
    with pytest.raises(PrivilegeError, match="CAP_SYS_ADMIN"):
        check(errno.EPERM, Asked.OPEN, "maps", "list")
    check(0, Asked.OPEN, "maps", "list")


def test_type_names() -> None:
    assert type_name(MapType.LRU_HASH) == "lru_hash"
    assert type_name(4711) == "type 4711"
