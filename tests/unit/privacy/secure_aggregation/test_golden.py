"""One attempt with fixed randomness, byte for byte: whatever changes here can't talk to an older release."""

from __future__ import annotations

import hashlib

import numpy as np
from secure_world import World

from privacy.secure_aggregation.coordinator import Unmask
from privacy.secure_aggregation.masking import sum_hash
from privacy.secure_aggregation.statements import kind_of

CONTEXT = "c13409fcf9711dadf928cbc5b4278fb8c1bc5675eac3f39b6471ca35d50fb431"
STATEMENTS = {
    "prekeys": "ab95422588d79157d504823c45abcd687b877fa549c8d856e84b4723430577e8",
    "plan": "80a93f49a8c4d12cb9a52c0b3db0b207462b86812b7e96cbe0f4038bd74c6e95",
    "accept": "0632fb47813b46d562a8eb1ac8b84990d05edcf15cc09720ccfedf164da00323",
    "delivery": "dadec7f8c7688f8fc36d5ebe9fbc2ae456b8e1aa77ccc7d5008305ce3990fb94",
    "ready": "f4a262d94a584b41bd567e6a54925e993d0ca953afd84cf7b4702a26ed29d516",
    "freeze": "106e5b6bb2d958378b34b8e8e05d71731514052aec7fbf98c2d01c0adec97230",
    "upload": "97fc7291df273e6a8a3731b229dff02385576b9e635bf29c6bdef018ec2d3bb4",
    "receipt": "2048323cafecb8f26ecbcdae9bd2c6377ba05220ecc877745a4accca0c3fa33a",
    "survivors": "e35d6dea9313491822d998892c24968c6754213a94e7283e412ec34df01b5f70",
    "survived": "79af4ab477ad9f78bec182bba0af1986cbde8bde8d175a585b231d32b69983bb",
    "quorum": "a41c7649fe12434e012d5fa1a444c213083ce32f8f6d631df918544caffaef5a",
    "release": "8a9134c3185f8dcd1067a40f55aaa30c3fe21bb07ee558840444b1c1d73dea63",
}
TRANSCRIPT = "c69705424da4f0f4c001c875cd63f126764d1729e0b58b7f3a25fcd8b12720dd"
SUM = "7b3807c6b4ae81009be0372db2de858b3b83efbd0071741f8bd3dba9117c94c0"
PLAIN = [-275250, -206437, -137625, -68812, 0, 68812, 137624, 206440]


def golden() -> World:
    """Four participants, of which one drops after the freeze."""
    world = World(4, dimension=8, golden=True)
    for index, name in enumerate(world.names):
        update = (np.arange(8, dtype=np.float32) - 4) * np.float32(0.03125) * (index + 1)
        world.inputs[name] = (update.astype(np.float32), 10 * (index + 1), {"loss": 1.0 / (1 << index)})
    world.hold = {"freeze"}
    world.run()
    world.kill("site-002")
    world.released()
    world.conclude()
    return world


def test_the_golden_attempt_is_the_same_in_every_release() -> None:
    world = golden()
    world.assert_exact(["site-000", "site-001", "site-003"])
    assert isinstance(world.outcome, Unmask)
    found: dict[str, hashlib._Hash] = {}
    whole = hashlib.sha256()
    for way, name, item in world.sent:
        one = f"{way}/{name}/".encode() + item.body + item.signature
        found.setdefault(kind_of(item.body), hashlib.sha256()).update(one)
        whole.update(one)
    ((_, main, tail),) = world.sums()
    assert world.outcome.context.hash.hex() == CONTEXT
    assert {kind: digest.hexdigest() for kind, digest in found.items()} == STATEMENTS
    assert whole.hexdigest() == TRANSCRIPT
    assert main.tolist() == (np.array(PLAIN, np.int64) % (1 << 32)).tolist()
    assert sum_hash(main, tail, world.outcome.context.encoding.wire_bits).hex() == SUM
