"""Starting a coordinator, again, and with something changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from coordinator.planning import make_plan, next_run_id, same_run
from coordinator.serving import coordinator, open_run, operator_credentials
from coordinator.store import Run
from wire import ConfigError, FederationConfig, RefusedError, ResourceError, Role


def settings(state: Path, **tables: dict[str, object]) -> FederationConfig:
    base: dict[str, dict[str, object]] = {
        "federation": {"name": "stage"},
        "coordinator": {"port": 0, "enrolment_port": 0, "state": state, "reserve_mb": 0},
    }
    for name, table in tables.items():
        base[name] = {**base.get(name, {}), **table}
    return FederationConfig.model_validate(base)


def initial(path: Path) -> Path:
    save_file({"w": np.arange(5, dtype=np.float32)}, path)
    return path


async def test_the_first_start_makes_keys_and_the_second_keeps_them_and_the_run(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with coordinator(config, tmp_path) as first:
        assert first.first_run
        plan = await open_run(first, tmp_path, initial)
        address, operator = operator_credentials(tmp_path)
        assert address == first.session.address
    for private in (tmp_path / "ca" / "ca.key", tmp_path / "operator" / "key.pem"):
        assert private.stat().st_mode & 0o777 == 0o600
    assert operator.identity.role is Role.OPERATOR
    async with coordinator(config, tmp_path) as second:
        assert not second.first_run
        again = await open_run(second, tmp_path, _never)
        assert (again, operator_credentials(tmp_path)[1]) == (plan, operator)
    assert plan.run_id == "stage-1"


def _other(path: Path) -> Path:
    save_file({"w": np.ones(5, dtype=np.float32)}, path)
    return path


def _never(path: Path) -> Path:
    raise AssertionError("a run that exists needs no new model")


async def test_a_new_run_is_numbered_and_starts_from_a_new_model(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with coordinator(config, tmp_path) as running:
        first = await open_run(running, tmp_path, _other)
        plan = await open_run(running, tmp_path, initial, new_run=True)
        # An earlier run's models are kept.
        assert running.daemon.blobs.has(bytes.fromhex(first.initial.digest))
    assert plan.run_id == "stage-2"


@pytest.mark.parametrize(
    ("changes", "section"),
    [
        ({"rounds": {"count": 3}}, "rounds"),
        ({"aggregation": {"learning_rate": 0.5}}, "aggregation"),
        ({"training": {"local_steps": 3}}, "training"),
        ({"aggregation": {"mode": "plain"}}, "aggregation"),
        ({"secure_aggregation": {"wire_bits": 20}}, "secure_aggregation"),
    ],
)
async def test_a_changed_configuration_does_not_change_a_run(
    tmp_path: Path, changes: dict[str, dict[str, object]], section: str
) -> None:
    async with coordinator(settings(tmp_path), tmp_path) as running:
        await open_run(running, tmp_path, initial)
    async with coordinator(settings(tmp_path, **changes), tmp_path) as running:
        with pytest.raises(ConfigError, match=rf"\[{section}\] changed") as failure:
            await open_run(running, tmp_path, initial)
    assert "--new-run" in failure.value.hint


async def test_another_federations_state_folder_is_not_taken_over(tmp_path: Path) -> None:
    async with coordinator(settings(tmp_path), tmp_path):
        pass
    with pytest.raises(ConfigError, match="belongs to federation 'stage'"):
        async with coordinator(settings(tmp_path, federation={"name": "other"}), tmp_path):
            pass


async def test_a_port_in_use_and_a_full_disk_are_said_plainly(tmp_path: Path) -> None:
    async with coordinator(settings(tmp_path / "one"), tmp_path / "one") as first:
        taken = settings(tmp_path / "two", coordinator={"port": first.session.port})
        with pytest.raises(ResourceError, match="is in use") as failure:
            async with coordinator(taken, tmp_path / "two"):
                pass
        assert failure.value.code == "port-in-use"
    full = settings(tmp_path / "three", coordinator={"reserve_mb": 1 << 29})
    async with coordinator(full, tmp_path / "three") as running:
        with pytest.raises(ResourceError) as failure:
            await open_run(running, tmp_path / "three", initial)
    assert failure.value.code == "disk-full"


async def test_a_file_that_is_no_checkpoint_begins_no_run(tmp_path: Path) -> None:
    def garbage(path: Path) -> Path:
        path.write_bytes(b"\xff" * 100)
        return path

    async with coordinator(settings(tmp_path), tmp_path) as running:
        with pytest.raises(RefusedError, match="header") as failure:
            await open_run(running, tmp_path, garbage)
        assert failure.value.code == "manifest-mismatch"
        assert running.daemon.store.runs() == []


def test_operator_commands_need_a_coordinator_that_was_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no coordinator was started"):
        operator_credentials(tmp_path)


def test_plans_are_equal_exactly_where_the_configuration_is(tmp_path: Path) -> None:
    path = initial(tmp_path / "initial.safetensors")
    plan = make_plan(settings(tmp_path), "stage-1", path, ("loss", "accuracy"))
    assert plan == make_plan(
        settings(tmp_path, coordinator={"lease_s": 77.0}), "stage-1", path, iter(["accuracy", "loss"])
    )
    assert same_run(settings(tmp_path), plan) == []
    assert plan.initial.dimension == 5


def test_runs_are_numbered_within_a_federation() -> None:
    latest = Run(run_id="a-b-9", plan=b"", plan_hash=b"", created_s=0.0)
    assert next_run_id("a-b", None) == "a-b-1"
    assert next_run_id("a-b", latest) == "a-b-10"


def test_a_plan_has_the_section_on_secure_sums_only_where_they_are_asked_for(tmp_path: Path) -> None:
    path = initial(tmp_path / "initial.safetensors")
    config = settings(tmp_path, secure_aggregation={"wire_bits": 24})
    secure = make_plan(config, "stage-1", path, ("loss", "accuracy"))
    assert secure.secure == config.secure_aggregation
    assert secure.metrics == ("accuracy", "loss")
    plain_config = settings(tmp_path, aggregation={"mode": "plain"})
    plain = make_plan(plain_config, "stage-1", path, ())
    assert plain.secure is None
    # With plain averaging the section says nothing, so it may change.
    changed = settings(tmp_path, aggregation={"mode": "plain"}, secure_aggregation={"wire_bits": 24})
    assert same_run(changed, plain) == []


def test_values_that_cannot_be_summed_are_refused_before_the_run(tmp_path: Path) -> None:
    path = initial(tmp_path / "initial.safetensors")
    config = settings(tmp_path, secure_aggregation={"value_bits": 14}, rounds={"min_participants": 5, "min_updates": 3})
    with pytest.raises(ConfigError, match=r"\[secure_aggregation\] the sum of 5 values of 14 bits"):
        make_plan(config, "stage-1", path, ())
