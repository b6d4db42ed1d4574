"""The linear recurrences against their definitions, step by step, with their gradients."""

import pytest
import torch
from torch import Tensor

from phyla.blocks import scan as recurrences
from phyla.blocks.scan import chunked_scan, decayed_average, scan, selective_scan


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def plain(decay: Tensor, entry: Tensor, state: Tensor | None) -> Tensor:
    states, last = [], torch.zeros_like(entry[:, 0]) if state is None else state
    for t in range(entry.shape[1]):
        last = decay[:, t] * last + entry[:, t]
        states.append(last)
    return torch.stack(states, 1)


@pytest.mark.parametrize("length", [1, 2, 7, 16])
@pytest.mark.parametrize("begins", [False, True], ids=["from zero", "from a state"])
def test_scan(length: int, begins: bool) -> None:
    decay = noise(2, length, 3, 1).sigmoid().requires_grad_()
    entry = noise(2, length, 3, 4, seed=1).requires_grad_()
    state = noise(2, 3, 4, seed=2).requires_grad_() if begins else None
    leaves = [t for t in (decay, entry, state) if t is not None]
    wanted = plain(decay, entry, state)
    found, last = scan(decay, entry, state)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(last, wanted[:, -1])
    weights = noise(*wanted.shape, seed=3)
    mine = torch.autograd.grad((found * weights).sum() + last.sum(), leaves, allow_unused=True)
    theirs = torch.autograd.grad((wanted * weights).sum() + wanted[:, -1].sum(), leaves, allow_unused=True)
    for left, right in zip(mine, theirs, strict=True):
        assert (left is None) == (right is None) or not (left if right is None else right).any()
        if left is not None and right is not None:
            torch.testing.assert_close(left, right)


def test_both_ways_of_scanning_agree() -> None:
    decay, entry = noise(2, 13, 5).sigmoid(), noise(2, 13, 5, seed=1)
    torch.testing.assert_close(recurrences._walk(decay, entry, None), recurrences._doubling(decay, entry))


@pytest.mark.parametrize("length", [1, 5, 64, 131])
def test_selective_scan_goes_by_spans(length: int) -> None:
    x, step = noise(2, length, 3), noise(2, length, 3, seed=1).exp()
    a, b, c = -noise(3, 4, seed=2).exp(), noise(2, length, 4, seed=3), noise(2, length, 4, seed=4)
    state, leaves = noise(2, 3, 4, seed=5), (x, step, a, b, c)
    for leaf in (*leaves, state):
        leaf.requires_grad_()
    states = plain(torch.exp(step[..., None] * a), (step * x)[..., None] * b[:, :, None], state)
    wanted = (states * c[:, :, None]).sum(-1)
    found, last = selective_scan(x, step, a, b, c, state)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(last, states[:, -1])
    mine = torch.autograd.grad(found.square().sum(), (*leaves, state))
    theirs = torch.autograd.grad(wanted.square().sum(), (*leaves, state))
    for left, right in zip(mine, theirs, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("length", [1, 3, 8, 21])
@pytest.mark.parametrize("begins", [False, True], ids=["from zero", "from a state"])
def test_chunked_scan(length: int, begins: bool) -> None:
    x, log_decay = noise(2, length, 2, 3, 5), -noise(2, length, 2, 3, seed=1).exp()
    b, c = noise(2, length, 2, 4, seed=2), noise(2, length, 2, 4, seed=3)
    state = noise(2, 2, 3, 5, 4, seed=4) if begins else None
    entry = x[..., None] * b[:, :, :, None, None]
    states = plain(log_decay.exp()[..., None, None], entry, state)
    found, last = chunked_scan(x, log_decay, b, c, state, chunk=8)
    torch.testing.assert_close(found, (states * c[:, :, :, None, None]).sum(-1))
    torch.testing.assert_close(last, states[:, -1])


def test_decayed_average_goes_on_from_its_state() -> None:
    k, v = 3 * noise(2, 9, 4), noise(2, 9, 4, seed=1)
    decay, bonus = -noise(4, seed=2).exp(), noise(4, seed=3)
    wanted = []
    for t in range(9):
        weights = [(t - 1 - s) * decay + k[:, s] for s in range(t)] + [bonus + k[:, t]]
        shares = torch.stack(weights).softmax(0)
        wanted.append((shares * v[:, : t + 1].transpose(0, 1)).sum(0))
    whole, _ = decayed_average(k, v, decay, bonus)
    torch.testing.assert_close(whole, torch.stack(wanted, 1))
    first, state = decayed_average(k[:, :4], v[:, :4], decay, bonus)
    rest, _ = decayed_average(k[:, 4:], v[:, 4:], decay, bonus, state)
    torch.testing.assert_close(torch.cat((first, rest), 1), whole)


def test_no_average_overflows() -> None:
    k = torch.tensor([[[500.0], [-500.0], [800.0]]])
    y, state = decayed_average(k, torch.ones(1, 3, 1), torch.tensor([-0.1]), torch.tensor([0.5]))
    torch.testing.assert_close(y, torch.ones(1, 3, 1))
    assert all(part.isfinite().all() for part in state)
