"""The package's public face and what importing it costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import wire
from wire.errors import STATUS_OF_CODE

ROOT = Path(__file__).parents[3]


def test_exports_are_exact() -> None:
    assert sorted(wire.__all__, key=str) == sorted(wire._MODULE_OF)
    assert len(set(wire.__all__)) == len(wire.__all__)
    for name in wire.__all__:
        assert getattr(wire, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        wire.nonsense  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(wire.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(wire.__all__)


def modules_after(code: str) -> set[str]:
    script = f"import json, sys; {code}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_lean_imports() -> None:
    assert not {"grpc", "cryptography", "sqlalchemy", "pydantic", "numpy"} & modules_after("import wire")
    everything = modules_after("import wire; [getattr(wire, name) for name in wire.__all__]")
    assert not {"torch", "safetensors", "sqlalchemy", "core_model", "coordinator", "participant"} & everything


ABOVE = {"coordinator", "participant", "simulation", "core_model", "fedloom"}


def test_no_layer_above_is_imported() -> None:
    for path in (ROOT / "wire").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not ABOVE & {name.split(".")[0] for name in names}, path


def test_nothing_is_unpickled() -> None:
    for path in (ROOT / "wire").glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("pickle", "marshal", "eval(", "exec(")), path


def test_codes_are_kebab_case() -> None:
    assert all(code == code.lower() and " " not in code and "_" not in code for code in STATUS_OF_CODE)
