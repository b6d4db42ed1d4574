"""Heads that find what a text names: likenesses of queries to tokens (Liu et al. 2023, arXiv:2303.05499)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks.deformable import moved
from phyla.blocks.spec import make
from phyla.heads.base import Call, Head, HeadModule
from phyla.heads.boxes import Softmax, detection_loss, focal, focal_cost
from phyla.heads.detect import BoxSteps
from phyla.outputs import GroundingDinoObjectDetectionOutput, ModelOutput

# [CLS], [SEP], full stop and question mark of BERT's vocabulary: phrases end there.
ENDS = (101, 102, 1012, 1029)


def ends_of(ids: Tensor) -> Tensor:
    """Which tokens (B, S) end a phrase."""
    return torch.stack([ids == end for end in ENDS]).any(0)


def likeness(x: Tensor, text: Tensor, read: Tensor | None, most: int) -> Tensor:
    """Scores (B, Q, most) of queries and tokens, endless below at padding and past the text."""
    scores = x @ text.transpose(1, 2)
    if read is not None:
        scores = scores.masked_fill(~read[:, None], -torch.inf)
    return F.pad(scores, (0, most - scores.shape[-1]), value=-torch.inf)


class TokenFocal(Softmax):
    """A label is the tokens of a phrase, each with a focal loss. maps: for each image (phrases, tokens)."""

    def __init__(self, maps: list[Tensor], read: Tensor) -> None:
        self.maps, self.read = maps, read

    def cost(self, logits: Tensor, ids: Tensor, row: int) -> Tensor:
        tokens = self.maps[row][ids]
        return focal_cost(logits) @ (tokens / tokens.sum(-1, keepdim=True)).T

    def nothing(self, logits: Tensor) -> int:
        return -1

    def loss(self, logits: Tensor, classes: Tensor, count: float, config: Any) -> Tensor:
        # The row behind the last phrase, number -1, is that of no phrase.
        wanted = torch.stack([F.pad(m, (0, 0, 0, 1))[c] for m, c in zip(self.maps, classes, strict=True)])
        read = self.read[:, None]
        loss = focal(logits.masked_fill(~read, 0.0), wanted.to(logits), config.focal_alpha)
        return (loss * read).sum() / count


def label_maps(ids: Tensor, most: int) -> list[Tensor]:
    """For each text the tokens (phrases, most) of each of its phrases."""
    ends = ends_of(ids) | (ids == 0)
    number = ends.long().cumsum(1) * ~ends
    rows = []
    for row in number:
        kinds = row.unique()
        rows.append(F.pad((row == kinds[kinds > 0, None]).float(), (0, most - len(row))))
    return rows


class _TokenScores(HeadModule):
    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        # Published models share one block over all layers, whatever decoder_bbox_embed_share says.
        self.boxes = make([BoxSteps(width, 4)])

    def layer(self, out: Any, index: int, most: int) -> tuple[Tensor, Tensor]:
        """Scores and boxes of one layer."""
        x = out.intermediate_hidden_states[:, index]
        before = out.intermediate_reference_points[:, index - 1] if index else out.init_reference_points
        scores = likeness(x, out.encoder_last_hidden_state_text, out.read, most)
        return scores, moved(before, self.boxes[0](x)).sigmoid()

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        c, last = call.config, out.intermediate_hidden_states.shape[1] - 1
        logits, boxes = self.layer(out, last, c.max_text_len)
        fields: dict[str, Any] = {"logits": logits, "pred_boxes": boxes}
        if call.labels is not None:
            assert call.input_ids is not None
            ids, others = call.input_ids, []
            if c.auxiliary_loss:
                others = [self.layer(out, i, c.max_text_len) for i in range(last)]
                fields["auxiliary_outputs"] = [{"logits": a, "pred_boxes": b} for a, b in others]
            read = torch.ones_like(ids, dtype=torch.bool) if out.read is None else out.read
            kind = TokenFocal(
                label_maps(ids, c.max_text_len), F.pad(read, (0, c.max_text_len - read.shape[1]))
            )
            first = (out.encoder_logits, out.encoder_pred_boxes) if c.two_stage else None
            fields["loss"], fields["loss_dict"] = detection_loss(
                logits, boxes, call.labels, c, others, kind, encoder=first, ce=2.0
            )
        return fields


@dataclass(frozen=True)
class Ground(Head):
    """Likenesses to the tokens of a text, and boxes."""

    task: ClassVar[str] = "zero-shot-object-detection"
    output: type[ModelOutput] = GroundingDinoObjectDetectionOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _TokenScores(config, width)
