"""What a transcriber is told before it listens: language, task, time stamps (Radford et al., figure 1)."""

from typing import Any

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError, nearest
from phyla.generation.config import GenerationConfig

# Code and English name of the languages, then other names of some of them.
_TABLE = """
en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese
tr=turkish pl=polish ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi
fi=finnish vi=vietnamese he=hebrew uk=ukrainian el=greek ms=malay cs=czech ro=romanian da=danish
hu=hungarian ta=tamil no=norwegian th=thai ur=urdu hr=croatian bg=bulgarian lt=lithuanian la=latin
mi=maori ml=malayalam cy=welsh sk=slovak te=telugu fa=persian lv=latvian bn=bengali sr=serbian
az=azerbaijani sl=slovenian kn=kannada et=estonian mk=macedonian br=breton eu=basque is=icelandic
hy=armenian ne=nepali mn=mongolian bs=bosnian kk=kazakh sq=albanian sw=swahili gl=galician mr=marathi
pa=punjabi si=sinhala km=khmer sn=shona yo=yoruba so=somali af=afrikaans oc=occitan ka=georgian
be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic yi=yiddish lo=lao uz=uzbek fo=faroese
ht=haitian_creole ps=pashto tk=turkmen nn=nynorsk mt=maltese sa=sanskrit lb=luxembourgish my=myanmar
bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian ln=lingala ha=hausa ba=bashkir
jw=javanese su=sundanese yue=cantonese
"""
_OTHER = """
my=burmese ca=valencian nl=flemish ht=haitian lb=letzeburgesch ps=pushto pa=panjabi ro=moldavian
ro=moldovan si=sinhalese es=castilian zh=mandarin
"""
CODES = {
    line.partition("=")[2].replace("_", " "): line.partition("=")[0] for line in (_TABLE + _OTHER).split()
}
TASKS = ("translate", "transcribe")


def language_id(language: str, config: GenerationConfig) -> int:
    """The token of a language given as `en`, `english` or `<|en|>`."""
    known, name = config.lang_to_id, language.lower()
    if name not in known:
        code = CODES.get(name, name)
        if code not in CODES.values():
            raise ArgumentError(
                f"there is no language {language!r}.{nearest(name, [*CODES, *CODES.values()])}"
            )
        name = f"<|{code}|>"
    if name not in known:
        raise ArgumentError(f"this model has no token for the language {name}; it has {sorted(known)}")
    return known[name]


def spoken_settings(
    config: GenerationConfig, language: Any, task: str | None, multilingual: bool | None
) -> None:
    """Put language and task into `config`; ArgumentError where the model has no tokens for them."""
    if multilingual is not None:
        _needs(config, "is_multilingual", "is_multilingual")
        config.is_multilingual = multilingual
    if not getattr(config, "is_multilingual", True) and (task is not None or language is not None):
        raise ArgumentError(
            "language and task are for multilingual models, but this one knows English alone; pass "
            "is_multilingual=True if that is wrong"
        )
    for name, value, table in (("language", language, "lang_to_id"), ("task", task, "task_to_id")):
        if value is not None:
            _needs(config, table, name)
            setattr(config, name, value)
    task = getattr(config, "task", None)
    if task is not None and task not in TASKS:
        raise ArgumentError(f"task must be one of {TASKS}, but is {task!r}")


def _needs(config: GenerationConfig, field: str, argument: str) -> None:
    if not hasattr(config, field):
        raise ArgumentError(
            f"{argument} needs {field} in the model's generation_config.json, which has none; take it from a "
            "newer version of the checkpoint"
        )


def opening(model: Any, config: GenerationConfig, rows: int, heard: dict[str, Any]) -> Tensor:
    """The first decoder ids (rows, n): start, language, task, no time stamps. A language left open is
    detected from what was `heard` (the model's inputs).
    """
    task, language = getattr(config, "task", None), getattr(config, "language", None)
    forced = config.forced_decoder_ids
    if forced is None:
        forced = getattr(model.config, "forced_decoder_ids", None)
    given = [config.decoder_start_token_id, *_in_order(forced if task is None and language is None else None)]
    open_language = len(given) == 1 or given[1] is None
    languages: list[int] | None = None
    if isinstance(language, (list, tuple)):
        if len(language) != rows or any(entry is None for entry in language):
            raise ArgumentError(f"language must be one name or {rows} names, but is {language!r}")
        languages = [language_id(entry, config) for entry in language]
    elif language is not None:
        languages = [language_id(language, config)] * rows
    elif hasattr(config, "lang_to_id") and open_language:
        languages = detect_language(model, **heard, generation_config=config).tolist()
    starts = [_start(list(given), i, languages, config) for i in range(rows)]
    return torch.tensor(starts, device=model.device)


def _start(ids: list, row: int, languages: list[int] | None, config: GenerationConfig) -> list[int]:
    tasks = getattr(config, "task_to_id", {})
    task = getattr(config, "task", None)
    if languages is not None:
        ids[1:2] = [languages[row]]
    if task is not None:
        ids = [tasks[task] if i in tasks.values() else i for i in ids]
        ids += [] if tasks[task] in ids else [tasks[task]]
    elif getattr(config, "language", None) is not None and tasks and not set(ids) & set(tasks.values()):
        ids.append(tasks["transcribe"])
    silent = getattr(config, "no_timestamps_token_id", None)
    if silent is not None:
        if config.return_timestamps and ids[-1] == silent:
            ids.pop()
        elif not config.return_timestamps and ids[-1] != silent:
            ids.append(silent)
    return [i for i in ids if i is not None]


def _in_order(forced: Any) -> list:
    """The ids of pairs (place, id) at places 1, 2, ..."""
    pairs = list(forced or [])
    if not pairs or pairs[0][0] != 1:
        return []
    if [place for place, _ in pairs] != list(range(1, len(pairs) + 1)):
        raise GenerationError(f"forced_decoder_ids must be for places 1, 2, ..., but are {pairs}")
    return [token for _, token in pairs]


@torch.no_grad()
def detect_language(
    model: Any,
    input_features: Tensor | None = None,
    encoder_outputs: Any = None,
    generation_config: GenerationConfig | None = None,
    num_segment_frames: int | None = None,
) -> Tensor:
    """The likeliest language token (rows) of sounds: input_features (rows, M, T) or encoder_outputs."""
    if (input_features is None) == (encoder_outputs is None):
        raise ArgumentError("pass either input_features or encoder_outputs, and not both")
    config = generation_config or model.generation_config
    if input_features is not None:
        frames = num_segment_frames or window_frames(model)
        features = input_features[..., :frames]
        heard = {"input_features": nn.functional.pad(features, (0, frames - features.shape[-1]))}
    else:
        heard = {"encoder_outputs": encoder_outputs}
    states = heard.get("input_features", encoder_outputs)
    rows = len(states if isinstance(states, Tensor) else states[0])
    start = torch.full((rows, 1), config.decoder_start_token_id, device=model.device)
    logits = model(**heard, decoder_input_ids=start, use_cache=False).logits[:, -1]
    known = torch.tensor(sorted(set(config.lang_to_id.values())), device=logits.device)
    return known[logits[:, known].argmax(-1)]


def window_frames(model: Any) -> int:
    """Frames that the encoder hears at once."""
    return model.config.max_source_positions * input_stride(model)


def input_stride(model: Any) -> int:
    """Frames of input for each of the encoder's states."""
    return model.input_stride
