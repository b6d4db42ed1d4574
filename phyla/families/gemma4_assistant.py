"""Drafts of Gemma 4. Public checkpoints: google/gemma-4-E2B-it-assistant and its like.

Differs from Gemma 4 in: all layers borrow keys and values, which the model they draft for keeps; what they
read is that model's vector of the last token and its states before it, narrowed; every guess is made at the
place of that token. Scores may be those of the words of the best of many groups alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from phyla.blocks import Context, Linear, Spec, make
from phyla.blocks.spec import Block
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.errors import ConfigError
from phyla.families import gemma4_text
from phyla.families.gemma4_text import KEPT
from phyla.families.qwen3 import SLIDING
from phyla.family import family
from phyla.heads import Head
from phyla.skeletons.guessing import Gemma4AssistantOutput, OnePlaceModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    text_config: dict | None = None
    backbone_hidden_size: int = 1536
    use_ordered_embeddings: bool = False
    num_centroids: int = 2048
    centroid_intermediate_top_k: int = 32
    tie_word_embeddings: bool = True

    PARTS = {"text_config": "gemma4_text"}
    PART_DEFAULTS = {"text_config": {"hidden_size_per_layer_input": None}}

    def finish(self) -> None:
        text: Any = self.text_config
        text.num_kv_shared_layers = text.num_kv_shared_layers or text.num_hidden_layers
        wrong = [n for n in ("enable_moe_block", "use_double_wide_mlp", "hidden_size_per_layer_input")
                 if getattr(text, n)]  # fmt: skip
        if wrong or text.num_kv_shared_layers != text.num_hidden_layers:
            raise ConfigError(
                "text_config must have layers that all borrow keys, plain feed-forwards and no vectors of "
                f"their own, but sets {wrong or 'num_kv_shared_layers'} (in a gemma4_assistant config)"
            )
        if self.use_ordered_embeddings and text.vocab_size % self.num_centroids:
            raise ConfigError(
                f"num_centroids must divide vocab_size ({text.vocab_size}), but is {self.num_centroids}"
            )


class Groups(Block):
    """Scores of the words in the `best` groups alone; the others get less than all of these.

    order (V): the words of the first group, of the second, ...
    """

    def __init__(self, width: int, words: int, groups: int, best: int) -> None:
        super().__init__()
        self.best, self.groups = best, groups
        self.centroids = Linear(width, groups, bias=False)
        self.register_buffer("order", torch.zeros(words, dtype=torch.long))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """States (B, S, D) and vectors of words (V, D) to scores (B, S, V)."""
        best = self.centroids(x).topk(self.best, -1).indices  # (B, S, best)
        words = self.order.view(self.groups, -1)[best].flatten(-2)  # (B, S, best * V / groups)
        own = torch.einsum("bsd,bsnd->bsn", x, F.embedding(words, table))
        floor = (own.amin() - 1.0).expand(*x.shape[:2], len(table))
        return floor.scatter(-1, words, own)


class Guesser(Block):
    """A stack of borrowers between two maps: from the other model's vector and states, and to its states."""

    def __init__(self, text: Spec, width: int, other: int, window: int, groups: Spec | None) -> None:
        super().__init__()
        self.text, self.window, self.groups = make(text), window, make(groups)
        self.pre, self.post = Linear(2 * other, width, bias=False), Linear(width, other, bias=False)

    def forward(
        self, ctx: Context, x: Tensor, shared: Mapping[str, tuple[Tensor, Tensor]], reach: int, record: bool
    ) -> Any:
        """(the stack's output, scores (B, 1, V), states (B, 1, D')) of x (B, 1, 2 D')."""
        # Keys and values end where the text does, but a window may have dropped the first.
        ctx.memo[KEPT] = {kind: (k, v, reach - k.shape[2]) for kind, (k, v) in shared.items()}
        for layer in self.text.layers:
            rule = layer.attn.rule
            near = self.window + 1 if layer.attn.kind == SLIDING else reach
            keys = shared[layer.attn.kind][0].shape[2]
            ctx.memo.setdefault(rule, self._seen(ctx, keys, near, reach))
        out = self.text.run(self.pre(x), ctx, None, record)
        state, table = out.last_hidden_state, self.text.embed.tokens.weight
        logits = F.linear(state, table) if self.groups is None else self.groups(state, table)
        return out, logits, self.post(state)

    @staticmethod
    def _seen(ctx: Context, keys: int, near: int, reach: int) -> Tensor | None:
        """Which of the last `keys` places, (B or 1, 1, 1, K), the one query sees: the `near` last ones."""
        mask = None if ctx.attention_mask is None else ctx.attention_mask[:, None, None, reach - keys :]
        if near >= keys:
            return mask
        seen = torch.arange(keys, device=ctx.positions.device) >= keys - near
        return seen[None, None, None] if mask is None else mask & seen


def build(c: Config) -> Spec:
    text: Any = c.text_config
    groups = None
    if c.use_ordered_embeddings:
        groups = Groups(text.hidden_size, text.vocab_size, c.num_centroids, c.centroid_intermediate_top_k)
    return Guesser(
        gemma4_text.build(text), text.hidden_size, c.backbone_hidden_size, text.sliding_window, groups
    )


def names(c: Config) -> NameMap:
    """The stack under its own names, and what is around it."""
    lines = {"pre": "pre_projection", "post": "post_projection"}
    if c.use_ordered_embeddings:
        lines["groups.centroids"] = "masked_embedding.centroids"
        lines["groups.order"] = "masked_embedding.token_ordering"
    text: Any = c.text_config
    aliases = {"text.embed.tokens": ("lm_head",)}
    return NameMap(lines, aliases=aliases, parts={"text": ("", gemma4_text.names(text))})


class _Guesses(Head):
    task = "token-drafting"


HEADS: dict[str, Head] = {"Gemma4AssistantForCausalLM": _Guesses(output=Gemma4AssistantOutput)}

family(
    "gemma4_assistant", config=Config, build=build, names=names, heads=HEADS, skeleton=OnePlaceModel,
    public="Gemma4Assistant", width=lambda c: c.text_config.hidden_size,
)  # fmt: skip
