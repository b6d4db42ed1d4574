"""Where weights lie: large pages, rooms, and matrices that are joined side by side."""

import gc
import sys

import pytest
import torch

from phyla.blocks import memory as places
from phyla.blocks.memory import PAGE, Room, cut, memory, side_by_side
from phyla.checkpoints import arena
from phyla.checkpoints.arena import Arena


@pytest.mark.parametrize("size", [0, 5, PAGE - 1, PAGE, 3 * PAGE + 5])
def test_memory_has_the_size_asked_and_begins_at_a_large_page(size) -> None:
    block = memory(size)
    assert block.shape == (size,) and block.dtype == torch.uint8
    block.fill_(7)
    assert (block == 7).all()
    if sys.platform == "linux" and size >= PAGE and places.free_large_pages() > 4 * PAGE:
        assert block.data_ptr() % PAGE == 0


def test_large_pages_are_asked_for_where_enough_are_free(monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(places, "_advise", lambda: lambda begin, size, what: asked.append(size))
    monkeypatch.setattr(places, "free_large_pages", lambda: 4 * PAGE)
    memory(3 * PAGE), memory(5 * PAGE), memory(3 * PAGE, beside=2 * PAGE), memory(PAGE, beside=3 * PAGE)
    assert asked == [3 * PAGE, PAGE]


def test_memory_is_ordinary_where_the_system_has_no_large_pages(monkeypatch) -> None:
    monkeypatch.setattr(places, "_advise", lambda: None)
    assert memory(2 * PAGE).fill_(1).sum() == 2 * PAGE


def test_tensors_taken_in_turn_lie_side_by_side(monkeypatch) -> None:
    monkeypatch.setattr(places, "BLOCK", 1024)
    room, given = Room(), [torch.randn(n, 16) for n in (3, 5, 7)]
    taken = [room.copy(t) for t in given]
    whole = side_by_side(taken)
    assert torch.equal(whole, torch.cat(given)) and whole.data_ptr() == taken[0].data_ptr()
    assert side_by_side(taken[::-1]) is None and side_by_side(given) is None
    after = room.copy(given[0])  # in the next block
    assert side_by_side([taken[2], after]) is None and torch.equal(after, given[0])
    assert room.copy(torch.ones(4096)).sum() == 4096  # larger than a block


def test_what_is_joined_stays_in_one_block(monkeypatch) -> None:
    monkeypatch.setattr(arena, "BLOCK", 4096)
    monkeypatch.setattr(arena, "LEAST", 0)
    names = [f"{i}.{name}" for i in range(3) for name in ("q", "k", "gate", "up")]
    made = Arena(
        (name, (40, 16), torch.float32, name[:2] + ("attn" if name[2:] in "qk" else "ffn")) for name in names
    )
    for i in range(3):
        for pair in (("q", "k"), ("gate", "up")):
            taken = [made.take(f"{i}.{name}") for name in pair]
            assert side_by_side(taken) is not None  # 5120 bytes, more than a block
    assert made.take("0.q") is None


def test_pieces_of_a_block_have_storages_of_their_own() -> None:
    count = len(places._blocks)
    block = memory(256)
    pieces = [cut(block, begin, 64) for begin in (0, 64, 192)]
    assert [p.untyped_storage().nbytes() for p in pieces] == [64] * 3 and cut(block, 0, 0).shape == (0,)
    for i in range(3):
        pieces[i].fill_(i)
    assert block[::64].tolist()[:2] == [0, 1] and block[255] == 2
    parts = [piece.view(torch.float32).view(4, 4) for piece in pieces]
    whole = side_by_side(parts[:2])
    assert whole is not None and whole.data_ptr() == block.data_ptr() and whole.shape == (8, 4)
    assert side_by_side(parts[1:]) is None and side_by_side(parts[1::-1]) is None
    del block, parts
    gc.collect()
    assert len(places._blocks) == count + 1 and pieces[2].sum() == 128
    del pieces
    gc.collect()
    assert whole.view(torch.uint8).sum() == 64  # the memory lives as long as what looks at it
    del whole
    gc.collect()
    assert len(places._blocks) == count
