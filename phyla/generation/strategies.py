"""The strategies beside greedy decoding, sampling and plain beams: what each needs, and how it is started."""

from typing import Any

from torch import Tensor, nn

from phyla.checkpoints.ahead import heads_ahead
from phyla.errors import GenerationError
from phyla.generation.ahead import HeadsDraft
from phyla.generation.blanks import BlanksDraft
from phyla.generation.config import GenerationConfig
from phyla.generation.contrastive import contrastive_search
from phyla.generation.dola import Contrasted, LayerForward, layer_contrast
from phyla.generation.drafts import (
    AdapterDraft,
    Draft,
    ModelDraft,
    PromptLookup,
    adapters_with,
    check_assistant,
    early_exit,
    explicit,
)
from phyla.generation.forward import Forward
from phyla.generation.modes import GenerationMode
from phyla.generation.one_place import OnePlaceDraft, is_one_place
from phyla.generation.plan import context_length
from phyla.generation.prompt import Prompt, accepted, read_prompt, vocabulary_size
from phyla.generation.search import decode
from phyla.generation.speculation import speculate
from phyla.generation.task import Steps, Task
from phyla.generation.told import ToldDraft
from phyla.generation.translate import MappedDraft, RetoldDraft


class Sources:
    """What a draft may be made of: the call's inputs by name, its prompt, its tokenizers, what it sets."""

    def __init__(
        self, assistant: Any, inputs: Any, named: dict[str, Any], prompt: Prompt, tokenizer: Any,
        assistant_tokenizer: Any, given: set[str], adapter: str | None = None, told: Any = None,
    ):  # fmt: skip
        self.assistant, self.inputs, self.named, self.prompt = assistant, inputs, named, prompt
        self.tokenizer, self.assistant_tokenizer, self.given = tokenizer, assistant_tokenizer, given
        self.adapter, self.told = adapter, told


def needed_states(mode: GenerationMode) -> bool:
    """Whether a strategy looks at hidden states."""
    return mode in (GenerationMode.CONTRASTIVE_SEARCH, GenerationMode.DOLA_GENERATION)


def forward_class(mode: GenerationMode) -> type[Forward]:
    """How a strategy feeds the model."""
    return LayerForward if mode == GenerationMode.DOLA_GENERATION else Forward


def prepare(
    mode: GenerationMode, forward: Forward, task: Task, config: GenerationConfig, sources: Sources
) -> Steps[int]:
    """The strategy, ready to fill `task.ids` step by step; it returns the length reached."""
    if mode == GenerationMode.CONTRASTIVE_SEARCH:
        alpha, top_k = config.penalty_alpha, config.top_k
        return contrastive_search(forward, task, alpha, top_k, bool(config.low_memory))
    if mode == GenerationMode.ASSISTED_GENERATION:
        if forward.cache is None:
            raise GenerationError("a draft needs use_cache=True and a model with a cache")
        draft = make_draft(forward, task, config, sources)
        contexts = [context_length(m.config) for m in (forward.model, sources.assistant) if m is not None]
        reach = sources.prompt.positions + task.limit
        room = min((max(n - reach, 0) for n in contexts if n is not None), default=None)

        def run() -> Steps[int]:
            length = yield from speculate(forward, task, draft, sources.prompt.cache is None, room)
            keep_schedule(draft, sources.assistant, forward.model)
            return length

        return run()
    if mode == GenerationMode.DOLA_GENERATION:
        assert isinstance(forward, LayerForward)
        contrast = layer_contrast(forward, forward.model.config, config.dola_layers)
        task.processors = Contrasted(contrast, task.processors)
    return decode(forward, task)


def keep_schedule(draft: Draft, assistant: Any, model: nn.Module) -> None:
    """Let later calls with this draft model go on with what was learnt of it."""
    own = getattr(assistant, "generation_config", None)
    schedules = getattr(draft, "schedules", None)
    if own is None or schedules is None or assistant is model:
        return
    if schedules.first.kind == "heuristic":
        own.num_assistant_tokens = max(1, int(schedules.first.count))
    certainty = getattr(draft, "certainty", None)
    best = None if certainty is None or not schedules.first.threshold else certainty.threshold()
    if best is not None:
        own.assistant_confidence_threshold = best


