"""A federation's authority and a way to run servers on free loopback ports."""

from __future__ import annotations

import pytest

from wire import Credentials, FederationCA, Role


@pytest.fixture(scope="session")
def ca() -> FederationCA:
    return FederationCA.create("demo")


@pytest.fixture(scope="session")
def server_identity(ca: FederationCA) -> Credentials:
    return ca.issue_server(["127.0.0.1", "localhost"])


@pytest.fixture(scope="session")
def hospital(ca: FederationCA) -> Credentials:
    return ca.issue_client("hospital-a", Role.PARTICIPANT, 30)
