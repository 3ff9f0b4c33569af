"""Signing keys on disk, and the files that travel between the coordinator and the keeper of a root that is kept apart.

Three places hold an Ed25519 key, each as 32 bytes in hexadecimal in a file of mode 0600: a site's identity folder, the
coordinator's ``signing`` folder, and the federation root's own folder. Two kinds of file are public and travel:
*requests* (who asks to be certified) go to the root, the *member list* comes back. Both are JSON for people to read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.identities import MemberRequest, Role, check_public_key
from privacy.secure_aggregation.keys import KEY_BYTES, SigningKey
from privacy.secure_aggregation.members import Action, End, FederationRoot, MemberEntry, MemberList
from protos import session_pb2
from wire.errors import ConfigError, DataError, RefusedError
from wire.pki import read_private, write_private, write_public

SIGNING_KEY: Final = "signing.key"
ROOT_KEY: Final = "root.key"
MEMBERS: Final = "members.json"
"""The member list in a root's folder."""

MAX_FILE_BYTES: Final = 64 << 20
MAX_ENTRIES: Final = 4_096
"""Entries in one message: at most 2 MiB, whatever the names are."""

_LIST: Final = "fedloom-members/1"
_REQUESTS: Final = "fedloom-member-requests/1"

_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Entry(_Strict):
    index: int
    previous: _Hash
    action: Literal["add", "remove"]
    role: Literal["participant", "coordinator"]
    name: str
    public_key: _Hash
    valid_until: int
    signature: _Signature


class _ListFile(_Strict):
    format: Literal["fedloom-members/1"]
    federation: str
    root: _Hash
    entries: list[_Entry]


class _End(_Strict):
    count: int
    head: _Hash


class _Request(_Strict):
    role: Literal["participant", "coordinator"]
    name: str
    public_key: _Hash
    binding: _Hash
    signature: _Signature


class _RequestsFile(_Strict):
    format: Literal["fedloom-member-requests/1"]
    federation: str
    root: _Hash
    end: _End
    requests: list[_Request]


