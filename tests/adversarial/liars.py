"""A live coordinator whose statements a test bends before they leave, and sites that run as they are, over real TLS.

The coordinator and the participants' daemons are the real ones, with journals and blobs on disk, in one process. A lie
is signed with the coordinator's own key. Only training is replaced: every site's update is fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from coordinator.serving import Coordinator, coordinator, open_run, operator_credentials
from participant.actions import Action, ExpandMask, Say
from participant.daemon import Daemon
from participant.joining import join
from participant.ledger import BudgetLedger
from participant.site import BLOBS, JOURNAL, LEDGER, SecureRules, Site
from participant.store import ParticipantStore
from participant.work import Job, Outcome, Prepared
from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.sharing import MaskTerm
from privacy.secure_aggregation.statements import (
    RELEASES,
    Plan,
    Refused,
    Release,
    RoundStatement,
    Signed,
    Statement,
    Survived,
    Upload,
)
from protos import control_pb2, control_pb2_grpc
from protos import session_pb2 as pb
from wire import BlobStore, FederationConfig, RunPlan, Token, about, client_credentials, connect, set_up_logging

DIMENSION = 20_000
SITES = ("site-0", "site-1", "site-2", "site-3")
VICTIM = SITES[0]

Bend = Callable[[str, Signed], Sequence[Signed]]
"""What is sent instead of a statement that goes to, or comes from, this peer."""

S = TypeVar("S", bound=Statement)


def update_of(name: str) -> NDArray[np.float32]:
    """The update that a site always makes: one value, so that anything but a mask over it shows."""
    return np.full(DIMENSION, 0.01 * (1 + int(name.removeprefix("site-"))), "<f4")


class FixedWork:
    """Stands for ``participant.work.Workbench``: the same update for every task, and no torch.

    Training takes until ``gate`` is set.
    """

    def __init__(self, name: str, manifest_hash: bytes) -> None:
        self.gate = threading.Event()
        self._name = name
        self._manifest_hash = manifest_hash

    def prepare(self, learning: dict[str, Any], run: RunPlan | None = None) -> Prepared:
        return Prepared(manifest_hash=self._manifest_hash, examples=100)

    def perform(
        self,
        job: Job,
        base: Path,
        blobs: BlobStore,
        progress: Callable[[int, int], None],
        cancelled: Callable[[], bool],
    ) -> Outcome:
        assert base.exists()
        while not self.gate.wait(0.02):
            if cancelled():
                raise RuntimeError("called off")
        content = update_of(self._name).tobytes()
        with blobs.writer(len(content)) as writer:
            writer.write(content)
            digest = writer.commit(sync=False)
        return Outcome(digest=digest, size=len(content), examples=100, metrics={"loss": 1.0}, evaluation={})


class LiveSite:
    """A participant's daemon. ``bend`` changes what it says; ``terms`` are the masks that it expanded, by context."""

    def __init__(self, site: Site, plan: RunPlan) -> None:
        self.site = site
        self.name = site.name
        self.bend: Callable[[Signed], Sequence[Signed]] = lambda signed: [signed]
        self.terms: dict[bytes, tuple[MaskTerm, ...]] = {}
        self.store = ParticipantStore(site.folder / JOURNAL)
        self.blobs = BlobStore(site.folder / BLOBS, reserve_bytes=0)
        self.ledger = BudgetLedger(site.folder / LEDGER, site.signing_key, site=site.name)
        self.daemon = Daemon(site, self.store, self.blobs, self.ledger, software="fedloom test")
        self._plan = plan
        self.work = FixedWork(self.name, bytes.fromhex(plan.initial.manifest_hash))
        self.daemon._bench = self.work  # type: ignore[assignment]
        self._perform = self.daemon._perform
        self.daemon._perform = self._bent  # type: ignore[method-assign]
        with about(participant=self.name):
            self.task = asyncio.create_task(self.daemon.run(once=False))

    def say(self, signed: Signed) -> None:
        """Send a statement past the machine."""
        message = pb.FromParticipant(statement=pb.Statement(body=signed.body, signature=signed.signature))
        self._perform([Say(message)])

    def _bent(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, ExpandMask):
                self.terms[action.context.hash] = action.terms
            if isinstance(action, Say) and action.message.WhichOneof("body") == "statement":
                said = action.message.statement
                for signed in self.bend(Signed(said.body, said.signature)):
                    self.say(signed)
            else:
                self._perform([action])

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.daemon.close()
        self.ledger.close()
        self.store.close()


