"""What scripts written for PEFT call: get_peft_model, PeftModel, and groups of parameters for optimisers."""

from pathlib import Path
from typing import Any

from torch import nn

from phyla.adapters.peft.configs import PeftConfig
from phyla.errors import AdapterError
from phyla.model import PreTrainedModel


class PeftModel(nn.Module):
    """A thin view of a model and its adapters under PEFT's names; the model can be used alone."""

    def __init__(
        self, model: PreTrainedModel, peft_config: PeftConfig, adapter_name: str = "default"
    ) -> None:
        super().__init__()
        self.base_model = model
        model.add_adapter(adapter_name, config=peft_config)
        self.set_adapter(adapter_name)

    @classmethod
    def from_pretrained(
        cls, model: PreTrainedModel, model_id: Any, adapter_name: str = "default", is_trainable: bool = False
    ) -> "PeftModel":
        """A model with the adapter of a PEFT folder."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.base_model = model
        model.load_adapter(model_id, load_as=adapter_name)
        made.set_adapter(adapter_name)
        if not is_trainable:
            model.adapters.get(adapter_name).requires_grad_(False)
        return made

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.base_model(*args, **named)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    @property
    def peft_config(self) -> dict[str, Any]:
        """The configurations by adapter."""
        return dict(self.base_model.iterate_adapters())

    def set_adapter(self, adapter_name: str) -> None:
        """Activate an adapter; its parameters alone are trained."""
        self.base_model.set_active_adapters(adapter_name)
        self.base_model.requires_grad_(False)
        entry = self.base_model.adapters.get(adapter_name)
        entry.requires_grad_(True)

    def add_adapter(self, adapter_name: str, peft_config: PeftConfig) -> None:
        """Add a further adapter; it is not active."""
        self.base_model.add_adapter(adapter_name, config=peft_config)

    def load_adapter(self, model_id: Any, adapter_name: str, is_trainable: bool = False) -> None:
        """Read a further adapter from a PEFT folder."""
        self.base_model.load_adapter(model_id, load_as=adapter_name)
        self.base_model.adapters.get(adapter_name).requires_grad_(is_trainable)

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "svd",
        svd_rank: int | None = None, density: float | None = None, majority_sign_method: str = "total",
    ) -> None:  # fmt: skip
        """Combine LoRA adapters into a new one; see `average_adapter`, whose weights are normalised."""
        strategy = "task_arithmetic" if combination_type == "linear" else combination_type
        self.base_model.average_adapter(
            adapter_name, adapters, weights, strategy, normalize_weights=False, svd_rank=svd_rank,
            density=density, majority_sign_method=majority_sign_method,
        )  # fmt: skip

    def save_pretrained(self, save_directory: Any, safe_serialization: bool = True) -> None:
        """Write the adapters, "default" into the folder itself, others into folders below it."""
        for name in self.base_model.adapters.names():
            folder = Path(save_directory) / ("" if name == "default" else name)
            self.base_model.save_adapter(folder, name, use_safetensors=safe_serialization, format="peft")

    def merge_and_unload(self) -> PreTrainedModel:
        """The model with the active adapter in its weights, and without adapters."""
        name = self.base_model.active_adapters
        self.base_model.merge_adapter(name)
        return self.unload(keep=True)

    def unload(self, keep: bool = False) -> PreTrainedModel:
        """The model without its adapters; keep: with what was merged."""
        adapters = self.base_model.adapters
        if keep:
            adapters.merged.clear()
        for name in list(adapters.names()):
            adapters.delete(name)
        return self.base_model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """(trained, all) parameters."""
        every = list(self.base_model.parameters())
        return sum(p.numel() for p in every if p.requires_grad), sum(p.numel() for p in every)

    def print_trainable_parameters(self) -> None:
        """Say how many parameters are trained."""
        trained, every = self.get_nb_trainable_parameters()
        text = f"trainable params: {trained:,} || all params: {every:,}"
        print(f"{text} || trainable%: {100 * trained / every:.4f}")  # noqa: T201


def get_peft_model(
    model: PreTrainedModel, peft_config: PeftConfig, adapter_name: str = "default"
) -> PeftModel:
    """A model with a fresh adapter, whose parameters alone are trained."""
    if not isinstance(model, PreTrainedModel):
        raise AdapterError(f"get_peft_model takes a model of phyla, but got {type(model).__name__}")
    return PeftModel(model, peft_config, adapter_name)


def loraplus_groups(
    model: nn.Module, lr: float, ratio: float = 16.0, embedding_lr: float = 1e-6, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups of LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B learns `ratio` times as fast as A.

    Factors of token tables learn with embedding_lr; vectors have no weight decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    tables = {id(p) for m in model.modules() if getattr(m, "kind", None) == "table" for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        vector = parameter.dim() == 1
        fast = vector or name.rpartition(".")[2] == "lora_B"
        rate = embedding_lr if id(parameter) in tables else lr * ratio if fast else lr
        groups.setdefault((rate, 0.0 if vector else weight_decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
