"""What a peer may send and must not get away with: refused by name, counted, and the round goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from participant.joining import join
from protos import enrolment_pb2, enrolment_pb2_grpc, session_pb2_grpc
from protos import session_pb2 as pb
from tests.adversarial.puppets import DIMENSION, Puppet, Stage, stage, update
from wire import (
    PROTOCOL_VERSION,
    FederationCA,
    FedloomError,
    RefusedError,
    Role,
    UnreachableError,
    client_credentials,
    connect,
    error_from,
    explain_handshake,
    make_csr,
    make_key_and_csr,
    newcomer_credentials,
)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as running:
        yield running


async def refusals(live: Stage) -> dict[str, int]:
    return dict((await live.status()).refusals)


async def two_ready(live: Stage, good: Puppet, bad: Puppet) -> None:
    await good.ready()
    await bad.ready()


async def test_the_round_goes_through_with_two_honest_puppets(live: Stage) -> None:
    a, b = await live.site("a"), await live.site("b")
    async with live.puppet(a) as one, live.puppet(b) as two:
        await two_ready(live, one, two)
        first, second = await asyncio.gather(one.deliver(update(1.0)), two.deliver(update(3.0)))
        assert first.accepted and second.accepted
        committed = await one.hear("committed")
        assert (committed.version, committed.updates) == (1, 2)
        finished = await two.hear("run_finished")
        assert finished.reason == "completed"
    path = live.running.daemon.blobs.path(committed.model.digest)
    assert np.frombuffer(path.read_bytes()[-4 * DIMENSION :], "<f4").tolist() == [2.0] * DIMENSION


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(np.nan, "update-not-finite"), (np.inf, "update-not-finite"), (-np.inf, "update-not-finite")],
)
async def test_one_coordinate_that_is_not_finite_is_refused_by_name_and_the_round_goes_on(
    live: Stage, spoil: float, code: str
) -> None:
    a, b = await live.site("a"), await live.site("b")
    async with live.puppet(a) as one, live.puppet(b) as two:
        await two_ready(live, one, two)
        poisoned = np.zeros(DIMENSION, "<f4")
        poisoned[DIMENSION - 7] = spoil
        receipt = await two.deliver(poisoned.tobytes())
        assert (receipt.accepted, receipt.code) == (False, code)
        assert str(DIMENSION - 7) in receipt.message
        assert (await one.deliver(update())).accepted
    status = await live.status()
    assert status.refusals[code] == 1
    outcomes = {seat.name: seat.outcome for seat in status.history[0].participants}
    assert outcomes == {"a": "done", "b": f"refused: {code}"}


async def test_an_announced_update_that_was_never_uploaded_is_refused(live: Stage) -> None:
    a, b = await live.site("a"), await live.site("b")
    async with live.puppet(a) as one, live.puppet(b) as two:
        await two_ready(live, one, two)
        task = await two.hear("task")
        await two.announce(task.task_id, update())
        assert (await two.hear("receipt")).code == "update-missing"


@pytest.mark.parametrize(
    ("content", "digest", "size", "code"),
    [
        (update(), None, 4 * DIMENSION + 4, "blob-size"),
        (update(), None, 1 << 40, "blob-size"),
        (update() + b"more", None, 4 * DIMENSION, "blob-size"),
        (update()[:-8], hashlib.sha256(update()).digest(), 4 * DIMENSION, "blob-truncated"),
        (update(), b"\0" * 32, 4 * DIMENSION, "blob-digest"),
        (update(), b"short", 4 * DIMENSION, "blob-unknown"),
    ],
)
async def test_a_blob_that_is_not_what_its_header_says_is_refused_and_leaves_nothing(
    live: Stage, content: bytes, digest: bytes | None, size: int | None, code: str
) -> None:
    a, b = await live.site("a"), await live.site("b")
    async with live.puppet(a) as one, live.puppet(b) as two:
        await two_ready(live, one, two)
        task = await two.hear("task")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await two.upload(content, digest=digest, size=size)
        assert error_from(failure.value).code == code
        assert (await refusals(live))[code] == 1
        # The same participant may still do it right.
        await two.upload(update())
        await two.announce(task.task_id, update())
        assert (await two.hear("receipt")).accepted


async def test_nobody_uploads_what_is_not_expected_of_them(live: Stage) -> None:
    site = await live.site("a")
    async with live.puppet(site) as puppet:
        await puppet.ready()
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await puppet.upload(update())
        assert error_from(failure.value).code == "blob-not-expected"


async def test_another_protocol_version_is_told_both_versions(live: Stage) -> None:
    site = await live.site("a")
    async with live.puppet(site) as puppet:
        await puppet.say(check_in=pb.CheckIn(protocol_version=99, software="fedloom 9.9"))
        rejection = await puppet.hear("rejection")
    assert rejection.code == "protocol-version"
    assert "99" in rejection.message
    assert str(PROTOCOL_VERSION) in rejection.message
    assert (await refusals(live))["protocol-version"] == 1


async def test_another_models_manifest_is_refused(live: Stage) -> None:
    site = await live.site("a")
    async with live.puppet(site) as puppet:
        await puppet.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION))
        await puppet.hear("welcome")
        await puppet.say(ready=pb.Ready(plan_hash=live.plan.hash, manifest_hash=b"x" * 32, examples=5))
        assert (await puppet.hear("rejection")).code == "manifest-mismatch"


async def test_garbage_on_the_stream_ends_the_stream_and_nothing_else(live: Stage) -> None:
    site = await live.site("a")
    async with connect(site.config.session_address, client_credentials(site.credentials), "stage") as channel:
        raw = channel.stream_stream("/fedloom.v1.Session/Attach")()
        await raw.write(b"\xff\xff\xff\xff garbage")
        assert await raw.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await refusals(live))["message-malformed"] == 1
    async with live.puppet(site) as puppet:
        await puppet.ready()
    assert (await live.status()).state == "waiting"


async def test_a_second_stream_of_a_participant_replaces_the_first(live: Stage) -> None:
    site = await live.site("a")
    async with live.puppet(site) as first:
        await first.ready()
        async with live.puppet(site) as second:
            await second.ready()
            assert (await first.hear("rejection")).code == "replaced"


async def test_a_revoked_participant_is_cut_off_and_cannot_come_back(live: Stage) -> None:
    site = await live.site("a")
    async with live.puppet(site) as puppet:
        await puppet.ready()
        async with live.operator() as control:
            from protos import control_pb2

            reply = await control.Revoke(control_pb2.RevokeRequest(name="a", reason="left the study"))
        assert reply.was_connected
        rejection = await puppet.hear("rejection")
        assert rejection.code == "participant-revoked"
        assert "left the study" in rejection.message
    async with live.puppet(site) as puppet:
        error = await _final(puppet)
    assert error.code == "participant-revoked"
    assert (await refusals(live))["participant-revoked"] == 1


async def test_after_a_new_enrolment_the_stolen_old_key_is_worth_nothing(live: Stage) -> None:
    old = await live.site("a")
    new = await join(await live.invite("a"), live.folder / "a2", data="nothing")
    async with live.puppet(new) as puppet:
        await puppet.ready()
    async with live.puppet(old) as puppet:
        assert (await _final(puppet)).code == "participant-revoked"


async def _final(puppet: Puppet) -> FedloomError:
    """The error that a stream ended with."""
    stream = puppet.stream
    metadata = await stream.initial_metadata(), await stream.trailing_metadata()
    return error_from(grpc.aio.AioRpcError(await stream.code(), *metadata, await stream.details(), None))


async def test_a_certificate_of_another_federation_is_explained_logged_and_counted(live: Stage) -> None:
    site = await live.site("a")
    foreign = FederationCA.create("elsewhere").issue_client("a", Role.PARTICIPANT, 1.0)
    own = dataclasses.replace(foreign, ca_pem=site.credentials.ca_pem)
    async with connect(site.config.session_address, client_credentials(own), "stage") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await session_pb2_grpc.SessionStub(channel).Renew(pb.RenewRequest())
    unexplained = error_from(failure.value)
    assert isinstance(unexplained, UnreachableError)
    address = site.config.enrolment_address
    error = await explain_handshake(unexplained, address, site.credentials.ca_pem, "stage", own.certificate_pem)
    assert error.code == "certificate-foreign"
    assert "elsewhere" in error.message
    assert (await refusals(live))["certificate-foreign"] == 1


async def test_a_participant_may_not_play_the_operator_nor_the_operator_a_participant(live: Stage) -> None:
    from coordinator.serving import operator_credentials
    from protos import control_pb2, control_pb2_grpc

    site = await live.site("a")
    async with connect(site.config.session_address, client_credentials(site.credentials), "stage") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await control_pb2_grpc.ControlStub(channel).GetStatus(control_pb2.StatusRequest())
        assert error_from(failure.value).code == "certificate-role"
    address, own = operator_credentials(live.state)
    async with connect(address, client_credentials(own), "stage") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await session_pb2_grpc.SessionStub(channel).Renew(pb.RenewRequest())
        assert error_from(failure.value).code == "certificate-role"


async def test_the_operator_can_end_a_run_and_everyone_is_told(live: Stage) -> None:
    from protos import control_pb2

    site = await live.site("a")
    async with live.puppet(site) as puppet, live.operator() as control:
        await puppet.ready()
        reply = await control.Stop(control_pb2.StopRequest())
        assert (reply.run_id, reply.version) == ("stage-1", 0)
        assert (await puppet.hear("run_finished")).reason == "stopped"
    assert (await live.status()).state == "finished"


async def test_a_renewed_certificate_needs_the_enrolled_key(live: Stage) -> None:
    site = await live.site("a")
    async with connect(site.config.session_address, client_credentials(site.credentials), "stage") as channel:
        stub = session_pb2_grpc.SessionStub(channel)
        own = make_csr(site.credentials.key_pem, "a")
        reply = await stub.Renew(pb.RenewRequest(csr_pem=own))
        renewed = site.renewed(reply.certificate_pem)
        _, stranger = make_key_and_csr("a")
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.Renew(pb.RenewRequest(csr_pem=stranger))
        assert error_from(failure.value).code == "csr-invalid"
    for valid in (renewed, site):
        async with live.puppet(valid) as puppet:
            await puppet.ready()


async def test_a_token_works_once(live: Stage) -> None:
    token = await live.invite("a")
    await join(token, live.folder / "a", data="nothing")
    with pytest.raises(RefusedError, match="used already") as refusal:
        await join(token, live.folder / "thief", data="nothing")
    assert refusal.value.code == "token-used"
    assert "someone else did" in refusal.value.hint
    assert not (live.folder / "thief" / "participant.toml").exists()


async def test_of_two_that_race_for_a_token_one_wins(live: Stage) -> None:
    token = await live.invite("a")
    sites = [join(token, live.folder / f"racer-{index}", data="nothing") for index in range(4)]
    results = await asyncio.gather(*sites, return_exceptions=True)
    codes = sorted(getattr(result, "code", "joined") for result in results)
    assert codes == ["joined", "token-used", "token-used", "token-used"]


async def test_an_expired_token_says_so(live: Stage) -> None:
    token = await live.invite("a", ttl_s=0.05)
    await asyncio.sleep(0.1)
    with pytest.raises(RefusedError, match="expired") as refusal:
        await join(token, live.folder / "a", data="nothing")
    assert refusal.value.code == "token-expired"
    assert "coordinator invite" in refusal.value.hint


async def test_a_token_for_another_name_or_with_another_secret_is_wrong(live: Stage) -> None:
    token = await live.invite("a")
    for changed in (dataclasses.replace(token, name="b"), dataclasses.replace(token, secret=b"s" * 32)):
        with pytest.raises(RefusedError) as refusal:
            await join(changed, live.folder / "x", data="nothing")
        assert refusal.value.code == "token-wrong"
    await join(token, live.folder / "a", data="nothing")


async def test_a_token_of_another_coordinator_never_sends_its_secret(live: Stage) -> None:
    token = dataclasses.replace(await live.invite("a"), fingerprint=b"f" * 32)
    with pytest.raises(RefusedError, match="fingerprint") as refusal:
        await join(token, live.folder / "a", data="nothing")
    assert refusal.value.code == "certificate-foreign"
    assert "token-wrong" not in await refusals(live)


@pytest.mark.parametrize("csr", [b"", b"garbage", b"x" * 100_000])
async def test_a_signing_request_that_is_garbage_does_not_use_the_token_up(live: Stage, csr: bytes) -> None:
    token = await live.invite("a")
    site = await live.site("b")
    async with connect(token.address, newcomer_credentials(site.credentials.ca_pem), "stage") as channel:
        request = enrolment_pb2.EnrolRequest(
            protocol_version=PROTOCOL_VERSION, name="a", secret=token.secret, csr_pem=csr
        )
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request)
    assert error_from(failure.value).code == "csr-invalid"
    await join(token, live.folder / "a", data="nothing")


async def test_an_enrolment_of_another_protocol_version_is_told_so(live: Stage) -> None:
    token = await live.invite("a")
    site = await live.site("b")
    async with connect(token.address, newcomer_credentials(site.credentials.ca_pem), "stage") as channel:
        request = enrolment_pb2.EnrolRequest(protocol_version=2, name="a", secret=token.secret)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request)
    assert error_from(failure.value).code == "protocol-version"


async def test_a_message_over_the_limit_is_refused_before_it_is_read(live: Stage) -> None:
    site = await live.site("a")
    options = [("grpc.max_send_message_length", -1), ("grpc.ssl_target_name_override", "coordinator.stage")]
    credentials = client_credentials(site.credentials)
    async with grpc.aio.secure_channel(site.config.session_address, credentials, options=options) as channel:
        puppet = Puppet("a", live.plan, channel)
        await puppet.say(check_in=pb.CheckIn(protocol_version=PROTOCOL_VERSION))
        await puppet.hear("members")  # gRPC holds the status back behind messages that nobody has read
        await puppet.say(leave=pb.Leave(reason="x" * (5 << 20)))
        assert await puppet.stream.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await live.status()).state == "waiting"