class Liar:
    """The coordinator.

    ``down`` bends what goes to a peer and ``up`` what comes from one before the coordinator's own machine hears it.
    ``deaf`` keeps refusals from the machine, which would give the attempt up; they are counted all the same. ``told``
    and ``heard`` hold what has really passed the wire.
    """

    def __init__(self, folder: Path, running: Coordinator, plan: RunPlan) -> None:
        self.folder = folder
        self.running = running
        self.plan = plan
        self.daemon = running.daemon
        self.store = running.daemon.store
        self.blobs = running.daemon.blobs
        self.state = running.config.coordinator.state
        self.sites: dict[str, LiveSite] = {}
        self.down: Bend = lambda peer, signed: [signed]
        self.up: Bend = lambda peer, signed: [signed]
        self.bend_task: Callable[[str, pb.Task], None] = lambda peer, task: None
        self.deaf = False
        self.hostile: Collection[str] = ()
        self.told: list[tuple[str, Signed]] = []
        self.heard: list[tuple[str, Signed]] = []
        self.contexts: dict[bytes, RoundContext] = {}
        self.log = io.StringIO()
        assert self.daemon.hub is not None
        self.hub = self.daemon.hub
        self._send, self._receive, self._said = self.daemon._send, self.daemon.receive, self.hub._said
        self.daemon._send = self._bent_send  # type: ignore[method-assign]
        self.daemon.receive = self._bent_receive  # type: ignore[method-assign]
        self.hub._said = self._bent_said  # type: ignore[method-assign]

    @property
    def key(self) -> SigningKey:
        """The coordinator's."""
        return self.running.membership.signing_key

    # ---- the wire ---------------------------------------------------------------------------------------------------

    def _bent_send(self, peer: str, message: pb.FromCoordinator) -> None:
        body = message.WhichOneof("body")
        if body == "task":
            self.bend_task(peer, message.task)
        if body != "statement":
            self._send(peer, message)
            return
        for signed in self.down(peer, Signed(message.statement.body, message.statement.signature)):
            self.tell(peer, signed)

    async def _bent_receive(self, peer: str, message: pb.FromParticipant) -> None:
        if message.WhichOneof("body") != "statement":
            await self._receive(peer, message)
            return
        signed = Signed(message.statement.body, message.statement.signature)
        self.heard.append((peer, signed))
        for item in self.up(peer, signed):
            statement = pb.Statement(body=item.body, signature=item.signature)
            await self._receive(peer, pb.FromParticipant(statement=statement))

    def _bent_said(self, peer: str, signed: Signed, now_s: float) -> list[Any]:
        if self.deaf and opened(Refused, signed) is not None:
            return []
        return self._said(peer, signed, now_s)

    def tell(self, peer: str, signed: Signed) -> None:
        """Send these very bytes."""
        self.told.append((peer, signed))
        if (plan := opened(Plan, signed)) is not None:
            with contextlib.suppress(ValueError):
                context = RoundContext.parse(plan.context)
                self.contexts[context.hash] = context
        self._send(peer, pb.FromCoordinator(statement=pb.Statement(body=signed.body, signature=signed.signature)))

    def whisper(self, peers: str | Iterable[str], statement: Statement) -> None:
        """Say something to these peers that the coordinator's machine never would."""
        for peer in [peers] if isinstance(peers, str) else peers:
            self.tell(peer, statement.signed(self.key))

    def forsake(self, peer: str) -> None:
        """Have the coordinator's machine believe that this peer has gone, although it is there."""
        now_s = time.time()
        decision = self.hub.machine.gone(peer, "vanished", "or so the coordinator says", now_s)
        self.daemon.perform(self.hub._carry(decision, now_s))

    # ---- what has passed --------------------------------------------------------------------------------------------

    def sent(self, kind: type[S], peer: str = "") -> list[S]:
        """What sites have sent of a kind, parsed."""
        found = (opened(kind, signed) for name, signed in self.heard if peer in ("", name))
        return [item for item in found if item is not None]

    def senders(self, kind: type[S]) -> set[str]:
        """Sites that have sent a statement of a kind; they repeat theirs whenever they are asked again."""
        return {name for name, signed in self.heard if opened(kind, signed) is not None}

    def said_by(self, kind: type[RoundStatement], context: bytes) -> dict[str, Signed]:
        """The last statement of a kind that each site has sent in an attempt."""
        found = {}
        for name, signed in self.heard:
            item = opened(kind, signed)
            if item is not None and item.context == context:
                found[name] = signed
        return found

    def context(self) -> RoundContext:
        """Of the last plan that any site was sent."""
        return list(self.contexts.values())[-1]

    def attempt(self) -> RoundContext:
        """Of the open attempt of the coordinator's own machine."""
        attempt = self.hub.machine.attempt  # type: ignore[attr-defined]
        assert attempt is not None
        return attempt.context

    def refused(self, code: str) -> set[str]:
        """The peers of which a refusal of this code was counted."""
        return {peer for (counted, peer) in self.store.refusals() if counted == code}

    def version(self) -> int:
        """Versions committed."""
        return self.hub.machine.state.version

    def merged(self, number: int = 1) -> set[str]:
        """Whose updates are in a round's sum."""
        found = self.hub.machine.state.rounds[number - 1].revealed
        return set(found.survivors) if found is not None else set()

    def failures(self) -> list[str]:
        """Why attempts ended without a sum, over all rounds."""
        failed = [attempt.failed for item in self.hub.machine.state.rounds for attempt in item.attempts]
        return [f"{item.code}: {item.message}" for item in failed if item is not None]

    # ---- logs -------------------------------------------------------------------------------------------------------

    def lines(self) -> list[dict[str, Any]]:
        """The log so far, of all that run in this process."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def site_log(self, name: str) -> str:
        """What one site's daemon has logged."""
        mine = [line for line in self.lines() if line["logger"].startswith("fedloom.participant")]
        return "\n".join(line["message"] for line in mine if line.get("participant") == name)

    # ---- waiting and checking ---------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Wait for it."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                shown = self.lines()[-25:]
                tail = "\n".join(f"{line.get('participant', '-')}: {line['message'][:200]}" for line in shown)
                raise AssertionError(f"not after {timeout_s} s: {what}. {self.daemon.message}\n{tail}")
            await asyncio.sleep(0.01)

    async def until_refused(self, code: str, peers: Iterable[str] = SITES, setting: str = "") -> None:
        """Wait until all of these sites have refused with this code; it stands in their logs and in the counts."""
        wanted = set(peers)
        await self.until(lambda: wanted <= self.refused(f"site-{code}"), f"{wanted} refuse with {code}")
        for name in wanted:
            said = [item for item in self.sent(Refused, name) if item.code == code]
            assert said and all(item.setting == setting for item in said), (name, said)
            assert f"refused: {code}:" in self.site_log(name)
            assert setting in self.site_log(name)

    async def until_version(self, version: int) -> None:
        """Wait for a version of the model."""
        await self.until(lambda: self.version() >= version, f"version {version}")

    def check_sound(self) -> None:
        """Nobody has crashed, and nothing but errors with a name was logged."""
        for site in self.sites.values():
            assert not site.task.done(), (site.name, site.task)
        assert not self.daemon._failure.done()
        for line in self.lines():
            assert "exception" not in line and line["logger"].startswith("fedloom"), line
        assert "Traceback" not in self.log.getvalue()

    def check_nothing_revealed(self) -> None:
        """No share of any secret has left a site, and what was uploaded looks like noise."""
        assert not self.sent(Release)
        assert self.version() == 0
        self.check_uploads_masked()

    def check_uploads_masked(self) -> None:
        """All uploads that have reached the coordinator look like noise."""
        for item in self.sent(Upload):
            if self.blobs.has(item.digest):
                assert is_noise(self.blobs.path(item.digest).read_bytes()[: 2 * DIMENSION])

    def check_promises_kept(self) -> None:
        """No honest site has signed two uploads, survivor sets or releases in one attempt, or given both shares."""
        said: dict[tuple[str, str, bytes], set[bytes]] = {}
        for name, signed in self.heard:
            for kind in (Upload, Survived, Release):
                if name not in self.hostile and (item := opened(kind, signed)) is not None:
                    said.setdefault((name, kind.KIND, item.context), set()).add(signed.body)
        for place, bodies in said.items():
            assert len(bodies) == 1, place[:2]
        for release in [item for name in self.sites if name not in self.hostile for item in self.sent(Release, name)]:
            seeds = {row[0] for row in RELEASES.read(release.seeds)}
            assert seeds.isdisjoint(row[0] for row in RELEASES.read(release.mask_keys))

    def check_sum(self, names: Iterable[str], number: int = 1) -> None:
        """The round's version is the mean over these sites' updates, but for rounding."""
        found = sorted(names)
        assert self.merged(number) == set(found)
        before, after = (self._model(version) for version in (number - 1, number))
        mean = np.mean([update_of(name) for name in found], axis=0)
        # What rounding lost in the round before is added in this one; float32 rounds the version once more.
        bound = 2 * self.context().encoding.error_bound(len(found), 100 * len(found)) + 1e-6
        assert np.abs(after - before - mean).max() <= bound, (names, number)

    def _model(self, version: int) -> NDArray[np.float32]:
        checkpoint = self.store.checkpoint(self.plan.run_id, version)
        assert checkpoint is not None
        return np.frombuffer(self.blobs.path(checkpoint.digest).read_bytes()[-4 * DIMENSION :], "<f4")

    # ---- sites ------------------------------------------------------------------------------------------------------

    async def invite(self, name: str) -> Token:
        address, own = operator_credentials(self.state)
        async with connect(address, client_credentials(own), "stage") as channel:
            control: Any = control_pb2_grpc.ControlStub(channel)
            reply = await control.Invite(control_pb2.InviteRequest(names=[name]))
        return Token.parse(reply.invitations[0].token)

    async def admit(self, name: str, rules: Mapping[str, Any]) -> Site:
        """Enrol a site with these rules of its own."""
        site = await join(await self.invite(name), self.folder / name, data="nothing")
        config = site.config.model_copy(update={"reserve_mb": 0, "secure_aggregation": SecureRules(**rules)})
        return dataclasses.replace(site, config=config)


