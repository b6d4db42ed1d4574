"""PEFT's configurations under their public names, fields and defaults; files are these as JSON."""

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar

from phyla.adapters.config import ADAPTER_CONFIG_MAP, ARCHITECTURES, AdapterConfig
from phyla.errors import AdapterError, nearest

KINDS: dict[str, type["PeftConfig"]] = {}

# Settings that change what is computed and that are not implemented: an error where one is set.
_REFUSED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip


def peft(kind: str):
    """Class decorator: the `peft_type` of a configuration; in lower case its name in configuration strings.

    Names that AdapterHub's methods have as well (`lora`, `ia3`, ...) get `peft_` before them.
    """

    def register(cls: type["PeftConfig"]) -> type["PeftConfig"]:
        cls.peft_type = kind
        KINDS[kind] = cls
        name = kind.lower()
        ADAPTER_CONFIG_MAP[f"peft_{name}" if name in ADAPTER_CONFIG_MAP else name] = cls()
        return cls

    return register


# Settings of starts from data and of other machines, which change nothing here.
_IDLE = (
    "corda_config", "ensure_weight_tying", "eva_config", "loftq_config", "lora_ga_config", "megatron_config",
    "megatron_core", "qalora_group_size", "runtime_config",
)  # fmt: skip


def refuse(data: Mapping[str, Any]) -> None:
    """AdapterError where a setting is given that changes what is computed, but is not implemented."""
    for name in _REFUSED:
        if data.get(name):
            raise AdapterError(f"the setting {name} of PEFT adapters is not implemented")


@dataclass
class PeftConfig(AdapterConfig):
    """What all PEFT configurations share. extra: keys of a file that no field is for; they are kept."""

    architecture: ClassVar[str | None] = "peft"
    peft_type: ClassVar[str] = ""
    bias_key: ClassVar[str] = ""  # what `bias` calls the biases of the changed modules alone
    task_type: str | None = None
    auto_mapping: Any = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False
    modules_to_save: list[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict, repr=False)
    __hash__ = AdapterConfig.__hash__

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PeftConfig":
        """The configuration of an adapter_config.json; AdapterError for a type that is not implemented."""
        kind = data.get("peft_type")
        if kind not in KINDS:
            raise AdapterError(
                f"PEFT folders of type {kind} are not implemented, only {', '.join(sorted(KINDS))}"
            )
        made = KINDS[kind]
        known = {f.name for f in fields(made)} - {"extra"}
        refuse(data)
        given = {k: v for k, v in data.items() if k in known}
        rest = {k: v for k, v in data.items() if k not in known and k not in ("peft_type", "architecture")}
        if given.get("target_parameters") and given.get("target_modules") is None:
            given["target_modules"] = []  # files name the usual modules where those are meant
        return made(**given, extra=rest)

    def to_dict(self) -> dict[str, Any]:
        """The fields as adapter_config.json holds them."""
        found = asdict(self)
        rest = found.pop("extra")
        return {"architecture": "peft", "peft_type": self.peft_type, **rest, **found}


ARCHITECTURES["peft"] = PeftConfig


@dataclass
class TunerConfig(PeftConfig):
    """What the methods that change modules share.

    target_modules: ends of public module names, a regular expression, "all-linear", or None: the usual ones.
    """

    target_modules: Any = None
    exclude_modules: Any = None
    layers_to_transform: Any = None
    layers_pattern: Any = None
    __hash__ = AdapterConfig.__hash__

    def wants(self, path: str) -> bool:
        """Whether a public module path is one that the configuration means."""
        return wanted(self, path)


