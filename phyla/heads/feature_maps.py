"""Backbones under their public names: feature maps of chosen stages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from phyla.blocks.stages import Features, StageMaps
from phyla.heads.base import Head
from phyla.outputs import BackboneOutput, ModelOutput


def stage_norms(config: Any, widths: Sequence[int], norm: Callable[[int], Any]) -> dict[str, Any]:
    """A norm for each chosen stage, by its name; widths are those of the stem and of all stages."""
    stages = zip(config.stage_names, widths, strict=True)
    return {name: norm(width) for name, width in stages if name in config.out_features}


def stage_norm_names(config: Any) -> dict[str, str]:
    """Lines of `stage_norms`."""
    return {f"norms.{name}": f"hidden_states_norms.{name}" for name in config.out_features}


@dataclass(frozen=True)
class FeatureMaps(Head):
    """A backbone class: its body in a frame that picks maps (see blocks/stages.py).

    channels: config -> channels of the stem and of every stage. maps: config -> description of what makes
    maps of the body's states. names: of the parameters of that.
    """

    task: ClassVar[str] = "backbone"
    output: type[ModelOutput] = BackboneOutput
    channels: Callable[[Any], list[int]] = lambda config: [config.hidden_size] * len(config.stage_names)
    maps: Callable[[Any], Any] = lambda config: StageMaps(config.out_indices)

    def wrap(self, spec: Any, config: Any) -> Any:
        return Features(body=spec, maps=self.maps(config))

    def place(self, names: Any, config: Any) -> Any:
        own: Any = self.names(config) if callable(self.names) else self.names
        return names.but(
            lines={f"maps.{k}": v for k, v in own.items()},
            parts={"body": ("", names.but(prefix=""))}, aliases={}, copies={}, ignore=(),
        )  # fmt: skip

    def chosen_channels(self, config: Any) -> list[int]:
        """Channels of the maps that the configuration chooses."""
        channels = dict(zip(config.stage_names, self.channels(config), strict=True))
        return [channels[name] for name in config.out_features]
