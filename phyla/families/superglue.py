"""SuperGlue (Sarlin et al. 2019, arXiv:1911.11763): which points of two images are the same.

Public checkpoints: magic-leap-community/superglue_outdoor and every `model_type: superglue`.
Points come from another family; layers attend in turn to points of the own image and of the other one, and
optimal transport decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Attention, Block, Context, Heads, Linear, StackOutput, make
from phyla.blocks.conv import BatchNorm
from phyla.blocks.spec import Spec
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ArgumentError, ConfigError
from phyla.family import family, part
from phyla.heads import Call, Head, HeadModule
from phyla.outputs import KeypointMatchingOutput, ModelOutput
from phyla.skeletons import VisionModel
import itertools


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    keypoint_detector_config: Any = None
    hidden_size: int = 256
    keypoint_encoder_sizes: list = [32, 64, 128, 256]
    gnn_layers_types: list = ["self", "cross"] * 9
    num_attention_heads: int = 4
    sinkhorn_iterations: int = 100
    matching_threshold: float = 0.0
    initializer_range: float = 0.02

    PARTS = {"keypoint_detector_config": "superpoint"}

    def finish(self) -> None:
        wrong = set(self.gnn_layers_types) - {"self", "cross"}
        if wrong:
            raise ConfigError(
                f'gnn_layers_types must be "self" or "cross", but has {sorted(map(str, wrong))}'
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), but is "
                f"{self.hidden_size}"
            )
        self.attention_probs_dropout_prob = 0


@dataclass
class Matches(StackOutput):
    """For each point of two images (B, 2, N) the number of its partner or -1, the score, and the points."""

    matches: Tensor | None = None
    matching_scores: Tensor | None = None
    keypoints: Tensor | None = None
    mask: Tensor | None = None


class Normed(Block):
    """relu(norm(linear(x))) on points (B, N, D), normed over the batch."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear, self.norm = Linear(width, out), make(BatchNorm(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2))


class Steps(Block):
    """Points through `Normed` layers and a last linear map; gives the output of each."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths[:-1])
        self.layers = make([Normed(a, b) for a, b in pairs])
        self.out = Linear(widths[-2], widths[-1])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for layer in (*self.layers, self.out):
            x = layer(x)
            found.append(x)
        return found


class Propagation(Block):
    """What points learn from those of their own image, or of the other one where `cross` (eq. 3)."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.attn = make(Attention(width, Heads(heads), cross=cross))
        self.steps = make(Steps([2 * width, 2 * width, width]))
        self.cross = cross

    def forward(self, x: Tensor, ctx: Context) -> list[Tensor]:
        if self.cross:
            ctx = replace(ctx, memory=other(x))
        return self.steps(torch.cat((x, self.attn(x, ctx)), 2))