def opened(kind: type[S], signed: Signed) -> S | None:
    """The statement if it is one of this kind."""
    try:
        return kind.parse(signed.body)
    except ValueError:
        return None


def bend(liar: Liar, kind: type[S], change: Callable[[str, S], S | None]) -> Bend:
    """Statements of this kind are changed and signed again; None drops one."""

    def bent(peer: str, signed: Signed) -> Sequence[Signed]:
        statement = opened(kind, signed)
        if statement is None:
            return [signed]
        changed = change(peer, statement)
        if changed is None:
            return []
        return [signed if changed is statement else changed.signed(liar.key)]

    return bent


def held(*kinds: type[Statement], by: Bend | None = None) -> Bend:
    """Statements of these kinds don't go through; others as ``by`` says."""

    def bent(peer: str, signed: Signed) -> Sequence[Signed]:
        if any(opened(kind, signed) is not None for kind in kinds):
            return []
        return by(peer, signed) if by is not None else [signed]

    return bent


def both(one: Bend, other: Bend) -> Bend:
    """One behind the other."""
    return lambda peer, signed: [item for first in one(peer, signed) for item in other(peer, first)]


def is_noise(content: bytes) -> bool:
    """Whether no byte value is much more frequent than the others, as in a masked update and in no other one."""
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    mean = len(content) / 256
    assert mean > 100
    # Ten standard deviations: by chance once in 10^20.
    return bool(np.abs(counts - mean).max() < 10 * mean**0.5)


