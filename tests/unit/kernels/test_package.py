"""The package itself: it is ours, lean, and exports what it says."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import kernels

ROOT = Path(__file__).parents[3]


def test_our_package_is_imported_and_not_the_registrys() -> None:
    assert Path(kernels.__file__).resolve() == ROOT / "kernels" / "__init__.py"
    assert not hasattr(kernels, "get_kernel")


def test_importing_it_loads_no_array_library() -> None:
    code = "import sys, kernels; print(sorted({'numpy', 'numba', 'torch', 'triton'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_cpu_path_loads_no_torch() -> None:
    code = (
        "import sys, numpy, kernels; kernels.weighted_sum.weighted_sum([1.0], [numpy.ones(3, 'f4')]);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_exports_are_exact() -> None:
    assert kernels.__all__ == ["device", "gram", "rows", "selection", "weighted_sum"]
    assert set(kernels.__all__) <= set(dir(kernels))
    assert kernels.gram.__all__ == ["GramBuilder", "gram", "squared_norm", "squared_norms"]
    assert kernels.selection.__all__ == ["around_median", "median", "trimmed_mean"]
    assert kernels.weighted_sum.__all__ == ["BLOCK", "weighted_sum"]
    with pytest.raises(AttributeError, match="no_such_kernel"):
        kernels.no_such_kernel  # noqa: B018


@pytest.mark.parametrize("kernel", [kernels.gram, kernels.selection, kernels.weighted_sum])
def test_examples_in_docstrings_hold(kernel: ModuleType) -> None:
    failed, tried = doctest.testmod(kernel)
    assert (failed, tried > 0) == (0, True)


def test_a_kernel_is_imported_without_the_compiler() -> None:
    code = (
        "import sys, kernels; kernels.gram, kernels.selection, kernels.weighted_sum;"
        "print(sorted({'numba', 'llvmlite', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
