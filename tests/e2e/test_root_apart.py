"""A federation whose root is kept apart: every command that a consortium types, in order."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e.deployment import Deployment, configuration, data_of

pytestmark = pytest.mark.timeout(240)


def test_a_root_apart_certifies_what_it_is_brought_and_connected_sites_hear_of_it(tmp_path: Path) -> None:
    config = configuration(tmp_path, participants=3)
    place = ["--config", str(config)]
    with Deployment(tmp_path, config) as federation:
        (root,) = federation.lines("federation", "init", "--out", "vault", "--name", "clinics")
        config.write_text(config.read_text().replace('name = "clinics"', f'name = "clinics"\nroot = "{root["root"]}"'))
        listening = federation.start_coordinator()
        assert (listening["root"], listening["root_here"]) == (root["root"], False)
        (invitation,) = federation.lines("coordinator", "invite", "site-0", *place)
        joining = ["participant", "join", invitation["token"], "--data", data_of(0, 3), "--home", "site-0", "--root"]
        wrong = federation.fedloom(*joining, "ab" * 32, check=False)
        assert wrong.returncode == 4
        assert "root-mismatch" in wrong.stderr
        joined = json.loads(federation.fedloom(*joining, root["root"], "--json").stdout)
        assert (joined["root"], joined["certified"]) == (root["root"], False)

        assert "Not certified yet: coordinator, site-0" in federation.status()["root"]
        federation.start_participant("site-0")
        (pending,) = federation.lines("coordinator", "members", "--pending", "--out", "requests.json", *place)
        assert [item["public_key"] for item in pending["pending"]][1] == joined["signing_key"]
        federation.lines("federation", "certify", "requests.json", "--root", "vault", "--yes")
        (imported,) = federation.lines("coordinator", "members", "--import", "vault/members.json", *place)
        assert imported == {"added": 2, "pending": [], "total": 2}

        # The site hears of it in the session that it has open, or in its next one.
        end = time.monotonic() + 60
        while not federation.lines("participant", "status", "--home", "site-0")[0]["certified"]:
            assert time.monotonic() < end, federation.logs()
            time.sleep(0.5)
        (shown,) = federation.lines("coordinator", "members", "--out", "members.json", *place)
        assert [item["name"] for item in shown["members"]] == ["coordinator", "site-0"]
        assert (tmp_path / "members.json").read_bytes() == (tmp_path / "vault" / "members.json").read_bytes()

        federation.lines("federation", "remove", "site-0", "--root", "vault", "--yes")
        federation.lines("coordinator", "members", "--import", "vault/members.json", *place)
        (shown,) = federation.lines("coordinator", "members", *place)
        assert [item["name"] for item in shown["members"]] == ["coordinator"]
        # An older copy of the list takes nothing back.
        older = federation.fedloom("coordinator", "members", "--import", "members.json", *place, check=False)
        assert older.returncode == 4
        assert "members-fork" in older.stderr


def test_on_one_machine_the_start_and_the_status_say_where_the_root_is(tmp_path: Path) -> None:
    config = configuration(tmp_path, participants=3)
    with Deployment(tmp_path, config) as federation:
        assert federation.start_coordinator()["root_here"]
        federation.join("site-0", data={"site-0": data_of(0, 3)})
        said = federation.fedloom("coordinator", "status", "--config", str(config)).stdout
        (mine,) = federation.lines("participant", "status", "--home", "site-0")
    assert "The federation root is on this machine" in " ".join(said.split())
    assert mine["certified"]
    assert mine["members"] == ["coordinator", "site-0"]
    assert (mine["members_total"], len(mine["members_head"])) == (2, 64)