def make_draft(forward: Forward, task: Task, config: GenerationConfig, sources: Sources) -> Draft:
    """The draft that the settings name."""
    model, assistant, prompt = forward.model, sources.assistant, sources.prompt
    vocabulary = _scored_words(model)
    task.ensemble = config.assistant_ensemble_weight
    if task.ensemble is not None and config.prompt_lookup_num_tokens is not None:
        raise GenerationError("assistant_ensemble_weight needs a draft model's scores: a lookup has none")
    told = sources.told
    if told is None and hasattr(model, "_get_candidate_generator"):  # a class of the caller's own
        told = _told_by(model, task, config, sources)
    if told is not None:
        return ToldDraft(told, task, _begins(task, prompt), vocabulary)
    if config.assistant_early_exit is not None:
        assistant = early_exit(model, config.assistant_early_exit)
    elif config.prompt_lookup_num_tokens is not None:
        return PromptLookup(
            config.prompt_lookup_num_tokens, config.max_matching_ngram_size, task.pad_id,
            _read_by_encoder(task, prompt), _begins(task, prompt),
        )  # fmt: skip
    elif config.use_mtp:
        return HeadsDraft.beside(forward, heads_ahead(model), task, vocabulary)
    elif is_one_place(assistant):
        schedule = explicit(assistant, config, sources.given)
        return OnePlaceDraft.beside(forward, assistant, task, schedule, vocabulary)
    elif config.speculation_type == "dflash":
        return BlanksDraft.beside(forward, assistant, task, vocabulary)
    else:
        translated = sources.assistant_tokenizer is not None
        check_assistant(model, assistant, translated)
        if translated:
            return _translated(model, task, config, sources, vocabulary)
    schedule = explicit(assistant, config, sources.given)
    reach = prompt.positions + task.limit
    read = prompt
    if assistant is sources.assistant:
        read = _own_prompt(model, assistant, sources, config)
    draft = Forward(assistant, read, max(reach, read.positions + task.limit), True, task.pad_id)
    made = ModelDraft(draft, task, schedule, vocabulary, prompt.cache is None)
    return (
        made
        if sources.adapter is None
        else AdapterDraft(made, adapters_with(assistant, sources.adapter), sources.adapter)
    )


def _told_by(model: Any, task: Task, config: GenerationConfig, sources: Sources) -> Any:
    """What a model's own method of the public name gives."""
    return model._get_candidate_generator(
        generation_config=config, input_ids=task.given, inputs_tensor=sources.inputs,
        assistant_model=sources.assistant, logits_processor=task.processors,
        target_tokenizer=sources.tokenizer, assistant_tokenizer=sources.assistant_tokenizer,
        model_kwargs=dict(sources.named),
    )  # fmt: skip


def _read_by_encoder(task: Task, prompt: Prompt) -> Tensor | None:
    """What an encoder has read, (rows, length): copies of it are what a lookup finds there."""
    if "encoder_outputs" not in prompt.steady or prompt.source_ids is None:
        return None
    return prompt.source_ids.repeat_interleave(task.repeats, dim=0)


def _begins(task: Task, prompt: Prompt) -> list[int] | None:
    """Where the text of each row begins: padding is no place to find copies in."""
    if prompt.mask is None or prompt.positions != prompt.ids.shape[1]:
        return None
    return prompt.mask.argmax(1).repeat_interleave(task.repeats).tolist()


def _own_prompt(model: nn.Module, assistant: nn.Module, sources: Sources, config: GenerationConfig) -> Prompt:
    """What the draft reads: the call's inputs that it takes."""
    prompt = sources.prompt
    both = [bool(getattr(m.config, "is_encoder_decoder", False)) for m in (model, assistant)]
    if both == [True, True]:
        named = {k: v for k, v in sources.named.items() if k != "past_key_values"}
        return read_prompt(assistant, sources.inputs, named, config)
    takes = accepted(assistant.forward)
    if both == [True, False]:  # a decoder alone, on the states of the model's encoder
        states = prompt.steady["encoder_outputs"]
        steady = {
            "encoder_outputs": states,
            "encoder_hidden_states": states.last_hidden_state,
            "encoder_attention_mask": prompt.steady.get("attention_mask"),
        }
        steady = {k: v for k, v in steady.items() if v is not None and (takes is None or k in takes)}
        return Prompt(prompt.given, prompt.ids, prompt.mask, prompt.positions, steady=steady)
    if both == [False, True]:
        raise GenerationError("assistant_model must be decoder-only, as the model is")
    first = {k: v for k, v in prompt.first.items() if takes is None or k in takes}
    if "inputs_embeds" in first:
        raise GenerationError("a draft model needs a prompt of token ids: vectors of two models differ")
    return Prompt(prompt.given, prompt.ids, prompt.mask, prompt.positions, first=first)


def _translated(
    model: nn.Module, task: Task, config: GenerationConfig, sources: Sources, vocabulary: int
) -> Draft:
    if sources.tokenizer is None:
        raise GenerationError("assistant_tokenizer needs the model's own: pass tokenizer= as well")
    if getattr(model.config, "is_encoder_decoder", False):
        raise GenerationError("drafts with another tokenizer work for decoder-only models alone")
    schedule = explicit(sources.assistant, config, sources.given)
    tokenizers = (sources.tokenizer, sources.assistant_tokenizer)
    if config.do_sample:
        return MappedDraft(
            sources.assistant, *tokenizers, task, schedule, sources.prompt.mask, vocabulary
        )  # fmt: skip
    return RetoldDraft(sources.assistant, *tokenizers, task, schedule, sources.prompt.mask)


def _scored_words(model: Any) -> int:
    """How many tokens the model scores."""
    out = getattr(getattr(model, "head", None), "out", None)
    size = getattr(out, "out_features", None) or vocabulary_size(model)
    if size is None:
        raise GenerationError(f"a draft needs the size of the vocabulary, which {type(model).__name__} lacks")
    return int(size)
