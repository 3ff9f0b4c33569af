"""A coordinator that would learn about fewer than an atom: over real connections, refused by name by real sites."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from privacy.secure_aggregation.context import RoundContext
from privacy.secure_aggregation.statements import (
    UPLOADS,
    Freeze,
    Plan,
    Survivors,
    Upload,
    positions_bytes,
    positions_of,
)
from tests.adversarial.liars import Liar, bend, lying

SIX = tuple(f"site-{index}" for index in range(6))
VICTIM = SIX[0]


def atom_of(liar: Liar, name: str) -> list[str]:
    """Names of an atom's members, sorted."""
    atoms = liar.hub.machine.state.atoms
    return sorted(other for other in atoms if atoms[other] == atoms[name])


def another_atom(context: RoundContext) -> RoundContext:
    """One of the victim's mates is exchanged for somebody else."""
    mate = next(item for item in range(1, 6) if context.atoms[item] == context.atoms[0])
    stranger = next(item for item in range(1, 6) if context.atoms[item] != context.atoms[0])
    atoms = list(context.atoms)
    atoms[mate], atoms[stranger] = atoms[stranger], atoms[mate]
    return dataclasses.replace(context, atoms=tuple(atoms))


async def test_a_mate_that_is_exchanged_between_two_rounds_is_missed_by_everyone(tmp_path: Path) -> None:
    async with lying(tmp_path, names=SIX, secure={"group_size": 3}, count=2) as liar:

        def swapped(peer: str, true: Plan) -> Plan:
            context = RoundContext.parse(true.context)
            return true if context.round == 1 else Plan(another_atom(context).canonical())

        liar.down = bend(liar, Plan, swapped)
        await liar.until_refused("atom-changed", SIX)
        liar.check_sum(SIX, 1)
        assert liar.version() == 1 and liar.hub.machine.state.rounds[1].revealed is None


async def test_a_mate_that_is_declared_unready_takes_the_victim_out_of_the_uploads(tmp_path: Path) -> None:
    async with lying(tmp_path, names=SIX, secure={"group_size": 3}) as liar:

        def without(peer: str, true: Freeze) -> Freeze:
            gone = SIX.index(atom_of(liar, VICTIM)[1])
            return Freeze(true.context, positions_bytes(sorted(set(positions_of(true.members)) - {gone})))

        liar.down = bend(liar, Freeze, without)
        await liar.until(lambda: bool(liar.hub.machine.state.atoms), "an attempt is open")
        left = [name for name in atom_of(liar, VICTIM) if name != atom_of(liar, VICTIM)[1]]
        await liar.until_refused("atom-split", left)
        await liar.until_refused("freeze-without-me", [atom_of(liar, VICTIM)[1]])
        assert liar.senders(Upload).isdisjoint(atom_of(liar, VICTIM))
        liar.check_nothing_revealed()


@pytest.mark.parametrize("who", ["one mate", "the atoms of two"])
async def test_no_keeper_signs_a_survivor_set_that_splits_an_atom(tmp_path: Path, who: str) -> None:
    async with lying(tmp_path, names=SIX, secure={"group_size": 3}) as liar:

        def without(peer: str, true: Survivors) -> Survivors:
            atoms = liar.hub.machine.state.atoms
            gone = {SIX.index(atom_of(liar, VICTIM)[1])}
            if who == "the atoms of two":  # as many survive in both, one is missing in each
                gone.add(next(item for item in range(6) if atoms[SIX[item]] != atoms[VICTIM]))
            rows = [row for row in UPLOADS.read(true.uploads) if int.from_bytes(row[0], "big") not in gone]
            return dataclasses.replace(true, uploads=UPLOADS.write(rows))

        liar.down = bend(liar, Survivors, without)
        await liar.until_refused("atom-split", SIX)
        liar.check_nothing_revealed()
