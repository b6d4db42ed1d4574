"""Fixtures of the tests of native kernels: the kernels themselves, and a count of what they took."""

import os
import shutil

import pytest

import phyla
from phyla.blocks import flat, matmul, stack
from phyla.fast import codes, native

COMPILER = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
BUILT = COMPILER is not None  # without a compiler, every test holds for the modules that run instead


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The kernels, built once a session; where there is no compiler, functions that always decline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kernels"))
        found = native.load()
    assert (found is not None) == BUILT
    return found or native.Kernels(*(lambda *parts: None,) * len(native.Kernels._fields))


@pytest.fixture
def counted(kernels, monkeypatch):
    """The kernels in their slots; a list that grows with each call of the stack that they took."""
    taken: list[bool] = []

    def run(*parts):
        y = kernels.stack(*parts)
        taken.append(y is not None)
        return y

    monkeypatch.setattr(matmul, "native", kernels.product)
    monkeypatch.setattr(matmul, "native_alike", kernels.alike)
    monkeypatch.setattr(flat, "native", kernels.flat)
    monkeypatch.setattr(stack, "native", run)
    monkeypatch.setattr(codes, "native", kernels.codes if BUILT else None)
    return taken


def alone_as_together(model, given):
    """The tokens and chances of each prompt from the engine, which are the same, to the bit, in any batch."""
    asked = {"max_new_tokens": 8, "output_scores": True, "eos_token_id": None}

    def found(order, **way):
        with phyla.Engine(model, page_size=16, **way) as engine:
            handles = {n: engine.submit(given[n], **asked) for n in order}
            return {n: (h.result().generated_tokens, h.result().logprobs) for n, h in handles.items()}

    count = len(given)
    alone = {n: found([n])[n] for n in range(count)}
    assert found(range(count)) == alone
    assert found(reversed(range(count)), max_batch_tokens=33, max_requests=3) == alone
    return alone
