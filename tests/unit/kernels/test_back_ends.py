"""Every back end of the merging kernels, by one checker: arrays, tensors in memory, and Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernel_checks import (
    VALUES,
    BackEnd,
    Interpreted,
    Tensors,
    check_gram,
    check_mixing,
    check_selection,
    check_weighted_sum,
)

from kernels.device import DeviceRows
from kernels.gram import gram
from kernels.selection import median, trimmed_mean
from kernels.weighted_sum import weighted_sum

interpreter = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="triton isn't installed, or is to compile in this run",
)
BACK_ENDS = [BackEnd(), Tensors("cpu"), pytest.param(Interpreted(), marks=interpreter)]
each = pytest.mark.parametrize("back_end", BACK_ENDS, ids=str)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Generated sources of this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLOOM_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


@each
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize(("n", "d"), [(1, 5), (2, 64), (5, 65), (9, 300)])
def test_selection(back_end: BackEnd, values: str, n: int, d: int) -> None:
    check_selection(back_end, values, n, d)


@each
@pytest.mark.parametrize("values", ["plain", "infinities"])
@pytest.mark.parametrize(("n", "d"), [(26, 130), (40, 200), (70, 40)])
def test_selection_from_many_rows(back_end: BackEnd, values: str, n: int, d: int) -> None:
    check_selection(back_end, values, n, d)


@each
@pytest.mark.parametrize(("m", "n", "d"), [(5, 5, 700), (3, 8, 65), (30, 26, 300), (70, 66, 40), (1, 4, 10)])
def test_mixing_inside_the_selection_equals_mixing_first(back_end: BackEnd, m: int, n: int, d: int) -> None:
    check_mixing(back_end, m, n, d)


@each
@pytest.mark.parametrize(("n", "d"), [(1, 1), (4, 0), (7, 1_500), (21, 40)])
def test_weighted_sum(back_end: BackEnd, n: int, d: int) -> None:
    check_weighted_sum(back_end, n, d)


@each
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (4, 64), (5, 1_000), (9, 2_049), (6, 0)])
def test_gram(back_end: BackEnd, n: int, d: int) -> None:
    check_gram(back_end, n, d)


@interpreter
def test_long_rows_are_formed_in_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.gram import triton

    monkeypatch.setattr(triton, "STRETCH", 512)
    monkeypatch.setattr(triton, "PAIRS", 2)
    check_gram(Interpreted(), 9, 2_049)


@interpreter
def test_rows_of_a_device_are_checked() -> None:
    import torch

    with pytest.raises(ValueError, match="no rows"):
        DeviceRows([])
    with pytest.raises(TypeError, match=r"row 1 is torch\.float64"):
        DeviceRows([torch.zeros(3), torch.zeros(3, dtype=torch.float64)])
    with pytest.raises(TypeError, match="row 1 is a ndarray, and row 0 a tensor on cpu"):
        DeviceRows([torch.zeros(3), np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match=r"row 1 has shape \(4,\) on cpu, not \(3,\) on cpu"):
        DeviceRows([torch.zeros(3), torch.zeros(4)])
    with pytest.raises(ValueError, match=r"row 0 has gaps .* call \.contiguous"):
        DeviceRows(torch.zeros(3, 4).T)
    rows = DeviceRows(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"out is torch\.float64, not a tensor of float32"):
        median(rows, torch.zeros(4, dtype=torch.float64))
    with pytest.raises(TypeError, match="out is float32, not a tensor"):
        median(rows, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match=r"out has shape \(5,\) on cpu"):
        weighted_sum([1.0, 1.0, 1.0], rows, torch.zeros(5))
    with pytest.raises(ValueError, match="can't mix 3 rows"):
        median(rows, mix=np.ones((2, 4)))


@interpreter
def test_a_result_is_written_where_it_is_wanted() -> None:
    import torch

    rows = DeviceRows(torch.tensor([[1.0], [2.0], [9.0]]))
    out = torch.zeros(1)
    assert trimmed_mean(rows, 1, out) is out
    assert out.tolist() == [2.0]
    assert weighted_sum([1.0, 1.0, 1.0], rows, out) is out
    assert out.tolist() == [12.0]


def test_a_tensor_in_memory_is_not_copied() -> None:
    import torch

    from kernels.rows import Rows

    table = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    assert Rows(table).parts[1].ctypes.data == table[1].data_ptr()
    assert gram(list(table)).tolist() == (table @ table.T).tolist()


def test_a_tensor_among_arrays_elsewhere_is_refused() -> None:
    import torch

    with pytest.raises(TypeError, match="row 1 is a tensor on meta"):
        median([np.zeros(3, np.float32), torch.zeros(3, device="meta")])  # type: ignore[list-item]


COMPILE = """
import sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from kernels.gram.triton import _blocks
from kernels.selection.triton import straight_line
from kernels.weighted_sum.triton import _weighted_sum

def code(kernel, constants, **types):
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature={**types, **dict.fromkeys(constants, "constexpr")}, constexprs=places)
    return compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False}).asm["ptx"]

sums = {"size": 3, "accumulate": True, "block": 128}
text = code(_weighted_sum, sums, addresses="*i64", weights="*fp64", out="*fp32", dimension="i32")
assert "fma" not in text and "mul.rn.f64" in text, "products and sums are rounded one by one"
shape = {"stretch": 1024, "side": 4, "lanes": 256}
code(_blocks, shape, addresses="*i64", pairs="*i32", partial="*fp64", dimension="i32", size="i32")
for size, mixes, around in ((5, False, 0), (5, True, 0), (5, False, 3)):
    kernel = straight_line(size, 0, size, around, mixes=mixes)
    text = code(kernel, {"many": 5, "block": 128}, rows="*i64", factors="*fp64", out="*fp32", dimension="i32")
    assert "div.rn.f32" in text and "fma" not in text, "the CPU's roundings"
print("compiled")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton isn't installed")
def test_the_device_kernels_compile_without_a_device(repository: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"FEDLOOM_CACHE": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=repository, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "compiled", done.stderr


def test_the_straight_lines_of_both_languages_say_the_same() -> None:
    """As many comparators, sums and choices; a difference would be one in meaning."""
    pytest.importorskip("triton")
    from kernels.selection import straight, triton

    for shape in ((9, 2, 7, 0), (9, 0, 9, 4)):
        cpu = straight.selection(*shape, straight._WORDS)
        device = straight.selection(*shape, triton._WORDS)
        assert [line.split(" ")[0] for line in cpu[:-1]] == [line.split(" ")[0] for line in device[:-1]]
        assert len(cpu) == len(device)
