"""Adapters on every model: methods, compositions, files. `adapters.init(model)` of older scripts does nothing.

`model.add_adapter("a", config="seq_bn"); model.train_adapter("a")`; see docs/adapters.md.
"""

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
from phyla.adapters.fusion import (
    ADAPTERFUSION_CONFIG_MAP,
    AdapterFusionConfig,
    DynamicAdapterFusionConfig,
    StaticAdapterFusionConfig,
)
from phyla.adapters.lora import DoRAConfig, DvoRAConfig, IA3Config, LoRAConfig, MTLLoRAConfig, VeraConfig
from phyla.adapters.prefix import PrefixTuningConfig
from phyla.adapters.prompt import PromptTuningConfig
from phyla.adapters.reft import DiReftConfig, LoReftConfig, NoReftConfig, ReftConfig
from phyla.adapters.unions import MAMConfig, UniPELTConfig

# The names of older versions.
PfeifferConfig, PfeifferInvConfig = SeqBnConfig, SeqBnInvConfig
HoulsbyConfig, HoulsbyInvConfig, ParallelConfig = DoubleSeqBnConfig, DoubleSeqBnInvConfig, ParBnConfig
DvoraConfig = DvoRAConfig

DEFAULT_ADAPTER_CONFIG = "seq_bn"
DEFAULT_ADAPTERFUSION_CONFIG = "dynamic"

__all__ = [name for name in dir() if name[:1].isupper() or name == "init"]
