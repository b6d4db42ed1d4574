"""Boxes of objects: the assignment, overlaps, and the loss of detection against the reference's figures."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch

import phyla
from phyla.errors import ArgumentError
from phyla.heads.boxes import assign, corners, generalised_iou
from phyla.testing.goldens import read_pack

PACK = Path(__file__).with_name("goldens") / "yolos.tar.xz"
# What the reference computed for these targets (transformers 4.50.3).
LOSS, PARTS = 6.596868515014648, {"loss_ce": 1.525905, "loss_bbox": 0.679679, "loss_giou": 0.836285}


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 1), (4, 0)], ids=str)
def test_the_assignment_costs_least(shape: tuple[int, int]) -> None:
    cost = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    rows, columns = assign(cost)
    assert len(rows) == min(shape) == len(set(columns.tolist()))
    short = cost if shape[0] <= shape[1] else cost.T
    least = min(
        sum(float(short[i, j]) for i, j in enumerate(order))
        for order in itertools.permutations(range(short.shape[1]), short.shape[0])
    )
    assert float(cost[rows, columns].sum()) == pytest.approx(least, abs=1e-5)


def test_costs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ArgumentError, match="finite"):
        assign(torch.tensor([[float("nan")]]))


def test_overlap_of_boxes() -> None:
    a = corners(torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    b = corners(torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.5, 0.5, 1.0], [1.5, 0.5, 1.0, 1.0]]))
    assert generalised_iou(a, b)[0].tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_the_loss_is_the_references() -> None:
    golden = next(g for g in read_pack(PACK) if g.class_name == "YolosForObjectDetection")
    with tempfile.TemporaryDirectory() as folder:
        golden.write_checkpoint(Path(folder))
        model = phyla.YolosForObjectDetection.from_pretrained(folder)
    drawn = torch.Generator().manual_seed(3)
    labels = [
        {"class_labels": torch.tensor(ids), "boxes": torch.rand(len(ids), 4, generator=drawn) * 0.3 + 0.2}
        for ids in ([0, 1, 1], [1])
    ]
    out = model(**golden.inputs(), labels=labels)
    assert out.loss.item() == pytest.approx(LOSS, rel=1e-5)
    assert {k: out.loss_dict[k].item() for k in PARTS} == pytest.approx(PARTS, rel=1e-4)
    out.loss.backward()
    with pytest.raises(ArgumentError, match="one an image"):
        model(**golden.inputs(), labels=labels[:1])
