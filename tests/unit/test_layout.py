"""The house itself: who may import whom, what an import may cost, what each package shows, what the wheel holds."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = ("coordinator", "core_model", "kernels", "participant", "privacy", "protos", "simulation", "wire")
FRAMEWORKS = ("torch", "jax", "tensorflow", "pandas", "matplotlib", "sklearn", "scipy")


def run_python(code: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the working copy first."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )


def modules_after(statement: str, root: Path) -> set[str]:
    """Top-level names in ``sys.modules`` after a statement, in a fresh interpreter."""
    done = run_python(f"{statement}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))", root)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


# --- lean imports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["fedloom", "coordinator", "coordinator.cli", "kernels", "privacy", "protos", "wire", "simulation.report"]
)
def test_import_loads_no_framework(module: str, repository: Path) -> None:
    """The coordinator runs on a small machine; a command line answers at once."""
    assert modules_after(f"import {module}", repository).isdisjoint(FRAMEWORKS)


def test_whole_coordinator_loads_no_framework(repository: Path) -> None:
    """Every module of the coordinator, and whatever those import, third parties included."""
    parts = [
        ".".join(path.relative_to(repository).with_suffix("").parts)
        for path in sorted((repository / "coordinator").rglob("*.py"))
        # alembic runs its scripts inside a migration, never by import
        if path.name != "__main__.py" and "migrations" not in path.parts
    ]
    assert "coordinator.store.base" in parts
    statement = f"import importlib\nfor name in {parts!r}: importlib.import_module(name)"
    assert modules_after(statement, repository).isdisjoint({*FRAMEWORKS, "core_model", "participant"})


def test_privacy_is_pure(repository: Path) -> None:
    assert modules_after("import privacy", repository).isdisjoint({*FRAMEWORKS, "grpc", "google", "sqlalchemy"})


@pytest.mark.parametrize("arguments", [["--help"], ["coordinator", "--help"], ["participant", "--help"]])
def test_help_is_cheap(arguments: list[str], repository: Path) -> None:
    """Help shows itself without loading what only a running daemon needs."""
    statement = (
        f"import sys; sys.argv = ['fedloom', *{arguments!r}]\n"
        "import fedloom\n"
        "try: fedloom.main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code"
    )
    heavy = {*FRAMEWORKS, "alembic"} if arguments[:-1] else {*FRAMEWORKS, "grpc", "sqlalchemy", "alembic"}
    assert modules_after(statement, repository).isdisjoint(heavy)


def test_kernels_is_ours(repository: Path) -> None:
    """A package of the same import name lives on the registry; ours must be the one that is found."""
    done = run_python("import kernels; print(kernels.__file__)", repository)
    assert Path(done.stdout.strip()) == repository / "kernels" / "__init__.py"


# --- public faces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(PACKAGES) - {"protos"}))
def test_package_shows_exactly_what_it_lists(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__doc__, f"{name}/__init__.py says in its docstring what the package is for"
    listed = package.__all__
    assert len(set(listed)) == len(listed)
    missing = [item for item in listed if not hasattr(package, item)]
    assert not missing, f"{name}.__all__ names what {name} doesn't have: {missing}"
    undocumented = [
        item
        for item in listed
        if (inspect.isclass(getattr(package, item)) or inspect.isfunction(getattr(package, item)))
        and not inspect.getdoc(getattr(package, item))
    ]
    assert not undocumented


def test_tests_mirror_the_packages(repository: Path) -> None:
    """A folder of unit tests stands for a package, so that nobody has to search."""
    folders = {path.name for path in (repository / "tests" / "unit").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= {*PACKAGES, "benchmarks"}


# --- who may import whom ----------------------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the configuration of ``folder/pyproject.toml`` over the packages that lie beside it."""
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    )
    return run_python(code, folder)


