"""Decision Transformer (Chen et al. 2021, arXiv:2106.01345).

Public checkpoints: edbeeching/decision-transformer-gym-hopper-medium, ... A GPT-2 trunk over (return, state,
action) of each step, all three embedded with the number of the step; the trunk's positions are all 0.
"""

import torch
from torch import Tensor

from phyla.blocks import Block, Context, LayerNorm, Linear, Spec, StackOutput, make
from phyla.blocks.embed import Tokens
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import gpt2
from phyla.family import family
from phyla.heads import Backbone
from phyla.heads.trajectory import Decide
from phyla.outputs import BaseModelOutputWithPastAndCrossAttentions
from phyla.skeletons import TextModel
from phyla.skeletons.trajectory import TrajectoryModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    state_dim: int = 17
    act_dim: int = 4
    hidden_size: int = 128
    max_ep_len: int = 4096
    action_tanh: bool = True
    vocab_size: int = 1
    n_positions: int = 1024
    n_layer: int = 3
    n_head: int = 1
    n_inner: int | None = None
    activation_function: str = "relu"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list | None = 50256
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False

    ALIASES = {
        "n_embd": "hidden_size", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }  # fmt: skip


class Trajectory(Block):
    """Each step as three tokens (return, state, action), normed, through the trunk."""

    def __init__(self, width: int, states: int, actions: int, steps: int, trunk: Spec) -> None:
        super().__init__()
        self.step = Tokens(steps, width)
        self.returned, self.state = Linear(1, width), Linear(states, width)
        self.action = Linear(actions, width)
        self.norm = make(LayerNorm(width))
        self.trunk = make(trunk)

    def forward(
        self, ctx: Context, states: Tensor, actions: Tensor, returns: Tensor, steps: Tensor, record: bool
    ) -> StackOutput:
        """(B, T, ...) of each -> states (B, 3 T, D)."""
        tokens = torch.stack((self.returned(returns), self.state(states), self.action(actions)), 2)
        tokens = tokens + self.step(steps)[:, :, None]  # (B, T, 3, D)
        return self.trunk(ctx, None, self.norm(tokens.flatten(1, 2)), None, record)


def build(c: PretrainedConfig) -> Spec:
    return Trajectory(c.hidden_size, c.state_dim, c.act_dim, c.max_ep_len, gpt2.build(c))  # type: ignore[arg-type]


TRUNK = gpt2.NAMES.but(prefix="")
NAMES = NameMap(
    {
        "step": "embed_timestep",
        "returned": "embed_return",
        "state": "embed_state",
        "action": "embed_action",
        "norm": "embed_ln",
    },
    parts={"trunk": ("encoder.", TRUNK)},
)

HEADS = {
    "DecisionTransformerModel": Decide(
        names={"state": "predict_state", "action": "predict_action.0", "returned": "predict_return"}
    ),
    "DecisionTransformerGPT2Model": Backbone(
        output=BaseModelOutputWithPastAndCrossAttentions, build=gpt2.build, table=gpt2.NAMES,
        skeleton=TextModel,
    ),
}  # fmt: skip

family(
    "decision_transformer", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=TrajectoryModel,
    public="DecisionTransformer",
    bases=("DecisionTransformerPreTrainedModel", "DecisionTransformerGPT2PreTrainedModel"),
)  # fmt: skip
