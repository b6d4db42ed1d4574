"""The native kernel against float64, and everything that must make it stay away."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from phyla.blocks import matmul
from phyla.fast import native, products

SHAPES = [
    (1, 1),
    (1, 17),
    (15, 3),
    (16, 16),
    (31, 33),
    (64, 577),
    (97, 1000),
    (960, 576),
    (577, 1),
    (3, 4099),
]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3}
COMPILER = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The kernel, built afresh; where there is no compiler, one that always declines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        found = native.load()
        found = found and found[0]
    if COMPILER is None:
        assert found is None
        return lambda x, weight, bias: None
    assert found is not None
    return found


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`enable` as in a new process, with an empty cache."""
    monkeypatch.setattr(native, "_started", False)
    monkeypatch.setattr(native, "_builder", None)
    monkeypatch.setattr(matmul, "native", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PHYLA_NATIVE", raising=False)
    return tmp_path


def product(kernel, x, weight, bias=None):
    """What `matmul.linear` gives with the kernel in its slot, which takes the product (if there is one)."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        calls = []

        def few_rows(*parts):
            calls.append(kernel(*parts))
            return calls[-1]

        patch.setattr(matmul, "native", few_rows)
        patch.setattr(products, "FEW", dict.fromkeys(TOLERANCE, 8))
        y = matmul.linear(x, weight, bias)
    assert len(calls) == 1
    assert (calls[0] is not None) == (COMPILER is not None)
    return y


def check(y, x, weight, bias=None):
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    expected = F.linear(*wide)
    scale = F.linear(wide[0].abs(), wide[1].abs(), None if bias is None else wide[2].abs())
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    assert ((y.double() - expected).abs() <= TOLERANCE[x.dtype] * scale + 1e-30).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("outs, width", SHAPES)
def test_close_to_float64_and_rows_alone_equal_rows_together(kernel, dtype, outs, width):
    torch.manual_seed(outs)
    weight, bias = torch.randn(outs, width).to(dtype), torch.randn(outs).to(dtype)
    for rows in range(1, 9):
        x = torch.randn(rows, width).to(dtype)
        for b in (None, bias):
            together = product(kernel, x, weight, b)
            check(together, x, weight, b)
            alone = torch.cat([product(kernel, row[None], weight, b) for row in x])
            assert COMPILER is None or torch.equal(together, alone)


@given(
    rows=st.integers(1, 8),
    outs=st.integers(1, 200),
    width=st.integers(1, 300),
    half=st.booleans(),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(kernel, rows, outs, width, half, with_bias, seed):
    dtype = torch.bfloat16 if half else torch.float32
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, width), (outs, width), (outs,))
    )
    used = bias if with_bias else None
    check(product(kernel, x, weight, used), x, weight, used)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_strides_of_x(kernel, dtype):
    whole = torch.randn(4, 6, 70).to(dtype)
    weight = torch.randn(40, 35).to(dtype)
    for x in (
        whole[:, -1:, 3:38],
        whole[:2, :3, ::2],
        whole[0, :, 35:],
        whole[1, 2, :35],
        whole[:1, :1, :35].expand(3, 2, 35),
        whole[:, 0, :35].t()[:, :1].t(),
    ):
        check(product(kernel, x, weight), x, weight)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_threads_change_no_bit(kernel, dtype):
    x, weight = torch.randn(3, 576).to(dtype), torch.randn(1543, 576).to(dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(kernel(x, weight, None))
    finally:
        torch.set_num_threads(before)
    if COMPILER is not None:
        assert all(torch.equal(results[0], y) for y in results)
        check(results[0], x, weight)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_comes_through(kernel, dtype, value):
    for place in (0, 36):  # in whole steps and in the rest
        x, weight = torch.ones(2, 37).to(dtype), torch.ones(5, 37).to(dtype)
        x[1, place] = value
        y = product(kernel, x, weight)
        assert torch.equal(y[0], torch.full((5,), 37.0).to(dtype))
        assert torch.equal(y[1].isnan(), torch.full((5,), value != value))
        assert torch.equal(y[1].isinf(), torch.full((5,), value == value))


def test_bfloat16_rounds_to_nearest_even(kernel):
    # 256 + 1 and 258 + 1 lie halfway between two bfloat16 numbers.
    x, weight = torch.ones(1, 2).bfloat16(), torch.tensor([[256.0, 1.0], [258.0, 1.0]]).bfloat16()
    assert product(kernel, x, weight).tolist() == [[256.0, 260.0]]


def test_what_the_kernel_declines(kernel):
    x, weight = torch.randn(2, 32), torch.randn(16, 32)
    for dtype, most in products.FEW.items():
        assert kernel(torch.randn(most + 1, 32).to(dtype), weight.to(dtype), None) is None
    assert kernel(torch.randn(0, 32), weight, None) is None
    assert kernel(x[:, :31], weight, None) is None
    assert kernel(x, torch.randn(32, 16).t(), None) is None
    assert kernel(x.double(), weight.double(), None) is None
    assert kernel(x.bfloat16(), weight, None) is None
    assert kernel(x.to("meta"), weight, None) is None
    assert kernel(x, weight, torch.randn(15)) is None
    assert kernel(x, weight, torch.randn(16).double()) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel(x, weight, None) is None
    with torch.no_grad():
        batched = torch.vmap(lambda row: matmul.linear(row, weight))(x)
    torch.testing.assert_close(batched, F.linear(x, weight))


def test_gradients_never_reach_it(monkeypatch):
    monkeypatch.setattr(matmul, "native", lambda *parts: pytest.fail("called"))
    weight = torch.randn(16, 32, requires_grad=True)
    matmul.linear(torch.randn(2, 32), weight).sum().backward()
    assert weight.grad is not None


def test_inference_mode(kernel):
    with torch.inference_mode():
        x, weight = torch.randn(2, 32), torch.randn(16, 32)
        y = kernel(x, weight, None)
    assert y is None or y.is_inference()


def test_enable_fills_the_slot_and_finds_its_library_again(fresh, monkeypatch):
    native.enable()
    assert native.wait() == (COMPILER is not None)
    assert len(list(fresh.glob("phyla/kernels/*"))) == (COMPILER is not None)
    if COMPILER is not None:
        monkeypatch.setattr(matmul, "native", None)
        monkeypatch.setattr(native, "_started", False)
        monkeypatch.setattr(native, "_build", lambda target: pytest.fail("built twice"))
        native.enable()  # at once: it lies there
        assert matmul.native is not None
        assert (fresh / "phyla" / "kernels").stat().st_mode & 0o777 == 0o700


def test_switched_off(fresh, monkeypatch):
    monkeypatch.setenv("PHYLA_NATIVE", "0")
    native.enable(background=False)
    assert not native.wait()
    assert not list(fresh.iterdir())


@pytest.mark.parametrize("command", ["/bin/false", "/nowhere/g++", "'"])
def test_broken_compiler(fresh, monkeypatch, caplog, command):
    monkeypatch.setenv("CXX", command)
    caplog.set_level("DEBUG", native.__name__)
    native.enable()
    assert not native.wait()
    assert len(caplog.records) == 1
    assert not list(fresh.glob("phyla/kernels/*"))
    with torch.no_grad():
        x, weight = torch.randn(1, 32), torch.randn(16, 32)
        torch.testing.assert_close(matmul.linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(
    "folder, mode", [("phyla/kernels", 0o755), ("phyla/kernels", 0o770), ("phyla", 0o777)]
)
def test_a_folder_open_to_others_is_refused(fresh, caplog, folder, mode):
    (fresh / "phyla" / "kernels").mkdir(parents=True)
    (fresh / "phyla" / "kernels").chmod(0o700)
    (fresh / folder).chmod(mode)
    caplog.set_level("DEBUG", native.__name__)
    native.enable(background=False)
    assert matmul.native is None
    if hasattr(os, "geteuid"):
        assert "closed to others" in caplog.text


def test_a_linked_folder_is_refused(fresh):
    (fresh / "elsewhere").mkdir(mode=0o700)
    (fresh / "phyla").mkdir(mode=0o700)
    (fresh / "phyla" / "kernels").symlink_to(fresh / "elsewhere")
    native.enable(background=False)
    assert matmul.native is None


def test_after_fork(fresh):
    code = """
import os, sys, torch
from phyla.blocks import matmul
from phyla.fast import native
torch.set_num_threads(1)
native.enable()  # the child forks while the thread builds
child = os.fork()
if child == 0:
    native.enable()
    os._exit(10 + native.wait())
ready = native.wait()
again = os.fork()
if again == 0:
    with torch.inference_mode():
        os._exit(10 + (matmul.linear(torch.ones(1, 4), torch.ones(2, 4)).tolist() == [[4.0, 4.0]]))
print(ready, *(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (child, again)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    ready = COMPILER is not None
    assert done.stdout.split() == [str(ready), str(10 + ready), "11"], done.stderr