def test_import_contracts_hold(repository: Path) -> None:
    done = lint_imports(repository)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def skeleton(tmp_path: Path, repository: Path) -> Path:
    """The packages, empty, under the project's import contracts."""
    shutil.copy(repository / "pyproject.toml", tmp_path)
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("coordinator/a.py", "import participant", "Who may import whom"),
        ("participant/a.py", "from coordinator import a", "Who may import whom"),
        ("wire/a.py", "import core_model", "Who may import whom"),
        ("kernels/a.py", "import privacy", "Who may import whom"),
        ("participant/a.py", "import simulation", "Who may import whom"),
        ("simulation/a.py", "import fedloom", "Nobody imports the front door"),
        ("coordinator/a.py", "import core_model", "The coordinator knows vectors"),
        ("coordinator/a.py", "def f():\n    import torch", "never import torch"),
        ("wire/a.py", "import safetensors", "never import torch"),
        ("privacy/a.py", "import grpc", "privacy is pure"),
        ("kernels/a.py", "import scipy", "kernels is numeric"),
    ],
)
def test_import_contracts_bite(skeleton: Path, file: str, line: str, broken: str) -> None:
    (skeleton / "coordinator" / "a.py").touch()
    (skeleton / file).write_text(line + "\n")
    done = lint_imports(skeleton)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(broken in text and "BROKEN" in text for text in done.stdout.splitlines()), done.stdout


# --- what is shipped --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> zipfile.ZipFile:
    """The wheel of the working copy."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("fedloom-*.whl")))


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}
    assert tops == {*PACKAGES, "fedloom.py"}


def test_wheel_holds_what_is_not_python(wheel: zipfile.ZipFile, repository: Path) -> None:
    """Protocol files, migrations and templates are found by path at run time or by other tools."""
    names = set(wheel.namelist())
    others = {
        str(path.relative_to(repository))
        for pattern in ("*.proto", "*.html.j2", "*.css", "*.mako", "py.typed")
        for name in PACKAGES
        for path in (repository / name).rglob(pattern)
    }
    assert {"protos/session.proto", "simulation/report/templates/report.html.j2"} <= others
    assert others <= names
    migrations = [path for path in names if path.startswith("coordinator/store/migrations/versions/")]
    assert any(path.endswith(".py") for path in migrations)


def test_version_is_told_once(repository: Path, wheel: zipfile.ZipFile) -> None:
    """The newest release of the changelog is the distribution's version, or stands under 'Unreleased'."""
    version = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["version"]
    headings = [line for line in (repository / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert any(line.startswith((f"## [{version}]", "## [Unreleased]")) for line in headings[:1])
    assert importlib.import_module("fedloom").__version__ == version
    assert any(name.startswith(f"fedloom-{version}.dist-info/") for name in wheel.namelist())
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def requirements(repository: Path) -> dict[str, Requirement]:
    """Every requirement of the distribution and its extras, by canonical name."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    wanted = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    del wanted["fedloom"]
    return wanted


def test_every_dependency_is_explained_and_held(repository: Path) -> None:
    """docs/dependencies.md has a line for each requirement, and constraints.txt a version."""
    wanted = requirements(repository)
    explained = (repository / "docs" / "dependencies.md").read_text().lower()
    held = {
        canonicalize_name(name): version.partition("#")[0].strip()
        for name, found, version in (
            line.partition("==") for line in (repository / "constraints.txt").read_text().splitlines()
        )
        if found
    }
    assert [name for name in wanted if f"| {name} |" not in explained] == []
    unheld = [name for name, need in wanted.items() if name != "triton" and held.get(name) not in need.specifier]
    assert unheld == [], "run `make lock`"


def test_everything_imported_is_required(repository: Path) -> None:
    """What a package imports stands in pyproject.toml, rather than coming by luck with something else."""
    files = [path for name in PACKAGES for path in (repository / name).rglob("*.py")] + [repository / "fedloom.py"]
    imported: dict[str, str] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            else:
                continue
            imported.update({name.partition(".")[0]: str(path.relative_to(repository)) for name in names})
    outside = {
        name: at for name, at in imported.items() if name not in {*PACKAGES, "fedloom", *sys.stdlib_module_names}
    }
    provides = importlib.metadata.packages_distributions()
    # Parts of a required library under a name of their own.
    parts = {"annotated-types": "pydantic", "pydantic-core": "pydantic", "markupsafe": "jinja2", "google": "protobuf"}
    parts["llvmlite"] = "numba"  # which fixes its version
    wanted = requirements(repository)
    missing = {}
    for name, at in outside.items():
        owners = {canonicalize_name(owner) for owner in provides.get(name, [name])}
        if not {parts.get(owner, owner) for owner in owners} & set(wanted):
            missing[name] = at
    assert missing == {}


def test_demo_brings_the_built_in_pictures(repository: Path) -> None:
    """The emoji packages are found by name at run time, so no import statement tells of them."""
    from core_model.data.emoji_art import PACKAGES as NEEDED

    assert {canonicalize_name(name) for name in NEEDED} <= set(requirements(repository))
