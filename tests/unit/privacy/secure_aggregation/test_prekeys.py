"""Prekeys: made in stock, used once, never again."""

from __future__ import annotations

import dataclasses

import pytest
from secure_world import NOW, Store, fixed_random

from privacy.secure_aggregation.context import Seat
from privacy.secure_aggregation.errors import Refusal, SecureAggregationError
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.memory import Forget, Note
from privacy.secure_aggregation.prekeys import LIFE_S, LOW, STOCK, PrekeyStock, check_offered, offered
from privacy.secure_aggregation.sharing import beacon_hash
from privacy.secure_aggregation.statements import Prekey

KEY = SigningKey(b"n" * 32)


def stock(store: Store | None = None, label: str = "stock") -> PrekeyStock:
    found = PrekeyStock("clinics", "north", KEY, fixed_random(label))
    for note in store.notes if store is not None else ():
        found.restore(note.kind, note.body)
    return found


def filled(now_s: float = NOW) -> tuple[PrekeyStock, Store]:
    found, store = stock(), Store()
    store.change(found.fill(now_s))
    return found, store


def seats(found: PrekeyStock) -> list[Seat]:
    return list(offered(found.batch(), "north"))


def refused(code: str, *arguments: object) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        check_offered(*arguments)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_a_stock_fills_up_once_and_again_only_when_it_is_low() -> None:
    found, store = filled()
    assert not found.low(NOW)
    assert [seat.index for seat in seats(found)] == list(range(1, STOCK + 1))
    assert list(found.fill(NOW)) == []
    for seat in seats(found)[: STOCK - LOW + 1]:
        store.change([found.burn(found.find(seat))])
    assert found.low(NOW)
    store.change(found.fill(NOW))
    assert len(seats(found)) == STOCK
    assert seats(found)[-1].index == 2 * STOCK - LOW + 1
    assert [note.kind for note in store.notes].count("prekey-last") == 1


def test_all_keys_and_beacons_are_different() -> None:
    found, _ = filled()
    values = [value for seat in seats(found) for value in (seat.mask_key, seat.share_key, seat.beacon_hash)]
    assert len(set(values)) == 3 * STOCK


def test_every_offered_prekey_is_signed_for_itself() -> None:
    found, _ = filled()
    assert check_offered(seats(found), "clinics", KEY.public) == seats(found)
    refused("prekey-signature", seats(found), "clinics2", KEY.public)
    refused("prekey-signature", seats(found), "clinics", SigningKey(b"x" * 32).public)
    first = seats(found)[0]
    for changes in (
        {"index": 99},
        {"mask_key": first.share_key},
        {"share_key": first.mask_key},
        {"beacon_hash": bytes(32)},
        {"expires_s": first.expires_s + 1},
        {"name": "south"},
    ):
        refused("prekey-signature", [dataclasses.replace(first, **changes)], "clinics", KEY.public)


def signed(index: int, mask_key: bytes, share_key: bytes, expires_s: int = 9) -> Seat:
    prekey = Prekey("clinics", "north", index, mask_key, share_key, bytes(32), expires_s)
    return Seat("north", index, mask_key, share_key, bytes(32), expires_s, prekey.signed(KEY).signature)


def test_a_batch_with_one_bad_prekey_is_refused_whole() -> None:
    found, _ = filled()
    good = seats(found)[0]
    refused("prekey-duplicate", [good, good], "clinics", KEY.public)
    refused("prekey-duplicate", [signed(0, good.mask_key, good.share_key)], "clinics", KEY.public)
    refused("prekey-duplicate", [signed(1 << 60, good.mask_key, good.share_key)], "clinics", KEY.public)
    refused("prekey-duplicate", [signed(1, good.mask_key, good.share_key, 1 << 60)], "clinics", KEY.public)
    refused("key-invalid", [signed(1, bytes(32), good.share_key)], "clinics", KEY.public)
    refused("key-invalid", [signed(1, good.mask_key, bytes(32))], "clinics", KEY.public)


def test_a_used_prekey_is_gone_and_its_index_never_comes_back() -> None:
    found, store = filled()
    seat = seats(found)[4]
    forget = found.burn(found.find(seat))
    store.change([forget])
    for again in (found, stock(store)):
        with pytest.raises(Refusal) as caught:
            again.find(seat)
        assert caught.value.code == "prekey-used"
    # All used up, all notes erased but one: the count goes on.
    empty = Store()
    empty.notes = [note for note in store.notes if note.kind == "prekey-last"]
    fresh = stock(empty, "other")
    empty.change(fresh.fill(NOW))
    assert seats(fresh)[0].index == STOCK + 1


def test_a_prekey_of_another_making_under_an_own_index_is_refused() -> None:
    found, _ = filled()
    one, other = seats(found)[:2]
    for changes in (
        {"mask_key": other.mask_key},
        {"share_key": other.share_key},
        {"beacon_hash": other.beacon_hash},
    ):
        with pytest.raises(Refusal) as caught:
            found.find(dataclasses.replace(one, **changes))
        assert caught.value.code == "prekey-foreign"
    for index in (0, -1, 10**6):
        with pytest.raises(Refusal) as caught:
            found.find(dataclasses.replace(one, index=index))
        assert caught.value.code == "prekey-used"


def test_expired_prekeys_are_replaced_and_erased() -> None:
    found, store = filled()
    later = NOW + LIFE_S
    assert not found.low(later - 1)
    assert found.low(later)
    changes = list(found.fill(later))
    store.change(changes)
    assert [seat.index for seat in seats(found)] == list(range(STOCK + 1, 2 * STOCK + 1))
    assert sum(isinstance(item, Forget) and item.kind == "prekey" for item in changes) == STOCK
    assert [note.kind for note in store.notes].count("prekey") == STOCK
    assert seats(stock(store)) == seats(found)


def test_a_stock_comes_back_from_its_notes() -> None:
    found, store = filled()
    again = stock(store)
    assert again.batch() == found.batch()
    seat = seats(found)[2]
    assert again.find(seat) == found.find(seat)
    assert beacon_hash(again.find(seat).beacon) == seat.beacon_hash
    assert all(isinstance(note, Note) and note.context == b"" for note in store.notes)
