"""Adapters on every model: methods, compositions, files. `adapters.init(model)` does nothing.

`model.add_adapter("a", config="seq_bn"); model.train_adapter("a")`; see docs/adapters.md.
"""

from typing import TYPE_CHECKING, Any

from phyla.adapters.api import AdapterSetup, init
from phyla.adapters.bottleneck import (
    AdapterPlusConfig,
    BnConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    ParBnConfig,
    SeqBnConfig,
    SeqBnInvConfig,
)
from phyla.adapters.composition import (
    AdapterCompositionBlock,
    Average,
    BatchSplit,
    Fuse,
    MultiTask,
    Parallel,
    Split,
    Stack,
)
from phyla.adapters.config import ADAPTER_CONFIG_MAP, AdapterConfig, ConfigUnion
from phyla.adapters.context import ForwardContext
from phyla.adapters.fusion import (
    ADAPTERFUSION_CONFIG_MAP,
    AdapterFusionConfig,
    DynamicAdapterFusionConfig,
    StaticAdapterFusionConfig,
)
from phyla.adapters.interface import AdapterMethod, AdapterModelInterface
from phyla.adapters.lora import DoRAConfig, DvoRAConfig, IA3Config, LoRAConfig, MTLLoRAConfig, VeraConfig
from phyla.adapters.prefix import PrefixTuningConfig
from phyla.adapters.prompt import PromptTuningConfig
from phyla.adapters.reft import DiReftConfig, LoReftConfig, NoReftConfig, ReftConfig
from phyla.adapters.unions import MAMConfig, UniPELTConfig

if TYPE_CHECKING:
    from phyla.adapters.auto import AutoAdapterModel
    from phyla.adapters.heads import *  # noqa: F403

# The names of older versions.
PfeifferConfig, PfeifferInvConfig = SeqBnConfig, SeqBnInvConfig
HoulsbyConfig, HoulsbyInvConfig, ParallelConfig = DoubleSeqBnConfig, DoubleSeqBnInvConfig, ParBnConfig
DvoraConfig = DvoRAConfig

DEFAULT_ADAPTER_CONFIG = "seq_bn"
DEFAULT_ADAPTERFUSION_CONFIG = "dynamic"

# Names that are imported when they are first asked for; `XAdapterModel` is there for every family besides.
_HEADS = (
    "MODEL_HEAD_MAP", "BertStyleMaskedLMHead", "BiaffineParsingHead", "CausalLMHead", "ClassificationHead",
    "DependencyParsingOutput", "ImageClassificationHead", "MultiHeadOutput", "MultiLabelClassificationHead",
    "MultipleChoiceHead", "PredictionHead", "QuestionAnsweringHead", "Seq2SeqLMHead", "TaggingHead",
)  # fmt: skip


_HUB = ("AdapterInfo", "get_adapter_info", "list_adapters")


def __getattr__(name: str) -> Any:
    found = None
    if name in _HEADS:
        import phyla.adapters.heads as heads

        found = getattr(heads, name)
    elif name in _HUB:
        import phyla.adapters.push as push

        found = getattr(push, name)
    elif name.endswith("AdapterModel"):
        import phyla.adapters.auto as auto

        found = auto.named(name)
    if found is None:
        raise AttributeError(f"phyla.adapters has no {name!r}")
    globals()[name] = found
    return found


__all__ = [
    "ADAPTERFUSION_CONFIG_MAP",
    "ADAPTER_CONFIG_MAP",
    "DEFAULT_ADAPTERFUSION_CONFIG",
    "DEFAULT_ADAPTER_CONFIG",
    "AdapterCompositionBlock",
    "AdapterConfig",
    "AdapterFusionConfig",
    "AdapterMethod",
    "AdapterModelInterface",
    "AdapterPlusConfig",
    "AdapterSetup",
    "AutoAdapterModel",
    "Average",
    "BatchSplit",
    "BnConfig",
    "CompacterConfig",
    "CompacterPlusPlusConfig",
    "ConfigUnion",
    "DiReftConfig",
    "DoRAConfig",
    "DoubleSeqBnConfig",
    "DoubleSeqBnInvConfig",
    "DvoRAConfig",
    "DvoraConfig",
    "DynamicAdapterFusionConfig",
    "ForwardContext",
    "Fuse",
    "HoulsbyConfig",
    "HoulsbyInvConfig",
    "IA3Config",
    "LoRAConfig",
    "LoReftConfig",
    "MAMConfig",
    "MTLLoRAConfig",
    "MultiTask",
    "NoReftConfig",
    "ParBnConfig",
    "Parallel",
    "ParallelConfig",
    "PfeifferConfig",
    "PfeifferInvConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "ReftConfig",
    "SeqBnConfig",
    "SeqBnInvConfig",
    "Split",
    "Stack",
    "StaticAdapterFusionConfig",
    "UniPELTConfig",
    "VeraConfig",
    "init",
]
