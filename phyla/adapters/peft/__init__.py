"""PEFT's methods on every model: configurations under their public names, folders in both directions.

`model.add_adapter("a", config=LoraConfig(...))`, or `get_peft_model(model, LoraConfig(...))` for scripts that
were written for PEFT; `model.save_adapter(folder, "a", format="peft")`. See docs/adapters.md.
"""

import phyla.adapters.registry as registry
from phyla.adapters.peft.allocation import orthogonality_loss, update_and_allocate
from phyla.adapters.peft.attach import attach
from phyla.adapters.peft.configs import (
    AdaLoraConfig,
    BOFTConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    VeraConfig,
)
from phyla.adapters.peft.files import read_peft, write_peft
from phyla.adapters.peft.model import PeftModel, get_peft_model, loraplus_groups
from phyla.adapters.peft.part import At
from phyla.adapters.peft.prompts import KeysAt

registry.MAKERS["peft"] = (attach,)
registry.METHODS |= {At: "lora", KeysAt: "prefix"}

__all__ = [
    "AdaLoraConfig",
    "BOFTConfig",
    "FourierFTConfig",
    "HRAConfig",
    "IA3Config",
    "LNTuningConfig",
    "LoHaConfig",
    "LoKrConfig",
    "LoraConfig",
    "OFTConfig",
    "PeftConfig",
    "PeftModel",
    "PrefixTuningConfig",
    "PromptEncoderConfig",
    "PromptTuningConfig",
    "TrainableTokensConfig",
    "VeraConfig",
    "get_peft_model",
    "loraplus_groups",
    "orthogonality_loss",
    "read_peft",
    "update_and_allocate",
    "write_peft",
]