def other(x: Tensor) -> Tensor:
    """Rows (2 B, ...) of pairs, each in the place of its partner."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def transport(scores: Tensor, bin_score: Tensor, iterations: int) -> Tensor:
    """Logarithms of the optimal assignment (B, M + 1, N + 1) of scores (B, M, N) and a bin (section 3.2)."""
    batch, rows, columns = scores.shape
    table = F.pad(scores, (0, 1, 0, 1))
    edge = torch.zeros_like(table)
    edge[:, -1] = edge[:, :, -1] = 1
    table = table + edge * bin_score
    total = torch.tensor(float(rows + columns), device=scores.device, dtype=scores.dtype).log()

    def shares(count: int, rest: int) -> Tensor:
        last = scores.new_full((1,), float(rest)).log()
        return (torch.cat((scores.new_zeros(count), last)) - total).expand(batch, -1)

    source, target = shares(rows, columns), shares(columns, rows)
    u, v = torch.zeros_like(source), torch.zeros_like(target)
    for _ in range(iterations):
        u = source - torch.logsumexp(table + v[:, None], 2)
        v = target - torch.logsumexp(table + u[:, :, None], 1)
    return table + u[:, :, None] + v[:, None] + total


class PairOfImages(Block):
    """Images (B, 2, C, Y, X) as they are."""

    def forward(self, pixels: Tensor, hidden: Tensor | None = None, interpolate: bool = False) -> Tensor:
        if pixels.dim() != 5 or pixels.shape[1] != 2:
            raise ArgumentError(
                f"pixel_values must be (batch, 2, channels, height, width), but are {tuple(pixels.shape)}"
            )
        return pixels


class Glue(Block):
    """Points of two images and what matches. sizes: of the encoder of places. kinds: "self" or "cross".

    iterations: of the transport. threshold: least score of a match.
    """

    def __init__(
        self,
        detector: Spec,
        width: int,
        heads: int,
        sizes: Sequence[int],
        kinds: Sequence[str],
        iterations: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.embed, self.detector = make(PairOfImages()), make(detector)
        self.places = make(Steps([3, *sizes, width]))
        self.layers = make([Propagation(width, heads, kind == "cross") for kind in kinds])
        self.project = Linear(width, width)
        self.bin_score = nn.Parameter(torch.empty(()))
        self.width, self.iterations, self.threshold = width, iterations, threshold

    def reset(self, std: float) -> bool:
        nn.init.ones_(self.bin_score)
        return True

    def run(self, x: Tensor, ctx: Context, ids: Tensor | None = None, record_states: bool = False) -> Matches:
        """From images x (B, 2, C, Y, X) to matches."""
        batch, size = len(x), (x.shape[4], x.shape[3])
        pixels = x.flatten(0, 1)
        found = self.detector.run(self.detector.embed(pixels), replace(ctx, attentions=None))
        count = found.keypoints.shape[1]
        out = Matches(found.descriptors, keypoints=found.keypoints.unflatten(0, (batch, 2)))
        out.mask = found.mask.unflatten(0, (batch, 2))
        if not count:
            out.matches = torch.full((batch, 2, 0), -1, dtype=torch.int, device=x.device)
            out.matching_scores = found.scores.unflatten(0, (batch, 2))
            return out
        image = torch.tensor(size, device=x.device, dtype=found.keypoints.dtype)
        points = (found.keypoints * image - image / 2) / (image.max() * 0.7)
        states = self.places(torch.cat((points, found.scores[..., None]), 2))
        hidden = torch.finfo(x.dtype).min * (1 - found.mask.to(x.dtype))  # (2 B, N), added to scores
        inner = replace(
            ctx, attention_mask=hidden[:, None, None], memory_mask=other(hidden),
            cross_attentions=ctx.attentions, memo={},
        )  # fmt: skip
        y = found.descriptors + states[-1]
        states.append(y)
        for layer in self.layers:
            steps = layer(y, inner)
            states += steps
            y = y + steps[-1]
        states.append(self.project(y))
        self.match(states[-1].unflatten(0, (batch, 2)), out)
        if record_states:
            out.hidden_states = tuple(s.unflatten(0, (batch, 2)).transpose(2, 3) for s in states)
        if ctx.attentions is not None:
            out.attentions = tuple(a.unflatten(0, (batch, 2)) for a in ctx.attentions)
        return out

    def match(self, points: Tensor, out: Matches) -> None:
        """Fill in the matches of points (B, 2, N, D): each other's best, above the threshold."""
        assert out.mask is not None
        scores = points[:, 0] @ points[:, 1].transpose(1, 2) / self.width**0.5
        # As the reference has it, only absent points of the first image are left out.
        scores = scores.masked_fill(out.mask[:, 0, :, None] == 0, -1e9)
        scores = transport(scores, self.bin_score, self.iterations)[:, :-1, :-1]
        best, first = scores.max(2)
        second = scores.max(1).indices
        order = torch.arange(scores.shape[1], device=scores.device)[None]
        mutual = order == second.gather(1, first)
        values = torch.where(mutual, best.exp(), 0.0)
        values = torch.where(values > self.threshold, values, 0.0)
        valid = mutual & (values > 0)
        back = order == first.gather(1, second)
        first_match = torch.where(valid, first, -1)
        second_match = torch.where(back & valid.gather(1, second), second, -1)
        out.matches = torch.cat((first_match, second_match)).reshape(len(scores), 2, -1)
        values_back = torch.where(back, values.gather(1, second), 0.0)
        out.matching_scores = torch.cat((values, values_back)).reshape(len(scores), 2, -1)


def build(c: Config) -> Glue:
    return Glue(
        part(c.keypoint_detector_config).spec, c.hidden_size, c.num_attention_heads, c.keypoint_encoder_sizes,
        c.gnn_layers_types, c.sinkhorn_iterations, c.matching_threshold,
    )  # fmt: skip


def step_names(ours: str, theirs: str, count: int) -> dict[str, str]:
    """Lines of `Steps` with `count` normed layers."""
    return {
        f"{ours}.layers.{{j}}.linear": f"{theirs}.{{j}}.linear",
        f"{ours}.layers.{{j}}.norm": f"{theirs}.{{j}}.batch_norm",
        f"{ours}.out": f"{theirs}.{count}",
    }


def names(c: Config) -> NameMap:
    """SuperGlue's public names."""
    at, theirs = "layers.{i}", "gnn.layers.{i}"
    return NameMap(
        {
            **step_names("places", "keypoint_encoder.encoder", len(c.keypoint_encoder_sizes)),
            **{
                f"{at}.attn.{o}": f"{theirs}.attention.self.{t}"
                for o, t in (("q", "query"), ("k", "key"), ("v", "value"))
            },
            f"{at}.attn.o": f"{theirs}.attention.output.dense",
            **step_names(f"{at}.steps", f"{theirs}.mlp", 1),
            "project": "final_projection.final_proj",
            "bin_score": "bin_score",
        },
        parts={
            "detector": ("keypoint_detector.", part(c.keypoint_detector_config).names("keypoint-detection"))
        },
    )


class _Inference(HeadModule):
    """Refuses labels."""

    def forward(self, out: Any, call: Call) -> dict[str, Any]:
        if call.labels is not None:
            raise ArgumentError("there is no loss of matches: leave out labels")
        return {}


@dataclass(frozen=True)
class KeypointMatching(Head):
    """The matches that the body found."""

    task: ClassVar[str] = "base-model"
    output: type[ModelOutput] = KeypointMatchingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Inference()


HEADS: dict[str, Head] = {"SuperGlueForKeypointMatching": KeypointMatching()}

family(
    "superglue", config=Config, build=build, names=names, heads=HEADS, skeleton=VisionModel,
    public="SuperGlue",
)  # fmt: skip
