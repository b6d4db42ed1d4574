"""The public settings of quantisation, with the fields, defaults and checks of Transformers 4.50."""

import copy
import inspect
import json
from typing import Any, ClassVar

import torch

from phyla.errors import ConfigError, nearest

__all__ = [
    "AwqConfig", "BitsAndBytesConfig", "CompressedTensorsConfig", "FbgemmFp8Config", "FineGrainedFP8Config",
    "GPTQConfig", "HqqConfig", "Mxfp4Config", "QuantoConfig", "TorchAoConfig",
]  # fmt: skip


class QuantizationConfig:
    """Base of all settings: plain fields that go into `quantization_config` of config.json and back."""

    quant_method: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain data, with the method."""
        fields = {k: _plain(v) for k, v in self.__dict__.items() if not k.startswith("_")}
        return {"quant_method": self.quant_method, **fields}

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        default = type(self)(**self._necessary()).to_dict()
        return {k: v for k, v in self.to_dict().items() if k not in default or default[k] != v}

    def _necessary(self) -> dict[str, Any]:
        return {}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The fields as JSON."""
        data = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any], **changes: Any) -> Any:
        """From the object of a config.json; fields that the class does not know are kept."""
        data = {k.removeprefix("_"): v for k, v in data.items() if k != "quant_method"} | changes
        asked = inspect.signature(cls.__init__).parameters.values()
        needed = [p.name for p in asked if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        if lacks := [name for name in needed[1:] if name not in data]:
            raise ConfigError(
                f"quantization_config of {cls.__name__} must say {', '.join(lacks)}, but does not"
            )
        return cls(**data)

    def update(self, **fields: Any) -> dict[str, Any]:
        """Set known fields; those that are not known come back."""
        known = {k: v for k, v in fields.items() if hasattr(self, k)}
        for name, value in known.items():
            setattr(self, name, value)
        return {k: v for k, v in fields.items() if k not in known}

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2, sort_keys=True)}\n"

    def _take(self, values: dict[str, Any]) -> None:
        """Keep the arguments of `__init__`, unknown ones as they are."""
        rest = values.pop("rest", {})
        values = {k: v for k, v in values.items() if k not in ("self", "__class__")}
        self.__dict__.update({**rest, **values})

    def _demand(self, holds: bool, field: str, text: str) -> None:
        if not holds:
            raise ConfigError(
                f"{type(self).__name__}.{field} must be {text}, but is {getattr(self, field)!r}"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return list(value) if isinstance(value, tuple) else copy.deepcopy(value)


class BitsAndBytesConfig(QuantizationConfig):
    """NF4, FP4 or LLM.int8() weights; bnb_4bit_compute_dtype is the dtype of products, None for the input's.

    The threshold of LLM.int8() and the storage dtype are kept for the public tools: here inputs stay as they
    are, and codes are bytes.
    """

    quant_method = "bitsandbytes"

    def __init__(
        self, load_in_8bit: bool = False, load_in_4bit: bool = False, llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None, llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False, bnb_4bit_compute_dtype: Any = None,
        bnb_4bit_quant_type: str = "fp4", bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: Any = None, **rest: Any,
    ) -> None:  # fmt: skip
        self._take(locals())
        if load_in_4bit and load_in_8bit:
            raise ConfigError("BitsAndBytesConfig takes load_in_4bit or load_in_8bit, but got both")
        for field in ("load_in_8bit", "load_in_4bit", "bnb_4bit_use_double_quant"):
            self._demand(isinstance(getattr(self, field), bool), field, "True or False")
        self._demand(bnb_4bit_quant_type in ("fp4", "nf4"), "bnb_4bit_quant_type", "fp4 or nf4")
        skipped = llm_int8_skip_modules
        self._demand(skipped is None or isinstance(skipped, list), "llm_int8_skip_modules", "a list of names")
        for field, default in (
            ("bnb_4bit_compute_dtype", torch.float32),
            ("bnb_4bit_quant_storage", torch.uint8),
        ):
            value = getattr(self, field)
            value = getattr(torch, value.removeprefix("torch."), value) if isinstance(value, str) else value
            setattr(self, field, default if value is None else value)
            self._demand(isinstance(getattr(self, field), torch.dtype), field, "a torch dtype or its name")
        # The public default computes in float32 whatever comes in; without a wish products follow the input.
        self._computes_in = None if bnb_4bit_compute_dtype is None else self.bnb_4bit_compute_dtype

    def is_quantizable(self) -> bool:
        """Whether the settings ask for quantised weights."""
        return bool(self.load_in_8bit or self.load_in_4bit)

    def quantization_method(self) -> str | None:
        """llm_int8, fp4, nf4 or None."""
        if self.load_in_8bit:
            return "llm_int8"
        return self.bnb_4bit_quant_type if self.load_in_4bit else None

    load_in_8bit: bool
    load_in_4bit: bool
    bnb_4bit_quant_type: str
    bnb_4bit_compute_dtype: Any
    bnb_4bit_quant_storage: Any


class GPTQConfig(QuantizationConfig):
    """GPTQ weights of 2, 3, 4 or 8 bits, which are read, not made: that needs examples."""

    quant_method = "gptq"
    bits: int

    def __init__(
        self, bits: int, tokenizer: Any = None, dataset: Any = None, group_size: int = 128,
        damp_percent: float = 0.1, desc_act: bool = False, sym: bool = True, true_sequential: bool = True,
        checkpoint_format: str = "gptq", meta: dict[str, Any] | None = None, backend: str | None = None,
        use_cuda_fp16: bool = False, model_seqlen: int | None = None,
        block_name_to_quantize: str | None = None,
        module_name_preceding_first_block: list[str] | None = None, batch_size: int = 1,
        pad_token_id: int | None = None, use_exllama: bool | None = None, max_input_length: int | None = None,
        exllama_config: dict[str, Any] | None = None, cache_block_outputs: bool = True,
        modules_in_block_to_quantize: list[list[str]] | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        self._take(locals())
        self._demand(bits in (2, 3, 4, 8), "bits", "2, 3, 4 or 8")
        self._demand(group_size == -1 or group_size > 0, "group_size", "above 0, or -1")
        self._demand(0 < damp_percent < 1, "damp_percent", "between 0 and 1")
        self.checkpoint_format = checkpoint_format.lower()

    def _necessary(self) -> dict[str, Any]:
        return {"bits": self.bits}

    def to_dict(self) -> dict[str, Any]:
        """All fields but the tokenizer object."""
        data = {k: v for k, v in self.__dict__.items() if k != "tokenizer"}
        name = self.tokenizer if isinstance(self.tokenizer, str) else None
        return {"quant_method": self.quant_method, **copy.deepcopy(data), "tokenizer": name}

    tokenizer: Any


class AwqConfig(QuantizationConfig):
    """AWQ weights of 4 bits, which are read, not made."""

    quant_method = "awq"

    def __init__(
        self, bits: int = 4, group_size: int = 128, zero_point: bool = True, version: str = "gemm",
        backend: str = "autoawq", do_fuse: bool | None = None, fuse_max_seq_len: int | None = None,
        modules_to_fuse: dict | None = None, modules_to_not_convert: list[str] | None = None,
        exllama_config: dict[str, int] | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        self._take(locals())
        self.version = str(getattr(version, "value", version)).lower()
        self._demand(
            self.version in ("gemm", "gemv", "gemv_fast", "marlin", "exllama", "ipex"),
            "version",
            "gemm, gemv, gemv_fast, marlin, exllama or ipex",
        )
        self._demand(backend in ("autoawq", "llm-awq"), "backend", "autoawq or llm-awq")


class CompressedTensorsConfig(QuantizationConfig):
    """compressed-tensors: config_groups say targets, bits, groups and symmetry of weights."""

    quant_method = "compressed-tensors"

    def __init__(
        self, config_groups: dict[str, Any] | None = None, format: str = "dense",
        quantization_status: str = "initialized", kv_cache_scheme: Any = None,
        global_compression_ratio: float | None = None, ignore: list[str] | None = None,
        sparsity_config: dict[str, Any] | None = None, quant_method: str = "compressed-tensors",
        run_compressed: bool = True, **rest: Any,
    ) -> None:  # fmt: skip
        values = locals()
        values.pop("quant_method")
        self._take(values)
        groups = config_groups
        self._demand(groups is None or isinstance(groups, dict), "config_groups", "an object of groups")


class FineGrainedFP8Config(QuantizationConfig):
    """Weights of eight-bit floats with one scale for each block; inputs stay as they are."""

    quant_method = "fp8"

    def __init__(
        self, activation_scheme: str = "dynamic", weight_block_size: tuple[int, int] | None = (128, 128),
        modules_to_not_convert: list[str] | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        self._take(locals())
        self.activation_scheme = activation_scheme.lower()
        self._demand(
            self.activation_scheme in ("dynamic", "static"), "activation_scheme", "dynamic or static"
        )
        sizes = weight_block_size
        fits = sizes is None or (len(sizes) == 2 and all(isinstance(n, int) and n > 0 for n in sizes))
        self._demand(fits, "weight_block_size", "two whole numbers above 0")


class FbgemmFp8Config(QuantizationConfig):
    """Weights of eight-bit floats with one scale for each output; inputs stay as they are."""

    quant_method = "fbgemm_fp8"

    def __init__(
        self,
        activation_scale_ub: float = 1200.0,
        modules_to_not_convert: list[str] | None = None,
        **rest: Any,
    ) -> None:
        self._take(locals())


class Mxfp4Config(QuantizationConfig):
    """MXFP4 experts, which are read, not made."""

    quant_method = "mxfp4"

    def __init__(
        self, modules_to_not_convert: list[str] | None = None, dequantize: bool = False, **rest: Any
    ) -> None:
        self._take(locals())


class QuantoConfig(QuantizationConfig):
    """Weights of int8, int4, int2 or float8, rounded to nearest."""

    quant_method = "quanto"

    def __init__(
        self, weights: str = "int8", activations: str | None = None,
        modules_to_not_convert: list[str] | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        self._take(locals())
        self._demand(weights in ("float8", "int8", "int4", "int2"), "weights", "float8, int8, int4 or int2")
        self._demand(activations in (None, "int8", "float8"), "activations", "None, int8 or float8")


class HqqConfig(QuantizationConfig):
    """Weights of 1 to 8 bits with a scale and a zero, searched for, of each group; axis 0: of outputs."""

    quant_method = "hqq"

    def __init__(
        self, nbits: int = 4, group_size: int | None = 64, view_as_float: bool = False,
        axis: int | None = None, dynamic_config: dict | None = None, skip_modules: list[str] | None = None,
        **rest: Any,
    ) -> None:  # fmt: skip
        self.skip_modules = ["lm_head"] if skip_modules is None else skip_modules
        given = rest.pop("quant_config", None)
        if dynamic_config:
            raise ConfigError("HqqConfig.dynamic_config must be None: all layers get the same settings")
        if nbits not in (8, 4, 3, 2, 1):
            raise ConfigError(f"HqqConfig.nbits must be 8, 4, 3, 2 or 1, but is {nbits!r}")
        if axis not in (None, 0, 1):
            raise ConfigError(f"HqqConfig.axis must be 0 or 1, but is {axis!r}")
        settings = {
            "nbits": nbits, "channel_wise": True, "group_size": group_size, "optimize": True,
            "round_zero": nbits == 4, "axis": 1 if axis is None else axis, "view_as_float": view_as_float,
        }  # fmt: skip
        made = {"weight_quant_params": settings, "scale_quant_params": None, "zero_quant_params": None}
        self.quant_config = given if given is not None else {**made, "offload_meta": False}


class TorchAoConfig(QuantizationConfig):
    """Weights as torchao's int4_weight_only (groups of group_size), int8_weight_only or float8_weight_only.

    The types that quantise inputs as well (int8_dynamic_activation_int8_weight, ...) do so to weights only.
    """

    quant_method = "torchao"
    _OTHERS = ("include_input_output_embeddings", "untie_embedding_weights", "include_embedding")

    def __init__(
        self,
        quant_type: str | dict[str, Any],
        modules_to_not_convert: list[str] | None = None,
        **rest: Any,
    ) -> None:
        self.quant_type, self.modules_to_not_convert = quant_type, modules_to_not_convert
        self.__dict__.update({name: rest.pop(name) for name in self._OTHERS if name in rest})
        self.quant_type_kwargs = rest.get("quant_type_kwargs", rest)
        self._demand(isinstance(quant_type, (str, dict)), "quant_type", "a name, or settings by class")

    def _necessary(self) -> dict[str, Any]:
        return {"quant_type": self.quant_type}


CLASSES: dict[str, type[QuantizationConfig]] = {
    kind.quant_method: kind for kind in QuantizationConfig.__subclasses__()
}


def config_of(value: Any) -> QuantizationConfig:
    """The settings of a `quantization_config` argument or of a config.json; ConfigError for others."""
    if isinstance(value, QuantizationConfig):
        return value
    if not isinstance(value, dict):
        if not callable(getattr(value, "to_dict", None)):
            raise ConfigError(f"quantization_config must be settings or an object of them, but is {value!r}")
        value = value.to_dict()
    method = str(getattr(value.get("quant_method"), "value", value.get("quant_method") or ""))
    if not method and (value.get("load_in_4bit") or value.get("load_in_8bit")):
        method = "bitsandbytes"
    if method not in CLASSES:
        raise ConfigError(
            f"quantization_config.quant_method must be one of {', '.join(CLASSES)}, but is {method!r}."
            + nearest(method, CLASSES)
        )
    return CLASSES[method].from_dict(value)
