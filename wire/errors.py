"""What can go wrong between an operator, two daemons and their files, said in words a person can act on.

Every error that reaches a user or crosses the wire is a :class:`FedloomError` with a stable ``code``. A code has one
gRPC status (for peers) and one exit status (for shells), so that the same event reads the same everywhere. The front
door prints ``message`` and ``hint``; it prints no traceback for these.
"""

from __future__ import annotations

import enum
from typing import Final

import grpc


class Exit(enum.IntEnum):
    """Exit statuses of the ``fedloom`` command."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 3
    REFUSED = 4
    UNREACHABLE = 5
    DATA = 6
    RESOURCE = 7
    INTERRUPTED = 130


class FedloomError(Exception):
    """A failure with a stable code, one sentence on what happened and one on what to do.

    Args:
        message: What happened, naming the field, file or participant.
        hint: What to do next. May be empty where nothing can be done.

    Subclasses set ``code`` (kebab-case, stable across versions), ``status`` and ``exit_code``.
    """

    code: str = "internal"
    status: grpc.StatusCode = grpc.StatusCode.INTERNAL
    exit_code: Exit = Exit.INTERNAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(FedloomError):
    """A configuration file or command-line value that can't be used."""

    code = "config"
    status = grpc.StatusCode.INVALID_ARGUMENT
    exit_code = Exit.CONFIG


class RefusedError(FedloomError):
    """A peer was refused, or refuses us, for a named reason (``code`` is set for each instance)."""

    status = grpc.StatusCode.PERMISSION_DENIED
    exit_code = Exit.REFUSED

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.status = STATUS_OF_CODE.get(code, grpc.StatusCode.PERMISSION_DENIED)


class UnreachableError(FedloomError):
    """No answer from the other side."""

    code = "unreachable"
    status = grpc.StatusCode.UNAVAILABLE
    exit_code = Exit.UNREACHABLE


class DataError(FedloomError):
    """A file or data set that can't be read or doesn't hold what it should."""

    code = "data"
    status = grpc.StatusCode.FAILED_PRECONDITION
    exit_code = Exit.DATA


class ResourceError(FedloomError):
    """The machine ran out of something: disk, a port, memory."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    exit_code = Exit.RESOURCE

    def __init__(self, message: str, hint: str = "", *, code: str = "resource") -> None:
        super().__init__(message, hint)
        self.code = code


# Reasons for which a peer or its message is turned away. The key is the code; it is logged, counted, shown by
# `fedloom coordinator status`, and sent in the trailing metadata `fedloom-code`.
STATUS_OF_CODE: Final[dict[str, grpc.StatusCode]] = {
    "token-malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "token-wrong": grpc.StatusCode.PERMISSION_DENIED,
    "token-expired": grpc.StatusCode.PERMISSION_DENIED,
    "token-used": grpc.StatusCode.PERMISSION_DENIED,
    "name-taken": grpc.StatusCode.ALREADY_EXISTS,
    "csr-invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "certificate-foreign": grpc.StatusCode.UNAUTHENTICATED,
    "certificate-expired": grpc.StatusCode.UNAUTHENTICATED,
    "certificate-role": grpc.StatusCode.PERMISSION_DENIED,
    "participant-unknown": grpc.StatusCode.PERMISSION_DENIED,
    "participant-revoked": grpc.StatusCode.PERMISSION_DENIED,
    "lease-lapsed": grpc.StatusCode.ABORTED,
    "protocol-version": grpc.StatusCode.FAILED_PRECONDITION,
    "message-malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "protocol-order": grpc.StatusCode.FAILED_PRECONDITION,
    "plan-mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "manifest-mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "policy": grpc.StatusCode.PERMISSION_DENIED,
    "blob-unknown": grpc.StatusCode.NOT_FOUND,
    "blob-size": grpc.StatusCode.INVALID_ARGUMENT,
    "blob-truncated": grpc.StatusCode.DATA_LOSS,
    "blob-digest": grpc.StatusCode.DATA_LOSS,
    "blob-offset": grpc.StatusCode.FAILED_PRECONDITION,
    "blob-not-expected": grpc.StatusCode.PERMISSION_DENIED,
    "quota": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "task-unknown": grpc.StatusCode.NOT_FOUND,
    "task-closed": grpc.StatusCode.FAILED_PRECONDITION,
    "update-not-finite": grpc.StatusCode.INVALID_ARGUMENT,
    "update-norm": grpc.StatusCode.INVALID_ARGUMENT,
    "merge-tolerance": grpc.StatusCode.FAILED_PRECONDITION,
    "merge-empty": grpc.StatusCode.FAILED_PRECONDITION,
    "merge-reference": grpc.StatusCode.FAILED_PRECONDITION,
    "update-shape": grpc.StatusCode.INVALID_ARGUMENT,
    "update-missing": grpc.StatusCode.FAILED_PRECONDITION,
    "examples-invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "metrics-invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "member-duplicate": grpc.StatusCode.ALREADY_EXISTS,
    "member-key-invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "member-proof": grpc.StatusCode.PERMISSION_DENIED,
    "member-unknown": grpc.StatusCode.NOT_FOUND,
    "members-federation": grpc.StatusCode.FAILED_PRECONDITION,
    "members-fork": grpc.StatusCode.FAILED_PRECONDITION,
    "members-gap": grpc.StatusCode.FAILED_PRECONDITION,
    "members-malformed": grpc.StatusCode.INVALID_ARGUMENT,
    "members-signature": grpc.StatusCode.PERMISSION_DENIED,
    "root-mismatch": grpc.StatusCode.PERMISSION_DENIED,
    "replaced": grpc.StatusCode.ABORTED,
    "disk-full": grpc.StatusCode.RESOURCE_EXHAUSTED,
}
