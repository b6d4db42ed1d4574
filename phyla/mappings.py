"""The public tables of models: configuration class -> model class for each Auto class, a row at a time."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from phyla import auto
from phyla.errors import nearest
from phyla.registry import config_class, model_class, table

# Where the table's name does not follow from that of the Auto class.
_NAMES = {
    "AutoBackbone": "MODEL_FOR_BACKBONE_MAPPING",
    "AutoModel": "MODEL_MAPPING",
    "AutoModelForAudioXVector": "MODEL_FOR_AUDIO_XVECTOR_MAPPING",
    "AutoModelForCTC": "MODEL_FOR_CTC_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForPreTraining": "MODEL_FOR_PRETRAINING_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForSpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",
    "AutoModelForVision2Seq": "MODEL_FOR_VISION_2_SEQ_MAPPING",
    "AutoModelWithLMHead": "MODEL_WITH_LM_HEAD_MAPPING",
}


class ConfigMapping(Mapping[str, Any]):
    """model_type -> configuration class, of every family there is."""

    def __getitem__(self, model_type: str) -> Any:
        if model_type not in table():
            raise KeyError(f"no family {model_type!r}.{nearest(str(model_type), table())}")
        return config_class(model_type)

    def __iter__(self) -> Iterator[str]:
        return iter(table())

    def __len__(self) -> int:
        return len(table())


class ModelMapping(Mapping[Any, Any]):
    """Configuration class -> model class of the first of the tasks that its family serves."""

    def __init__(self, *tasks: str) -> None:
        self.tasks = tasks

    def _served(self) -> dict[str, str]:
        """model_type -> the task that a class of it serves."""
        found = {}
        for model_type, row in table().items():
            task = next((t for t in self.tasks if row.serving(t)), None)
            if task is not None:
                found[model_type] = task
        return found

    def __getitem__(self, config: Any) -> Any:
        model_type, served = getattr(config, "model_type", None), self._served()
        if model_type not in served or config_class(str(model_type)) is not config:
            raise KeyError(f"no class of {config!r} is for {self.tasks[0]}")
        return model_class(model_type, served[model_type])

    def __iter__(self) -> Iterator[Any]:
        return map(config_class, self._served())

    def __len__(self) -> int:
        return len(self._served())


def _named(kind: str) -> str:
    """MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING for AutoModelForImageClassification."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.removeprefix("AutoModelFor")).upper()
    return _NAMES.get(kind, f"MODEL_FOR_{words}_MAPPING")


CONFIG_MAPPING = ConfigMapping()
_MAPPINGS = {
    "MODEL_FOR_TIME_SERIES_CLASSIFICATION_MAPPING": ModelMapping("time-series-classification"),
    "MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING": ModelMapping("time-series-regression"),
} | {
    _named(name): ModelMapping(*kind.tasks)
    for name, kind in vars(auto).items()
    if isinstance(kind, type) and issubclass(kind, auto._AutoModel) and kind is not auto._AutoModel
}


def __getattr__(name: str) -> Any:
    if name not in _MAPPINGS:
        raise AttributeError(f"phyla.mappings has no {name!r}.{nearest(name, _MAPPINGS)}")
    return _MAPPINGS[name]