@peft("LORA")
@dataclass
class LoraConfig(TunerConfig):
    """y + scaling B A x (Hu et al. 2022, arXiv:2106.09685), with DoRA, rsLoRA, patterns and trained biases.

    init_lora_weights: True, False, "gaussian", "pissa", "pissa_niter_N" (Meng et al. 2024, arXiv:2404.02948),
    "olora" or "orthogonal".
    """

    bias_key: ClassVar[str] = "lora_only"
    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    use_rslora: bool = False
    init_lora_weights: Any = True
    rank_pattern: Any = field(default_factory=dict)
    alpha_pattern: Any = field(default_factory=dict)
    trainable_token_indices: Any = None
    use_dora: bool = False
    lora_bias: bool = False
    target_parameters: list[str] | None = None
    # See _IDLE.
    corda_config: Any = None
    ensure_weight_tying: bool = False
    eva_config: Any = None
    loftq_config: Any = field(default_factory=dict)
    lora_ga_config: Any = None
    megatron_config: Any = None
    megatron_core: str | None = "megatron.core"
    qalora_group_size: int = 16
    runtime_config: Any = field(default=None, repr=False)
    # See _REFUSED.
    alora_invocation_tokens: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    layer_replication: Any = None
    monteclora_config: Any = None
    use_bdlora: Any = None
    use_qalora: bool = False
    velora_config: Any = None
    __hash__ = AdapterConfig.__hash__

    def __post_init__(self) -> None:
        refuse({name: getattr(self, name) for name in _REFUSED})

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        # Files name what has no effect here only where it is set; runtime_config is never in them.
        plain = {f.name: f.default for f in fields(LoraConfig) if f.name in (*_IDLE, *_REFUSED)}
        gone = [k for k, default in plain.items() if found[k] == default or not found[k]]
        return {k: v for k, v in found.items() if k not in (*gone, "runtime_config")}


@peft("ADALORA")
@dataclass
class AdaLoraConfig(LoraConfig):
    """B E A with ranks that move to where they matter in training (Zhang et al. 2023, arXiv:2303.10512)."""

    rank_pattern: Any = None
    target_r: int = 8
    init_r: int = 12
    tinit: int = 0
    tfinal: int = 0
    deltaT: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orth_reg_weight: float = 0.5
    total_step: int | None = None
    __hash__ = AdapterConfig.__hash__


@peft("IA3")
@dataclass
class IA3Config(TunerConfig):
    """A learned vector times outputs, or times inputs of `feedforward_modules` (arXiv:2205.05638)."""

    feedforward_modules: Any = None
    fan_in_fan_out: bool = False
    init_ia3_weights: bool = True
    __hash__ = AdapterConfig.__hash__


@peft("VERA")
@dataclass
class VeraConfig(TunerConfig):
    """One random pair for all modules, two learned vectors for each (arXiv:2310.11454)."""

    bias_key: ClassVar[str] = "vera_only"
    r: int = 256
    projection_prng_key: int = 0
    save_projection: bool = True
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    __hash__ = AdapterConfig.__hash__


@dataclass
class LycorisConfig(TunerConfig):
    """What LoHa and LoKr share."""

    r: int = 8
    alpha: int = 8
    rank_pattern: Any = field(default_factory=dict)
    alpha_pattern: Any = field(default_factory=dict)
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    use_effective_conv2d: bool = False
    init_weights: Any = True
    __hash__ = AdapterConfig.__hash__


@peft("LOHA")
@dataclass
class LoHaConfig(LycorisConfig):
    """The elementwise product of two low-rank matrices (Hyeon-Woo et al. 2022, arXiv:2108.06098)."""

    __hash__ = AdapterConfig.__hash__


@peft("LOKR")
@dataclass
class LoKrConfig(LycorisConfig):
    """The Kronecker product of two matrices (Yeh et al. 2023, arXiv:2309.14859)."""

    decompose_both: bool = False
    decompose_factor: int = -1
    rank_dropout_scale: bool = False
    __hash__ = AdapterConfig.__hash__


@peft("OFT")
@dataclass
class OFTConfig(TunerConfig):
    """Rotations of blocks of the input (Qiu et al. 2023, arXiv:2306.07280; Cayley-Neumann: 2506.19847)."""

    bias_key: ClassVar[str] = "oft_only"
    r: int = 0
    oft_block_size: int = 32
    module_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    coft: bool = False
    eps: float = 6e-5
    block_share: bool = False
    use_cayley_neumann: bool = True
    num_cayley_neumann_terms: int = 5
    __hash__ = AdapterConfig.__hash__


@peft("BOFT")
@dataclass
class BOFTConfig(TunerConfig):
    """A butterfly of block rotations of the input, and a scale (Liu et al. 2024, arXiv:2311.06243)."""

    bias_key: ClassVar[str] = "boft_only"
    boft_block_size: int = 4
    boft_block_num: int = 0
    boft_n_butterfly_factor: int = 1
    boft_dropout: float = 0.0
    fan_in_fan_out: bool = False
    bias: str = "none"
    init_weights: bool = True
    __hash__ = AdapterConfig.__hash__


@peft("HRA")
@dataclass
class HRAConfig(TunerConfig):
    """A chain of Householder reflections of the input (Yuan et al. 2024, arXiv:2405.17484)."""

    bias_key: ClassVar[str] = "hra_only"
    r: int = 8
    apply_GS: bool = False
    init_weights: bool = True
    bias: str = "none"
    __hash__ = AdapterConfig.__hash__


