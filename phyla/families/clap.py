"""CLAP (Wu et al. 2022, arXiv:2211.06687): a text tower and a sound tower that learn to agree.

Public checkpoints: laion/clap-htsat-unfused, laion/clap-htsat-fused, laion/larger_clap_general, ...
The towers are the families clap_text_model and clap_audio_model, whole.
"""

from typing import Any

from phyla.blocks import Dual
from phyla.checkpoints.names import NameMap
from phyla.config import PretrainedConfig
from phyla.families import clap_audio_model, clap_text_model
from phyla.family import family
from phyla.heads import Head
from phyla.heads.agree import Agree
from phyla.skeletons.sound import SoundTextModel


class Config(PretrainedConfig):
    """Keys and defaults of the public config.json."""

    text_config: dict | None = None
    audio_config: dict | None = None
    logit_scale_init_value: float = 1 / 0.07
    projection_dim: int = 512
    projection_hidden_act: str = "relu"
    initializer_factor: float = 1.0

    PARTS = {"text_config": "clap_text_model", "audio_config": "clap_audio_model"}

    def finish(self) -> None:
        text: Any = self.text_config
        audio: Any = self.audio_config
        for part in (text, audio):
            part.projection_dim, part.projection_hidden_act = self.projection_dim, self.projection_hidden_act
        self.hidden_size = text.hidden_size
        self.num_hidden_layers = text.num_hidden_layers + len(audio.depths)

    @classmethod
    def from_text_audio_configs(
        cls, text_config: PretrainedConfig, audio_config: PretrainedConfig, **keys: Any
    ) -> "Config":
        """A configuration from those of the two towers."""
        return cls(text_config=text_config.to_dict(), audio_config=audio_config.to_dict(), **keys)


def build(c: PretrainedConfig) -> Dual:
    return Dual(text=clap_text_model.build(c.text_config), audio=clap_audio_model.build(c.audio_config))


NAMES = NameMap({}, parts={"text": ("", clap_text_model.TOWER), "audio": ("", clap_audio_model.TOWER)})

HEADS: dict[str, Head] = {
    "ClapModel": Agree(
        names={
            f"{side}.{ours}": f"{side}_projection.{theirs}"
            for side in ("text", "audio")
            for ours, theirs in (("up", "linear1"), ("down", "linear2"))
        }
        | {"text_scale.value": "logit_scale_t", "audio_scale.value": "logit_scale_a"},
    ),
}

family(
    "clap", config=Config, build=build, names=NAMES, heads=HEADS, skeleton=SoundTextModel, public="Clap",
    width=lambda c: c.text_config.hidden_size,
)  # fmt: skip
