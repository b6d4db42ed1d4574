"""Learning of sounds without labels: tell the frame behind a mask from others (arXiv:2006.11477)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phyla.blocks import Block, Linear, make
from phyla.errors import ArgumentError, ConfigError
from phyla.heads.base import Head, HeadModule
from phyla.heads.loss import IGNORED
from phyla.outputs import ModelOutput, Wav2Vec2ForPreTrainingOutput


class GumbelQuantiser(Block):
    """Picks one code of each group for a frame, x (B, S, C) -> (B, S, E), by chance in training.

    (Jang et al. 2017, arXiv:1611.01144; arXiv:2006.11477, section 2.)
    """

    def __init__(self, inputs: int, width: int, groups: int, codes: int) -> None:
        super().__init__()
        if width % groups:
            raise ConfigError(
                f"codevector_dim must be a multiple of num_codevector_groups ({groups}), but is {width}"
            )
        self.groups, self.codes, self.temperature = groups, codes, 2.0
        self.score = Linear(inputs, groups * codes)
        self.codevectors = nn.Parameter(torch.empty(1, groups * codes, width // groups))

    def forward(self, x: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """The picked codes (B, S, E), and how many codes are in use (perplexity) over `hidden` (B, S)."""
        scores = self.score(x).unflatten(-1, (self.groups, self.codes))  # (B, S, G, V)
        if self.training:
            picked = F.gumbel_softmax(scores.float(), tau=self.temperature, hard=True).type_as(scores)
            used = scores.float().softmax(-1)
        else:
            picked = used = F.one_hot(scores.argmax(-1), self.codes).to(scores.dtype)
        table = self.codevectors[0].unflatten(0, (self.groups, self.codes))
        y = torch.einsum("bsgv,gve->bsge", picked, table).flatten(2)
        if hidden is None:
            share = used.mean((0, 1))
        else:
            share = (used * hidden[..., None, None]).sum((0, 1)) / hidden.sum()
        return y, torch.exp(-(share * torch.log(share + 1e-7)).sum(-1)).sum()

    def reset(self, std: float) -> bool:
        nn.init.uniform_(self.codevectors)
        return True


class _Contrastive(HeadModule):
    """States and quantised features in one space."""

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.drop = config.feat_quantizer_dropout
        self.quantiser = make(
            GumbelQuantiser(
                config.conv_dim[-1], config.codevector_dim, config.num_codevector_groups,
                config.num_codevectors_per_group,
            )
        )  # fmt: skip
        self.state = Linear(config.hidden_size, config.proj_codevector_dim)
        self.code = Linear(config.codevector_dim, config.proj_codevector_dim)

    def forward(self, out: Any, call: Any) -> dict[str, Any]:
        features = out.extract_features
        if self.training and self.drop:
            features = F.dropout(features, self.drop)
        state = self.state(out.last_hidden_state)
        codes, perplexity = self.quantiser(features, call.hidden)
        code = self.code(codes.to(self.code.weight.dtype))
        fields = {
            "projected_states": state,
            "projected_quantized_states": code,
            "codevector_perplexity": perplexity,
        }
        if call.negatives is None:
            return fields
        if call.hidden is None:
            raise ArgumentError("sampled_negative_indices need mask_time_indices: which frames were hidden")
        config = call.config
        contrast = contrast_loss(
            state, code, call.negatives, call.hidden, config.contrastive_logits_temperature
        )
        total = config.num_codevectors_per_group * config.num_codevector_groups
        diversity = (total - perplexity) / total * call.hidden.sum()
        loss = contrast + config.diversity_loss_weight * diversity
        return fields | {"loss": loss, "contrastive_loss": contrast, "diversity_loss": diversity}


def contrast_loss(
    state: Tensor, code: Tensor, negatives: Tensor, hidden: Tensor, temperature: float
) -> Tensor:
    """Sum over hidden frames of -log softmax of the cosine with the right code (arXiv:2006.11477, eq. 3).

    state, code (B, S, E); negatives (B, S, K) number frames of the whole batch.
    """
    others = code.flatten(0, 1)[negatives.long()]  # (B, S, K, E)
    choices = torch.cat((code[:, :, None], others), 2).float()
    scores = (torch.cosine_similarity(state[:, :, None].float(), choices, -1).type_as(code)) / temperature
    same = (others == code[:, :, None]).all(-1)  # a wrong frame with the right code is no wrong answer
    scores = torch.cat((scores[..., :1], scores[..., 1:].masked_fill(same, -torch.inf)), -1)
    target = torch.where(hidden.bool(), 0, IGNORED)
    return F.cross_entropy(
        scores.flatten(0, 1).float(), target.flatten(), ignore_index=IGNORED, reduction="sum"
    )


@dataclass(frozen=True)
class ContrastivePretraining(Head):
    """Pretraining on masked sounds: the contrastive and the diversity loss."""

    task: ClassVar[str] = "pretraining"
    output: type[ModelOutput] = Wav2Vec2ForPreTrainingOutput

    def make(self, config: Any, width: int) -> HeadModule:
        return _Contrastive(config, width)
