"""The package's face: exact exports, and no framework loaded before it is needed."""

import importlib
import subprocess
import sys

import pytest

import core_model


def test_every_export_resolves_to_its_own_name():
    for name in core_model.__all__:
        assert getattr(core_model, name) is not None, name
    assert sorted(core_model.__all__, key=str.lower) == sorted(core_model._HOME, key=str.lower)
    assert set(core_model.__all__) <= set(dir(core_model))


def test_no_submodule_hides_an_export():
    for name, home in core_model._HOME.items():
        assert name != home
        importlib.import_module(f"core_model.{home}")
        assert getattr(core_model, name) is getattr(sys.modules[f"core_model.{home}"], name), name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'gradient'"):
        core_model.gradient  # noqa: B018


@pytest.mark.parametrize("module", ["core_model", "core_model.config", "core_model.cli", "core_model.settings"])
def test_importing_loads_no_framework(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'PIL', 'sklearn'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
