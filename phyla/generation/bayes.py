"""The model that judges g-values of the SynthID watermark, with the public names and files."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import MissingFileError
from phyla.outputs import ModelOutput

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


class BayesianDetectorConfig:
    """watermarking_depth: layers of the tournament. base_rate: how many texts are marked at the outset."""

    def __init__(self, watermarking_depth: int | None = None, base_rate: float = 0.5, **more: Any):
        self.watermarking_depth, self.base_rate = watermarking_depth, base_rate
        self.model_name = more.pop("model_name", None)
        self.watermarking_config = more.pop("watermarking_config", None)
        self.more = more

    def set_detector_information(self, model_name: str, watermarking_config: dict[str, Any]) -> None:
        """Note which model and settings the detector is for."""
        self.model_name, self.watermarking_config = model_name, watermarking_config

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        own = {k: v for k, v in self.__dict__.items() if k != "more"}
        return {**self.more, **own}


class BayesianWatermarkDetectorModelOutput(ModelOutput):
    """loss, and posterior_probabilities (rows,) that a text is marked."""

    loss: Tensor | None = None
    posterior_probabilities: Tensor | None = None


class _MarkedLikelihood(nn.Module):
    """How likely g-values are in marked text: each layer is told by those before it."""

    def __init__(self, depth: int):
        super().__init__()
        self.beta = nn.Parameter(-2.5 + 0.001 * torch.randn(1, 1, depth))
        self.delta = nn.Parameter(0.001 * torch.randn(1, 1, depth, depth))

    def forward(self, g_values: Tensor) -> Tensor:
        """(rows, length, depth) of 0 and 1 to likelihoods of the same shape."""
        flips = g_values.to(self.delta.dtype)
        two = (flips @ self.delta[0, 0].tril(-1).T + self.beta).sigmoid()  # two tokens met in this layer
        return 0.5 * ((flips + 0.5) * two + 1 - two)


class BayesianDetectorModel(nn.Module):
    """The chance that a text is marked, from its g-values (Dathathri et al. 2024, Bayesian score)."""

    config_class = BayesianDetectorConfig

    def __init__(self, config: BayesianDetectorConfig):
        super().__init__()
        self.config = config
        self.likelihood_model_watermarked = _MarkedLikelihood(config.watermarking_depth or 0)
        self.prior = nn.Parameter(torch.tensor([config.base_rate]))

    def forward(
        self,
        g_values: Tensor,
        mask: Tensor,
        labels: Tensor | None = None,
        loss_batch_weight: float = 1,
        return_dict: bool = False,
    ) -> Any:
        """g_values (rows, length, depth), of which those of mask (rows, length) count; labels (rows,) of 0
        and 1.
        """
        marked = self.likelihood_model_watermarked(g_values).clamp(min=1e-30).log()
        odds = ((marked - torch.log(torch.tensor(0.5))) * mask[..., None]).flatten(1).sum(1)
        prior = self.prior.clamp(1e-5, 1 - 1e-5)
        chance = (prior.log() - (1 - prior).log() + odds).sigmoid()
        loss = None
        if labels is not None:
            weight = (self.likelihood_model_watermarked.delta**2).sum() * loss_batch_weight
            loss = nn.functional.binary_cross_entropy(chance.clamp(1e-5, 1 - 1e-5), labels) + weight
        if not return_dict:
            return (chance,) if loss is None else (chance, loss)
        return BayesianWatermarkDetectorModelOutput(loss=loss, posterior_probabilities=chance)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> "BayesianDetectorModel":
        """A detector from a folder or hub id."""
        from safetensors.torch import load_file

        from phyla.checkpoints.json_file import read_json
        from phyla.checkpoints.resolve import resolve

        folder = Path(resolve(source, **options))
        if not (folder / _WEIGHTS).is_file():
            raise MissingFileError(f"{str(folder)!r} must hold {_WEIGHTS}, but does not")
        model = cls(BayesianDetectorConfig(**read_json(folder / _CONFIG)))
        model.load_state_dict(load_file(folder / _WEIGHTS))
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json and model.safetensors."""
        from safetensors.torch import save

        from phyla.checkpoints.atomic import atomic_write

        Path(folder).mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().contiguous() for name, value in self.state_dict().items()}
        atomic_write(Path(folder) / _WEIGHTS, save(state, metadata={"format": "pt"}))
        text = json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n"
        atomic_write(Path(folder) / _CONFIG, text.encode())
