"""What both daemons share about the network: TLS, enrolment certificates, plans, chunked blobs, codec, errors.

Names are loaded when they are first used, so that a command that only reads a file starts no gRPC. The database is not
exported: ``wire.database`` is for the two stores alone.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wire.blob_service import BlobPolicy, BlobService
    from wire.blobs import BlobRef, BlobStore, BlobWriter, PartWriter
    from wire.channel import (
        Listener,
        abort,
        bind_error,
        connect,
        error_from,
        error_of,
        explain_handshake,
        join_address,
        serve,
    )
    from wire.codec import CheckpointHeader, check_update, read_header
    from wire.config import commented_toml, read_toml, validate
    from wire.errors import (
        ConfigError,
        DataError,
        Exit,
        FedloomError,
        RefusedError,
        ResourceError,
        UnreachableError,
    )
    from wire.federation import FederationConfig, SimulatedInstitution, SimulationSection
    from wire.federation import load as load_federation
    from wire.hours import OpeningHours, opening_window, time_zone
    from wire.logs import about, set_up_logging
    from wire.merging import MergingSpec, MergingStep
    from wire.names import check_name
    from wire.noise import shared_noise
    from wire.pki import (
        Credentials,
        FederationCA,
        Identity,
        Role,
        csr_has_key_of,
        explain_certificate,
        federation_of,
        fingerprint,
        make_csr,
        make_key_and_csr,
        same_key,
    )
    from wire.plan import AggregationSpec, InitialModel, RoundsSpec, RunPlan, SecureSpec, SharedNoise
    from wire.privacy import PrivacySpec
    from wire.process import PROTOCOL_VERSION, hold_folder, software, until_stopped
    from wire.root import (
        Requests,
        as_refusal,
        load_root,
        load_signing_key,
        make_root,
        pack_members,
        parse_public_key,
        read_members,
        read_members_or_requests,
        read_requests,
        save_signing_key,
        unpack_members,
        write_members,
        write_requests,
    )
    from wire.tls import (
        client_credentials,
        enrolment_credentials,
        newcomer_credentials,
        peer_identity,
        pinned_ca,
        server_credentials,
    )
    from wire.token import Token
    from wire.transfer import download, file_digest, upload

# gRPC's core writes lines of its own to standard error, for example for each refused handshake. Ours say what happened.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

_HOME = {
    "blobs": ("BlobRef", "BlobStore", "BlobWriter", "PartWriter"),
    "channel": (
        "Listener",
        "abort",
        "bind_error",
        "connect",
        "error_from",
        "error_of",
        "explain_handshake",
        "join_address",
        "serve",
    ),
    "codec": ("CheckpointHeader", "check_update", "read_header"),
    "config": ("commented_toml", "read_toml", "validate"),
    "errors": (
        "ConfigError",
        "DataError",
        "Exit",
        "FedloomError",
        "RefusedError",
        "ResourceError",
        "UnreachableError",
    ),
    "federation": ("FederationConfig", "SimulatedInstitution", "SimulationSection", "load_federation"),
    "hours": ("OpeningHours", "opening_window", "time_zone"),
    "logs": ("about", "set_up_logging"),
    "merging": ("MergingSpec", "MergingStep"),
    "names": ("check_name",),
    "noise": ("shared_noise",),
    "pki": (
        "Credentials",
        "FederationCA",
        "Identity",
        "Role",
        "csr_has_key_of",
        "explain_certificate",
        "federation_of",
        "fingerprint",
        "make_csr",
        "make_key_and_csr",
        "same_key",
    ),
    "plan": ("AggregationSpec", "InitialModel", "RoundsSpec", "RunPlan", "SecureSpec", "SharedNoise"),
    "privacy": ("PrivacySpec",),
    "process": ("PROTOCOL_VERSION", "hold_folder", "software", "until_stopped"),
    "root": (
        "Requests",
        "as_refusal",
        "load_root",
        "load_signing_key",
        "make_root",
        "pack_members",
        "parse_public_key",
        "read_members",
        "read_members_or_requests",
        "read_requests",
        "save_signing_key",
        "unpack_members",
        "write_members",
        "write_requests",
    ),
    "tls": (
        "client_credentials",
        "enrolment_credentials",
        "newcomer_credentials",
        "peer_identity",
        "pinned_ca",
        "server_credentials",
    ),
    "token": ("Token",),
    "blob_service": ("BlobPolicy", "BlobService"),
    "transfer": ("download", "file_digest", "upload"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}
_RENAMED = {"load_federation": "load"}

__all__ = [
    "PROTOCOL_VERSION",
    "AggregationSpec",
    "BlobPolicy",
    "BlobRef",
    "BlobService",
    "BlobStore",
    "BlobWriter",
    "CheckpointHeader",
    "ConfigError",
    "Credentials",
    "DataError",
    "Exit",
    "FederationCA",
    "FederationConfig",
    "FedloomError",
    "Identity",
    "InitialModel",
    "Listener",
    "MergingSpec",
    "MergingStep",
    "OpeningHours",
    "PartWriter",
    "PrivacySpec",
    "RefusedError",
    "Requests",
    "ResourceError",
    "Role",
    "RoundsSpec",
    "RunPlan",
    "SecureSpec",
    "SharedNoise",
    "SimulatedInstitution",
    "SimulationSection",
    "Token",
    "UnreachableError",
    "abort",
    "about",
    "as_refusal",
    "bind_error",
    "check_name",
    "check_update",
    "client_credentials",
    "commented_toml",
    "connect",
    "csr_has_key_of",
    "download",
    "enrolment_credentials",
    "error_from",
    "error_of",
    "explain_certificate",
    "explain_handshake",
    "federation_of",
    "file_digest",
    "fingerprint",
    "hold_folder",
    "join_address",
    "load_federation",
    "load_root",
    "load_signing_key",
    "make_csr",
    "make_key_and_csr",
    "make_root",
    "newcomer_credentials",
    "opening_window",
    "pack_members",
    "parse_public_key",
    "peer_identity",
    "pinned_ca",
    "read_header",
    "read_members",
    "read_members_or_requests",
    "read_requests",
    "read_toml",
    "same_key",
    "save_signing_key",
    "serve",
    "server_credentials",
    "set_up_logging",
    "shared_noise",
    "software",
    "time_zone",
    "unpack_members",
    "until_stopped",
    "upload",
    "validate",
    "write_members",
    "write_requests",
]


def __getattr__(name: str) -> Any:
    """Load an exported name (PEP 562)."""
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), _RENAMED.get(name, name))
    globals()[name] = value
    return value
