"""One attempt with fixed randomness, byte for byte: whatever changes here can't talk to an older release."""

from __future__ import annotations

import hashlib

import numpy as np
from secure_world import World

from privacy.secure_aggregation.coordinator import Unmask
from privacy.secure_aggregation.masking import sum_hash
from privacy.secure_aggregation.statements import kind_of

CONTEXT = "88a3c32f3f161ac72ef38155412389f153e2d4bd153add3ddb51beb17686ac18"
STATEMENTS = {
    "prekeys": "ab95422588d79157d504823c45abcd687b877fa549c8d856e84b4723430577e8",
    "plan": "421cb882557d12e2d3413d9be862a306d454b9e7dab7717898a238a5e0f6d477",
    "accept": "daf6e169dfda776c6ab042e62265143d63a98ef36cf937a954ec9dd90edd5618",
    "delivery": "ca251e72a28c2b54a0907b37a126dcd2d80697539d6bd2794c658ba40c08a850",
    "ready": "359d2b704de34bead17df1c00c024448e2fe2e7f25bacacbd38fe4f6181f858d",
    "freeze": "e40ed028d55c873c2d75bac576c32415df7a125cdfef5780879a59622174ffac",
    "upload": "2d934d4d7e9a2773141ddd9961ef9b7feb3197bf27fca1928daf2bf68cfc0a5b",
    "receipt": "3f8c58cce2b6c7590bdf3047310015ac7319e35bfe2f2b361807e1b46cf7bf42",
    "survivors": "4b32c116f82137063b6863e3adc15e23b21fe7916467ea0aa0a086c8fe363560",
    "survived": "c2e388b2f334d27455aa5601f6e90af755b470d2f29ebe6ccf52e14632436988",
    "quorum": "16eca749d451d1756f958d3553a8c2450571893be7259c1c14c1caf3ab348059",
    "release": "e6ed0f2a9affa09a3bcd95afe29d7aa0a3e62fe4a098e9955dd6fc8230d206cf",
}
TRANSCRIPT = "c654c9865d8fb9e56b6f190a4e964fdc63239a198a510f089e75120659e46c3b"
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