@contextlib.asynccontextmanager
async def lying(
    folder: Path,
    *,
    names: Sequence[str] = SITES,
    rules: Mapping[str, Any] | None = None,
    lease_s: float = 20.0,
    secure: Mapping[str, Any] | None = None,
    deaf: bool = True,
    untrained: Collection[str] = (),
    hostile: Collection[str] = (),
    bend_first: Callable[[Liar], None] = lambda liar: None,
    **rounds: Any,
) -> AsyncIterator[Liar]:
    """A coordinator with a run open and sites connected.

    Args:
        folder: For everybody's files.
        names: Of the sites.
        rules: What the sites demand of secure sums.
        lease_s: See ``coordinator.hub.Hub``; also how long a quick answer is waited for.
        secure: Settings of ``[secure_aggregation]``.
        deaf: Whether the coordinator goes on as if nobody had refused anything.
        untrained: Sites whose training doesn't end by itself.
        hostile: Sites that a test bends.
        bend_first: Called before the first site connects.
        rounds: Settings of ``[rounds]``.
    """
    table = {
        "federation": {"name": "stage"},
        "coordinator": {"port": 0, "enrolment_port": 0, "state": folder / "state", "lease_s": lease_s, "reserve_mb": 0},
        "aggregation": {"mode": "secure"},
        "secure_aggregation": {"weight_cap": 100, **(secure or {})},
        "rounds": {
            "count": 1,
            "min_participants": len(names),
            "min_updates": 3,
            "evaluate_every": 0,
            "deadline_s": 60.0,
            **rounds,
        },
    }
    config = FederationConfig.model_validate(table)

    def initial(path: Path) -> Path:
        save_file({"w": np.zeros(DIMENSION, np.float32)}, path)
        return path

    state = config.coordinator.state
    log = io.StringIO()
    handler = set_up_logging(json_lines=True, stream=log)
    level = logging.getLogger().level
    try:
        async with contextlib.AsyncExitStack() as stack:
            running = await stack.enter_async_context(coordinator(config, state))
            plan = await open_run(running, state, initial, metrics=("loss",))
            liar = Liar(folder, running, plan)
            liar.log, liar.deaf, liar.hostile = log, deaf, hostile
            bend_first(liar)
            admitted = [await liar.admit(name, rules or {}) for name in names]
            for site in admitted:
                liar.sites[site.name] = live = LiveSite(site, plan)
                if site.name not in untrained:
                    live.work.gate.set()
                stack.push_async_callback(live.close)
            yield liar
            liar.check_sound()
            liar.check_promises_kept()
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
