"""A federation's authority and a way to run servers on free loopback ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blob_site import Policy, Site, start

from protos import blobs_pb2_grpc
from wire import BlobStore, Credentials, FederationCA, Role, client_credentials, connect


@pytest.fixture(scope="session")
def ca() -> FederationCA:
    return FederationCA.create("demo")


@pytest.fixture(scope="session")
def server_identity(ca: FederationCA) -> Credentials:
    return ca.issue_server(["127.0.0.1", "localhost"])


@pytest.fixture(scope="session")
def hospital(ca: FederationCA) -> Credentials:
    return ca.issue_client("hospital-a", Role.PARTICIPANT, 30)


@pytest.fixture
async def site(tmp_path: Path, server_identity: Credentials) -> AsyncIterator[Site]:
    store, policy = BlobStore(tmp_path / "server"), Policy()
    made = Site(store, policy, await start(store, policy, server_identity), server_identity)
    yield made
    await made.listener.stop()


@pytest.fixture
async def stub(site: Site, hospital: Credentials) -> AsyncIterator[blobs_pb2_grpc.BlobsAsyncStub]:
    async with connect(site.listener.address, client_credentials(hospital), "demo") as channel:
        yield blobs_pb2_grpc.BlobsStub(channel)


@pytest.fixture
def local(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "client")
