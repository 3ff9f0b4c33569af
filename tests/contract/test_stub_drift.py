"""The committed stubs are what the compiler makes of the .proto files (``make protos`` renews them)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted(path.name for path in (ROOT / "protos").glob("*.proto"))
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("grpc_tools", reason="grpcio-tools comes with the dev extra")
    out = tmp_path_factory.mktemp("stubs")
    folder = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={folder / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "mypy", "grpc_python", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", *plugins, *outputs]
    subprocess.run([*command, *(f"protos/{name}" for name in PROTOS)], cwd=ROOT, check=True, capture_output=True)
    return out / "protos"


def test_there_are_services() -> None:
    assert PROTOS == ["blobs.proto", "control.proto", "enrolment.proto", "session.proto"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("proto", PROTOS)
def test_no_drift(fresh: Path, proto: str, suffix: str) -> None:
    name = proto.removesuffix(".proto") + suffix
    assert (ROOT / "protos" / name).read_text() == (fresh / name).read_text(), "run `make protos` and commit the result"


def test_no_stub_without_a_source() -> None:
    sources = {proto.removesuffix(".proto") for proto in PROTOS}
    for path in (ROOT / "protos").glob("*_pb2*"):
        assert path.name.split("_pb2")[0] in sources
