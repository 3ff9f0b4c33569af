"""Invitation tokens: round trip, damage told apart, fuzz."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import RefusedError, Token
from wire.token import PREFIX, is_address

TOKEN = Token(
    name="hospital-a",
    address="fed.example.org:7601",
    fingerprint=bytes(range(32)),
    root=bytes(range(64, 96)),
    secret=bytes(range(32, 64)),
)


def reason(text: str) -> str:
    with pytest.raises(RefusedError) as caught:
        Token.parse(text)
    assert caught.value.code == "token-malformed"
    assert caught.value.hint
    return caught.value.message


@given(
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    st.from_regex(r"([a-z0-9]{1,20}\.){0,3}[a-z]{1,9}|127\.0\.0\.1|\[::1\]", fullmatch=True),
    st.integers(1, 65_535),
    st.tuples(*[st.binary(min_size=32, max_size=32)] * 3),
)
def test_round_trip(name: str, host: str, port: int, keys: tuple[bytes, bytes, bytes]) -> None:
    fingerprint, root, secret = keys
    token = Token(name=name, address=f"{host}:{port}", fingerprint=fingerprint, root=root, secret=secret)
    line = token.encode()
    assert Token.parse(line) == token
    assert line.startswith(PREFIX)
    assert "\n" not in line and " " not in line


def test_blanks_and_quotes_of_mail_and_shell_do_no_harm() -> None:
    line = TOKEN.encode()
    assert Token.parse(f'  "{line[:40]}\n   {line[40:]}"\r\n') == TOKEN


def test_every_truncation_is_told_from_a_wrong_letter() -> None:
    line = TOKEN.encode()
    for length in range(1, len(line)):
        assert "cut off" in reason(line[:length]), length


def test_every_wrong_letter_is_noticed() -> None:
    line = TOKEN.encode()
    for position in range(len(PREFIX), len(line)):
        other = "A" if line[position] != "A" else "B"
        damaged = line[:position] + other + line[position + 1 :]
        assert reason(damaged), position
    # Behind the length field the message is exact.
    middle = len(line) // 2
    other = "A" if line[middle] != "A" else "B"
    assert "wrong character" in reason(line[:middle] + other + line[middle + 1 :])


def test_other_mistakes() -> None:
    assert "empty" in reason("  \n")
    assert "not a token" in reason("hello world, this is a text")
    assert "too long" in reason(TOKEN.encode() + TOKEN.encode()[len(PREFIX) :])
    assert "no token holds" in reason(TOKEN.encode().replace("A", "!", 1))
    assert "longer" in reason(PREFIX + "A" * 5_000)
    assert "another release" in reason(TOKEN.encode().replace(PREFIX, "fedloom1-"))


@given(st.text(max_size=300))
def test_fuzz_text(text: str) -> None:
    reason(text)


@given(st.text("ABCDEFGHabcdefgh0123-_", max_size=300))
def test_fuzz_behind_the_prefix(text: str) -> None:
    reason(PREFIX + text)


def test_a_well_formed_token_with_impossible_content() -> None:
    import base64

    body = bytes(96) + bytes((3,)) + b"A B" + (4).to_bytes(2, "big") + b"a:80"
    sized = len(body).to_bytes(2, "big") + body
    check = hashlib.sha256(b"fedloom/token/2" + sized).digest()[:4]
    line = PREFIX + base64.urlsafe_b64encode(sized + check).rstrip(b"=").decode()
    assert "not a name" in reason(line)


def test_the_secret_stays_out_of_repr() -> None:
    assert "secret" not in repr(TOKEN)
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert TOKEN.secret_hash == hashlib.sha256(TOKEN.secret).digest()


@pytest.mark.parametrize(
    "address", ["host", "host:0", "host:65536", ":80", "a b:80", "host:80:80", "host:-1", "-:80", ""]
)
def test_addresses_refused(address: str) -> None:
    assert not is_address(address)
    with pytest.raises(ValueError, match="host:port"):
        Token(name="a", address=address, fingerprint=bytes(32), root=bytes(32), secret=bytes(32))


def test_parts_of_a_wrong_size() -> None:
    for sizes in ((31, 32, 32), (32, 33, 32), (32, 32, 0)):
        fingerprint, root, secret = (bytes(size) for size in sizes)
        with pytest.raises(ValueError, match="32 bytes"):
            Token(name="a", address="h:1", fingerprint=fingerprint, root=root, secret=secret)
    with pytest.raises(ValueError, match="name"):
        Token(name="A", address="h:1", fingerprint=bytes(32), root=bytes(32), secret=bytes(32))
