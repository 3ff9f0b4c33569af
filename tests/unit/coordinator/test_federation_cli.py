"""``fedloom federation``: making a root, certifying, removing, showing; all without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fedloom
from privacy.secure_aggregation.identities import COORDINATOR_NAME, MemberRequest, Role, key_fingerprint
from privacy.secure_aggregation.keys import SigningKey
from privacy.secure_aggregation.members import End, MemberList
from wire import Requests, load_root, read_members, write_members, write_requests

KEYS = {name: SigningKey(name.encode().ljust(32, b".")) for name in (COORDINATOR_NAME, "north", "south")}


class Keeper:
    """Who keeps a root in ``folder``, and what the commands print for it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.capsys = capsys
        self.run("init", "--out", str(self.root), "--name", "demo")

    def run(self, *arguments: str, status: int = 0) -> str:
        """Both streams of a command."""
        self.capsys.readouterr()
        assert fedloom.main(["federation", *arguments]) == status
        said = self.capsys.readouterr()
        return said.out + said.err

    def json(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json", status=status))  # type: ignore[no-any-return]

    @property
    def chain(self) -> MemberList:
        return read_members(self.root / "members.json")

    def requests(self, *names: str, end: End | None = None, **changes: Any) -> str:
        """A file of requests, as the coordinator writes it."""
        wishes = tuple(
            MemberRequest.make(
                changes.get("key", KEYS[name]),
                federation=changes.get("federation", "demo"),
                role=Role.COORDINATOR if name == COORDINATOR_NAME else Role.PARTICIPANT,
                name=name,
            )
            for name in names
        )
        path = self.folder / "requests.json"
        write_requests(
            path,
            Requests(
                federation=changes.get("federation", "demo"),
                root=changes.get("root", self.chain.root),
                end=end or self.chain.end,
                requests=wishes,
            ),
        )
        return str(path)

    def certify(self, *names: str, **changes: Any) -> dict[str, Any]:
        return self.json("certify", self.requests(*names, **changes), "--root", str(self.root), "--yes")


@pytest.fixture
def keeper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Keeper:
    return Keeper(tmp_path, capsys)


def answers(monkeypatch: pytest.MonkeyPatch, *given: bool) -> list[str]:
    """Answer what typer asks; returns the questions."""
    asked: list[str] = []
    left = list(given)

    def confirm(text: str) -> bool:
        asked.append(text)
        return left.pop(0)

    monkeypatch.setattr("typer.confirm", confirm)
    return asked


def test_init_makes_a_root_and_says_where_its_public_key_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedloom.main(["federation", "init", "--out", str(tmp_path / "root"), "--name", "demo"]) == 0
    said = capsys.readouterr().out
    public = load_root(tmp_path / "root", "demo").public
    assert f'root = "{public.hex()}"' in said
    assert f"--root {public.hex()}" in said
    assert key_fingerprint(public) in said
    assert fedloom.main(["federation", "init", "--out", str(tmp_path / "root"), "--name", "demo"]) == 3
    assert "already" in capsys.readouterr().err
    assert fedloom.main(["federation", "init", "--out", str(tmp_path / "x"), "--name", "No Name", "--json"]) == 3
    assert not (tmp_path / "x").exists()


def test_certifying_shows_each_fingerprint_and_signs_only_what_is_agreed_to(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, True, False, True)
    file = keeper.requests(COORDINATOR_NAME, "north", "south")
    said = keeper.run("certify", file, "--root", str(keeper.root))
    assert asked == ["Certify coordinator?", "Certify north?", "Certify south?"]
    for name in KEYS:
        assert key_fingerprint(KEYS[name].public) in said
    assert "Certified: coordinator, south" in said
    assert "members --import members.json" in said
    assert sorted(keeper.chain.members()) == ["coordinator", "south"]


def test_certifying_with_yes_prints_json_for_a_program(keeper: Keeper) -> None:
    said = keeper.certify("north")
    chain = keeper.chain
    assert said == {
        "certified": ["north"],
        "file": str(keeper.root / "members.json"),
        "head": chain.head.hex(),
        "total": 1,
    }
    assert chain.participant("north") is not None
    again = keeper.run("certify", keeper.requests("north"), "--root", str(keeper.root), "--yes")
    assert "north is certified already" in again
    assert "Nothing was signed" in again
    assert keeper.chain == chain


def test_only_some_and_for_some_days(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_000.5)
    file = keeper.requests("north", "south")
    options = ["--root", str(keeper.root), "--yes"]
    assert keeper.json("certify", file, *options, "--only", "south", "--days", "2")["certified"] == ["south"]
    assert keeper.chain.members()["south"].valid_until == 1_000 + 2 * 86_400
    assert "1970-01-03" in keeper.run("show", str(keeper.root))
    # The same key with another end: an entry that removes and one that adds.
    assert keeper.json("certify", keeper.requests("south"), *options)["certified"] == ["south"]
    assert keeper.chain.members()["south"].valid_until == 0
    assert keeper.chain.count == 3
    refused = keeper.json("certify", file, *options, "--only", "west", status=3)
    assert "west" in refused["error"]["message"]


def test_a_new_key_of_a_member_is_shown_beside_the_old(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper.certify("north")
    answers(monkeypatch, True)
    said = keeper.run("certify", keeper.requests("north", key=KEYS["south"]), "--root", str(keeper.root))
    assert f"takes the place of key {key_fingerprint(KEYS['north'].public)}" in said
    assert keeper.chain.members()["north"].public_key == KEYS["south"].public


def test_a_key_that_another_member_has_is_refused_and_nothing_is_written(keeper: Keeper) -> None:
    keeper.certify("north")
    before = keeper.chain
    refused = keeper.json(
        "certify", keeper.requests("south", key=KEYS["north"]), "--root", str(keeper.root), "--yes", status=4
    )
    assert refused["error"]["code"] == "member-duplicate"
    assert keeper.chain == before


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"root": KEYS["north"].public}, "root-mismatch"),
        ({"federation": "other"}, "members-federation"),
        ({"end": End(1, b"h" * 32)}, "members-fork"),
        ({"end": End(9, b"h" * 32)}, "members-fork"),
    ],
)
def test_requests_of_another_root_federation_or_history_are_refused(
    keeper: Keeper, changes: dict[str, Any], code: str
) -> None:
    keeper.certify("north")
    before = keeper.chain
    file = keeper.requests("south", **changes)
    assert keeper.json("certify", file, "--root", str(keeper.root), "--yes", status=4)["error"]["code"] == code
    assert keeper.chain == before


