"""The commands `fedloom model` and `fedloom data`."""

import json

import pytest
from typer.testing import CliRunner

from core_model import DataError, LearningConfigError, ManifestError, read_manifest
from core_model.cli import DATA_SETS, app, data_app

SMALL = "[model]\nwidth = 16\nheads = 2\ndepth = 1\ntext_buckets = 64\nimage_size = 8\n"


def run(application, *arguments):
    return CliRunner().invoke(application, [str(argument) for argument in arguments])


def fails(application, *arguments):
    done = run(application, *arguments)
    assert done.exit_code == 1 and done.exception is not None
    return done.exception


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(SMALL)
    return path


def test_init_and_show_agree(config, tmp_path):
    out = tmp_path / "model.safetensors"
    made = json.loads(run(app, "init", "--config", config, "--out", out, "--seed", 3, "--json").stdout)
    shown = json.loads(run(app, "show", out, "--json").stdout)
    assert made["size"] == out.stat().st_size
    assert made["manifest_hash"] == shown["manifest_hash"] == read_manifest(out).digest.hex()
    assert made["dimension"] == shown["dimension"]
    assert {"name": "norm.weight", "shape": [16], "dtype": "F32"} in shown["tensors"]
    text = run(app, "show", out).stdout
    assert "norm.weight" in text and "log_scale" in text and "scalar" in text
    assert str(out) in run(app, "init", "--config", config, "--out", out).stdout


def test_tables_from_the_coordinator_give_the_same_model(config, tmp_path):
    tables = tmp_path / "tables.json"
    model = {"width": 16, "heads": 2, "depth": 1, "text_buckets": 64, "image_size": 8}
    tables.write_text(json.dumps({"model": model}))
    for name, option in (("a", ("--config", config)), ("b", ("--tables", tables))):
        assert run(app, "init", *option, "--out", tmp_path / name).exit_code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_init_says_what_is_wrong(config, tmp_path):
    out = tmp_path / "m"
    assert isinstance(fails(app, "init", "--out", out), LearningConfigError)
    assert isinstance(fails(app, "init", "--out", out, "--config", config, "--tables", config), LearningConfigError)
    assert "can't be read as JSON" in fails(app, "init", "--out", out, "--tables", config).message
    (tmp_path / "list.json").write_text("[]")
    assert "not a JSON object" in fails(app, "init", "--out", out, "--tables", tmp_path / "list.json").message
    config.write_text("[model]\nwidht = 3\n")
    assert '"width"' in fails(app, "init", "--out", out, "--config", config).hint
    assert not out.exists()


def test_show_refuses_other_files(tmp_path):
    assert "can't be read" in fails(app, "show", tmp_path / "none").message
    (tmp_path / "x").write_bytes(b"hello, this is no model")
    assert isinstance(fails(app, "show", tmp_path / "x"), ManifestError)


def test_data_list_names_every_source():
    listed = json.loads(run(data_app, "list", "--json").stdout)["data_sets"]
    assert [row["name"] for row in listed] == list(DATA_SETS)
    text = run(data_app, "list").stdout
    assert "emoji:noto" in text and "folder:/path" in text


def test_prepare(tmp_path, monkeypatch):
    assert json.loads(run(data_app, "prepare", "digits", "--json").stdout)["name"] == "digits"
    monkeypatch.setenv("FEDLOOM_FASHION_MNIST", str(tmp_path))
    error = fails(data_app, "prepare", "fashion-mnist")
    assert isinstance(error, DataError) and "apt-get install" in error.hint
    assert "Did you mean emoji?" in fails(data_app, "prepare", "emojis").hint
    assert "emoji, fashion-mnist, digits" in fails(data_app, "prepare", "weather").hint


def test_init_runs_the_code_that_its_own_configuration_names(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(
        '[model]\nkind = "custom"\nfactory = "examples.bring_your_own.sensors:model"\noptions = { hidden = 2 }\n'
        '[task]\nkind = "custom"\nloss = "examples.bring_your_own.sensors:loss"\n'
    )
    made = json.loads(run(app, "init", "--config", path, "--out", tmp_path / "m", "--json").stdout)
    # A GRU of 2 units on 1 input, and a linear layer of 2 to 1.
    assert made["dimension"] == 3 * 2 * (1 + 2) + 2 * 3 * 2 + 2 + 1
