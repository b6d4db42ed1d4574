"""Unions with names of their own: MAM (He et al. 2022) and UniPELT (Mao et al. 2022)."""

from typing import Any

from phyla.adapters.bottleneck import ParBnConfig, SeqBnConfig
from phyla.adapters.config import ADAPTER_CONFIG_MAP, CLASSES, ConfigUnion
from phyla.adapters.lora import LoRAConfig
from phyla.adapters.prefix import PrefixTuningConfig


class MAMConfig(ConfigUnion):
    """Prefixes and a parallel bottleneck (arXiv:2110.04366)."""

    def __init__(self, prefix_tuning: Any = None, adapter: Any = None) -> None:
        super().__init__(prefix_tuning or PrefixTuningConfig(bottleneck_size=800), adapter or ParBnConfig())


class UniPELTConfig(ConfigUnion):
    """Prefixes, a bottleneck and LoRA, all gated (arXiv:2110.07577)."""

    def __init__(self, prefix_tuning: Any = None, adapter: Any = None, lora: Any = None) -> None:
        members = (
            prefix_tuning or PrefixTuningConfig(prefix_length=10),
            adapter or SeqBnConfig(reduction_factor=16),
            lora or LoRAConfig(r=8, alpha=2),
        )
        super().__init__(*(m.replace(use_gating=True) for m in members))


CLASSES["MAMConfig"], CLASSES["UniPELTConfig"] = MAMConfig, UniPELTConfig
ADAPTER_CONFIG_MAP["mam"], ADAPTER_CONFIG_MAP["unipelt"] = MAMConfig(), UniPELTConfig()