def test_a_coordinator_that_is_behind_is_no_fork(keeper: Keeper) -> None:
    keeper.certify("north")
    first = keeper.chain.end
    keeper.certify("south")
    assert keeper.certify(COORDINATOR_NAME, end=first)["total"] == 3


def test_a_request_that_its_key_did_not_sign_is_refused(keeper: Keeper) -> None:
    file = Path(keeper.requests("north"))
    body = json.loads(file.read_text())
    body["requests"][0]["name"] = "south"
    file.write_text(json.dumps(body))
    refused = keeper.json("certify", str(file), "--root", str(keeper.root), "--yes", status=4)
    assert refused["error"]["code"] == "member-proof"


def test_json_asks_no_questions(keeper: Keeper) -> None:
    refused = keeper.json("certify", keeper.requests("north"), "--root", str(keeper.root), status=3)
    assert "--yes" in refused["error"]["hint"]
    assert keeper.json("remove", "north", "--root", str(keeper.root), status=3)["error"]["code"] == "config"


def test_removing_asks_and_names_who_is_no_member(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper.certify("north", "south")
    asked = answers(monkeypatch, False, True)
    assert "Nothing was signed" in keeper.run("remove", "north", "--root", str(keeper.root))
    assert "Removed: north" in keeper.run("remove", "north", "--root", str(keeper.root))
    assert asked == ["Remove north?"] * 2
    assert sorted(keeper.chain.members()) == ["south"]
    assert keeper.json("remove", "north", "--root", str(keeper.root), "--yes", status=4)["error"]["code"] == (
        "member-unknown"
    )
    assert keeper.json("remove", "south", "--root", str(keeper.root), "--yes")["removed"] == ["south"]


def test_show_checks_and_prints_lists_requests_and_folders(keeper: Keeper) -> None:
    keeper.certify("north", "south")
    keeper.json("remove", "north", "--root", str(keeper.root), "--yes")
    public = keeper.chain.root.hex()
    for place in (keeper.root, keeper.root / "members.json"):
        said = keeper.json("show", str(place), "--root", public)
        assert [item["name"] for item in said["members"]] == ["south"]
        assert (said["federation"], said["root"], said["total"]) == ("demo", public, 3)
    text = keeper.run("show", str(keeper.root), "--history")
    assert [line.split()[1:3] for line in text.splitlines()[-3:]] == [
        ["add", "north"],
        ["add", "south"],
        ["remove", "north"],
    ]
    assert len(keeper.json("show", str(keeper.root), "--history")["entries"]) == 3
    asking = keeper.json("show", keeper.requests("north"))
    assert [item["fingerprint"] for item in asking["requests"]] == [key_fingerprint(KEYS["north"].public)]
    assert "asking to be certified: 1" in keeper.run("show", keeper.requests("north"))
    other = keeper.json("show", str(keeper.root), "--root", KEYS["north"].public.hex(), status=4)
    assert other["error"]["code"] == "root-mismatch"
    assert keeper.json("show", str(keeper.folder / "none.json"), status=6)["error"]["code"] == "data"


def test_a_folder_whose_list_is_another_roots_signs_nothing(keeper: Keeper, tmp_path: Path) -> None:
    keeper.run("init", "--out", str(tmp_path / "other"), "--name", "demo")
    write_members(keeper.root / "members.json", read_members(tmp_path / "other" / "members.json"))
    refused = keeper.json("remove", "north", "--root", str(keeper.root), "--yes", status=4)
    assert refused["error"]["code"] == "root-mismatch"