_File = TypeVar("_File", bound=BaseModel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requests:
    """Who asks the root to be certified.

    Attributes:
        federation: The federation's name.
        root: The public key that the coordinator takes for the root's, 32 bytes.
        end: Where the coordinator's member list ends.
        requests: In the order in which they are shown to the root's keeper.
    """

    federation: str
    root: bytes
    end: End
    requests: tuple[MemberRequest, ...]


# --- keys -------------------------------------------------------------------------------------------------------------


def save_signing_key(folder: Path, key: SigningKey, name: str = SIGNING_KEY) -> None:
    """Write a private key into ``folder`` (made with mode 0700 if it isn't there), mode 0600, atomically."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / name, key.secret.hex().encode() + b"\n")


def load_signing_key(folder: Path, name: str = SIGNING_KEY) -> SigningKey:
    """Read what :func:`save_signing_key` wrote.

    Raises:
        DataError: If the file is missing or isn't a key.
        ConfigError: If others can read it.
    """
    text = read_private(folder / name)
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise DataError(f"{folder / name}: this is not a private key", "Restore it from a backup.")
    return SigningKey(secret)


def make_root(folder: Path, federation: str) -> FederationRoot:
    """Make a federation root in ``folder``: its key, and a member list without entries.

    Raises:
        ConfigError: If the folder holds a root already.
    """
    if (folder / ROOT_KEY).exists():
        raise ConfigError(
            f"{folder} holds the root of a federation already",
            "A root is never overwritten. Choose another folder, or move this one away.",
        )
    root = FederationRoot(federation, SigningKey.generate())
    save_signing_key(folder, root.key, ROOT_KEY)
    write_members(folder / MEMBERS, root.empty())
    return root


def load_root(folder: Path, federation: str) -> FederationRoot:
    """Read the key that :func:`make_root` wrote; errors as in :func:`load_signing_key`."""
    return FederationRoot(federation, load_signing_key(folder, ROOT_KEY))


def parse_public_key(text: str, what: str) -> bytes:
    """Read a public key that a person typed or pasted: 64 hexadecimal digits, blanks ignored.

    Raises:
        ConfigError: If it isn't one; the message names ``what``.
    """
    try:
        key = bytes.fromhex("".join(text.split()))
        check_public_key(key, what)
    except ValueError as error:
        raise ConfigError(
            f"{what} {text[:80]!r} is not a public key",
            "It has 64 hexadecimal digits: fedloom federation init and fedloom federation show print it.",
        ) from error
    return key


# --- files that travel ------------------------------------------------------------------------------------------------


def write_members(path: Path, chain: MemberList) -> None:
    """Write a member list as JSON, atomically."""
    body = _ListFile(
        format="fedloom-members/1",
        federation=chain.federation,
        root=chain.root.hex(),
        entries=[_entry_model(entry) for entry in chain.entries],
    )
    _write(path, body)


def read_members(path: Path) -> MemberList:
    """Read and verify a member list.

    The list is checked against the root that the file itself names: compare ``root`` with the one you trust.

    Raises:
        DataError: If the file is missing or isn't a member list.
        RefusedError: If the list doesn't verify; the codes are those of ``MemberList.extend``.
    """
    return _members(path, _read(path))


def write_requests(path: Path, requests: Requests) -> None:
    """Write requests as JSON, atomically."""
    body = _RequestsFile(
        format="fedloom-member-requests/1",
        federation=requests.federation,
        root=requests.root.hex(),
        end=_End(count=requests.end.count, head=requests.end.head.hex()),
        requests=[
            _Request.model_validate(
                {
                    "role": str(item.role),
                    "name": item.name,
                    "public_key": item.public_key.hex(),
                    "binding": item.binding.hex(),
                    "signature": item.signature.hex(),
                }
            )
            for item in requests.requests
        ],
    )
    _write(path, body)


def read_requests(path: Path) -> Requests:
    """Read requests, and check that each is signed by the key that it asks to certify.

    Raises:
        DataError: If the file is missing or holds no requests.
        RefusedError: "member-proof" or "member-key-invalid".
    """
    return _requests(path, _read(path))


def read_members_or_requests(path: Path) -> MemberList | Requests:
    """Read whichever of the two a file is; errors as in :func:`read_members` and :func:`read_requests`."""
    data = _read(path)
    return _requests(path, data) if data.get("format") == _REQUESTS else _members(path, data)


@contextlib.contextmanager
def as_refusal(prefix: str = "") -> Iterator[None]:
    """Turn what the member list refuses into a :class:`RefusedError` of the same code, as gRPC carries it."""
    try:
        yield
    except SecureAggregationError as error:
        raise RefusedError(error.code, f"{prefix}{error.message}", error.hint) from error


def pack_members(entries: Iterable[MemberEntry]) -> list[session_pb2.MemberEntry]:
    """Entries as messages."""
    return [session_pb2.MemberEntry(body=entry.body, signature=entry.signature) for entry in entries]


def unpack_members(messages: Iterable[session_pb2.MemberEntry]) -> list[MemberEntry]:
    """Entries from messages; they are well-formed, and not verified.

    Raises:
        RefusedError: "members-malformed".
    """
    with as_refusal():
        return [MemberEntry.decode(message.body, message.signature) for message in messages]


def _members(path: Path, data: Mapping[str, Any]) -> MemberList:
    body = _validated(path, _ListFile, data, "a member list")
    with as_refusal(f"{path}: "):
        entries = [
            MemberEntry(
                index=item.index,
                previous=bytes.fromhex(item.previous),
                federation=body.federation,
                action=Action(item.action),
                role=Role(item.role),
                name=item.name,
                public_key=bytes.fromhex(item.public_key),
                valid_until=item.valid_until,
                signature=bytes.fromhex(item.signature),
            )
            for item in body.entries
        ]
        return MemberList.verify(body.federation, bytes.fromhex(body.root), entries)


def _requests(path: Path, data: Mapping[str, Any]) -> Requests:
    body = _validated(path, _RequestsFile, data, "a list of requests")
    requests = tuple(
        MemberRequest(
            federation=body.federation,
            role=Role(item.role),
            name=item.name,
            public_key=bytes.fromhex(item.public_key),
            binding=bytes.fromhex(item.binding),
            signature=bytes.fromhex(item.signature),
        )
        for item in body.requests
    )
    with as_refusal(f"{path}: "):
        for request in requests:
            request.check()
    end = End(body.end.count, bytes.fromhex(body.end.head))
    return Requests(federation=body.federation, root=bytes.fromhex(body.root), end=end, requests=requests)


def _entry_model(entry: MemberEntry) -> _Entry:
    return _Entry.model_validate(
        {
            "index": entry.index,
            "previous": entry.previous.hex(),
            "action": str(entry.action),
            "role": str(entry.role),
            "name": entry.name,
            "public_key": entry.public_key.hex(),
            "valid_until": entry.valid_until,
            "signature": entry.signature.hex(),
        }
    )


def _validated(path: Path, model: type[_File], data: Mapping[str, Any], what: str) -> _File:
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = _place(first["loc"])
        raise DataError(f"{path}: this is not {what}: {place}{first['msg']}", _COPY_AGAIN) from error


_COPY_AGAIN: Final = "Copy it again: these files are written by fedloom coordinator members and fedloom federation."


def _place(parts: Sequence[int | str]) -> str:
    return f"{'.'.join(str(part) for part in parts)}: " if parts else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes", _COPY_AGAIN)
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file", "Is this the right name?") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is not JSON", _COPY_AGAIN) from error
    if not isinstance(data, dict) or data.get("format") not in (_LIST, _REQUESTS):
        raise DataError(f"{path}: this is neither a member list nor a list of requests", _COPY_AGAIN)
    return data


def _write(path: Path, body: BaseModel) -> None:
    try:
        write_public(path, (json.dumps(body.model_dump(), indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{path}: this file can't be written: {error.strerror}", "Does the folder exist?") from error