@peft("FOURIERFT")
@dataclass
class FourierFTConfig(TunerConfig):
    """A few learned entries of the change's spectrum (Gao et al. 2024, arXiv:2405.03003)."""

    bias_key: ClassVar[str] = "fourier_only"
    n_frequency: int = 1000
    scaling: float = 150.0
    random_loc_seed: int = 777
    fan_in_fan_out: bool = False
    bias: str = "none"
    n_frequency_pattern: Any = field(default_factory=dict)
    init_weights: bool = False
    __hash__ = AdapterConfig.__hash__


@peft("LN_TUNING")
@dataclass
class LNTuningConfig(TunerConfig):
    """Trained copies of norms (Zhao et al. 2023, arXiv:2312.11420)."""

    __hash__ = AdapterConfig.__hash__


@peft("TRAINABLE_TOKENS")
@dataclass
class TrainableTokensConfig(TunerConfig):
    """Trained rows of the token table, also where the output matrix is tied to it."""

    token_indices: list[int] = field(default_factory=list)
    init_weights: bool = True
    __hash__ = AdapterConfig.__hash__


@dataclass
class PromptLearningConfig(PeftConfig):
    """What the methods with virtual tokens share; the sizes are read off the model where they are None."""

    num_virtual_tokens: int | None = None
    token_dim: int | None = None
    num_transformer_submodules: int | None = None
    num_attention_heads: int | None = None
    num_layers: int | None = None
    __hash__ = AdapterConfig.__hash__


@peft("PROMPT_TUNING")
@dataclass
class PromptTuningConfig(PromptLearningConfig):
    """Learned vectors ahead of the tokens (Lester et al. 2021, arXiv:2104.08691)."""

    prompt_tuning_init: str = "RANDOM"
    prompt_tuning_init_text: str | None = None
    tokenizer_name_or_path: str | None = None
    tokenizer_kwargs: Any = None
    __hash__ = AdapterConfig.__hash__


@peft("P_TUNING")
@dataclass
class PromptEncoderConfig(PromptLearningConfig):
    """Learned vectors ahead of the tokens, made by a small network while training (arXiv:2103.10385)."""

    encoder_reparameterization_type: str = "MLP"
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    __hash__ = AdapterConfig.__hash__


@peft("PREFIX_TUNING")
@dataclass
class PrefixTuningConfig(PromptLearningConfig):
    """Learned keys and values ahead of those of each layer (Li & Liang 2021, arXiv:2101.00190)."""

    encoder_hidden_size: int | None = None
    prefix_projection: bool = False
    init_weights: Any = None
    __hash__ = AdapterConfig.__hash__


def wanted(config: Any, path: str) -> bool:
    """Whether PEFT's rules for module names choose a public path."""
    out = config.exclude_modules
    if out and (re.fullmatch(out, path) if isinstance(out, str) else ends(path, out)):
        return False
    if any(re.match(rf"(^|.*\.){m}($|\..*)", path) for m in config.modules_to_save or ()):
        return False
    names = config.target_modules
    if names is None:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    if path in names:
        return True
    return ends(path, names) and _of_layers(config, path)


def ends(path: str, names: Any) -> bool:
    """Whether a path is one of these names or ends with one behind a dot."""
    return path in names or any(path.endswith(f".{name}") for name in names)


def _of_layers(config: Any, path: str) -> bool:
    layers, patterns = config.layers_to_transform, config.layers_pattern
    if layers is None or layers == []:
        return True
    patterns = [patterns] if isinstance(patterns, str) else patterns or [r"[^.]*"]
    for pattern in patterns:
        found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path)
        if found:
            return int(found[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def by_pattern(patterns: Any, path: str, default: Any) -> Any:
    """The value that the first fitting pattern gives a path, or the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def config_class(kind: str) -> type[PeftConfig]:
    """The class of a `peft_type`; AdapterError with the nearest names."""
    if kind not in KINDS:
        raise AdapterError(f"there is no PEFT type {kind!r}.{nearest(kind, KINDS)}")
    return KINDS[kind]


def required(config: PeftConfig, name: str) -> Any:
    """A field that must be set."""
    value = getattr(config, name)
    if value is None or value is MISSING:
        raise AdapterError(f"{type(config).__name__} needs {name}")
    return value
