"""Sources of candidates for loops of one's own: the public generators, over the drafts that `generate` has.

One row each. `get_candidates(ids)` gives the ids (1, length) with candidates behind them, and the candidates'
scores (1, count, vocabulary) where they were drawn; `update_candidate_strategy` is told how many were right.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError
from phyla.generation.config import GenerationConfig
from phyla.generation.drafts import ModelDraft, PromptLookup, early_exit, explicit
from phyla.generation.forward import Forward
from phyla.generation.logits import LogitsProcessorList, id_list
from phyla.generation.plan import end_tokens, pad_token
from phyla.generation.prompt import read_prompt, vocabulary_size
from phyla.generation.rewind import Lanes
from phyla.generation.task import Task
from phyla.generation.translate import MappedDraft, RetoldDraft, shared_words


class CandidateGenerator:
    """Base class of sources of candidates."""

    def get_candidates(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """The ids (1, length) with candidates behind them, and the scores of these or None."""
        raise NotImplementedError(f"{type(self).__name__} must define get_candidates(input_ids)")

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Take note of how many candidates were right; scores (1, candidates + 1, vocabulary)."""
        raise NotImplementedError(f"{type(self).__name__} must define update_candidate_strategy(...)")


class PromptLookupCandidateGenerator(CandidateGenerator):
    """What followed the newest n-gram where the text had it before, up to an end token."""

    def __init__(
        self, eos_token_id: Any = None, num_output_tokens: int = 10,
        max_matching_ngram_size: int | None = None, max_length: int = 20,
    ):  # fmt: skip
        self.lookup = PromptLookup(num_output_tokens, max_matching_ngram_size, 0)
        self.ends = set() if eos_token_id is None else set(id_list(eos_token_id))
        self.num_output_tokens, self.max_length = num_output_tokens, max_length

    def get_candidates(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """As CandidateGenerator; without an earlier n-gram the ids as they are."""
        _one_row(input_ids)
        length = input_ids.shape[1]
        found = self.lookup.propose(input_ids, [length], [True], [self.max_length - length - 1])
        if found is None:
            return input_ids, None
        drafted = found.ids[0].tolist()
        end = next((i for i, token in enumerate(drafted) if token in self.ends), len(drafted))
        return torch.cat([input_ids, found.ids[:, :end]], 1), None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Nothing."""


class AssistedCandidateGenerator(CandidateGenerator):
    """What a smaller model with the same vocabulary writes.

    model_kwargs: the inputs of the call; inputs_tensor: the encoder's, where there is one.
    """

    def __init__(
        self, input_ids: Tensor, assistant_model: nn.Module, generation_config: GenerationConfig,
        model_kwargs: dict[str, Any], inputs_tensor: Tensor | None = None,
        logits_processor: LogitsProcessorList | None = None,
    ):  # fmt: skip
        _one_row(input_ids)
        self.assistant_model, self.generation_config = assistant_model, generation_config
        own = getattr(assistant_model, "generation_config", None) or GenerationConfig()
        self.schedule = explicit(assistant_model, own, ())
        self.task = Task(
            ids=input_ids, given=input_ids, start=input_ids.shape[1], limit=0, repeats=1,
            pad_id=pad_token(generation_config), eos=end_tokens(generation_config, input_ids.device),
            processors=LogitsProcessorList(logits_processor or []),
            do_sample=bool(generation_config.do_sample),
        )  # fmt: skip
        self.draft: Any = self._draft(model_kwargs, inputs_tensor)
        self.drafted = 0

    def _draft(self, kwargs: dict[str, Any], source: Tensor | None) -> Any:
        forward = self._forward(self.assistant_model, self.task.ids, kwargs, source)
        draft = ModelDraft(forward, self.task, self.schedule, _words(self.assistant_model))
        draft.lanes, draft.held = Lanes(forward, False), [0]
        return draft

    def _forward(
        self, model: nn.Module, ids: Tensor, kwargs: dict[str, Any], source: Tensor | None
    ) -> Forward:
        names = ("attention_mask", "encoder_outputs", "decoder_attention_mask", "token_type_ids")
        named = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if getattr(model.config, "is_encoder_decoder", False):
            prompt = read_prompt(model, source, {**named, "decoder_input_ids": ids}, self.generation_config)
        else:
            prompt = read_prompt(model, ids, named, self.generation_config)
        room = self.generation_config.max_new_tokens or self.generation_config.max_length or 20
        return Forward(model, prompt, prompt.positions + room, True, pad_token(self.generation_config))

    @property
    def num_assistant_tokens(self) -> float:
        """How many tokens are drafted at most."""
        return self.draft.schedules.first.count

    def get_candidates(self, input_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """As CandidateGenerator."""
        _one_row(input_ids)
        length, most = input_ids.shape[1], int(self.num_assistant_tokens)
        if self.generation_config.max_new_tokens is None and self.generation_config.max_length:
            most = min(most, self.generation_config.max_length - length - 1)
        found = None
        if most > 0:
            with torch.no_grad():
                found = self.draft.propose(input_ids, [length], [True], [most])
        if found is None:
            return input_ids, None
        self.drafted = found.counts[0]
        chances = None if found.chances is None else found.chances.log()
        return torch.cat([input_ids, found.ids], 1), chances

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Draft more after a success, less after a failure, where the draft's schedule is a heuristic."""
        self.draft.learn([self.drafted], [int(num_matches)], [True])


class EarlyExitCandidateGenerator(AssistedCandidateGenerator):
    """What the first layers of the model itself write: `assistant_early_exit` of them."""

    def __init__(
        self, input_ids: Tensor, assistant_model: nn.Module, generation_config: GenerationConfig,
        model_kwargs: dict[str, Any], inputs_tensor: Tensor | None = None,
        logits_processor: LogitsProcessorList | None = None,
    ):  # fmt: skip
        short = early_exit(assistant_model, generation_config.assistant_early_exit)
        super().__init__(
            input_ids, short, generation_config, model_kwargs, inputs_tensor, logits_processor
        )  # fmt: skip


class AssistedCandidateGeneratorDifferentTokenizers(AssistedCandidateGenerator):
    """What a smaller model with another vocabulary writes, by way of the text."""

    def __init__(
        self, input_ids: Tensor, assistant_model: nn.Module, target_tokenizer: Any, assistant_tokenizer: Any,
        generation_config: GenerationConfig, model_kwargs: dict[str, Any],
        inputs_tensor: Tensor | None = None, logits_processor: LogitsProcessorList | None = None,
    ):  # fmt: skip
        self.target_tokenizer, self.assistant_tokenizer = target_tokenizer, assistant_tokenizer
        super().__init__(
            input_ids, assistant_model, generation_config, model_kwargs, inputs_tensor, logits_processor
        )

    def _draft(self, kwargs: dict[str, Any], source: Tensor | None) -> Any:
        return RetoldDraft(
            self.assistant_model, self.target_tokenizer, self.assistant_tokenizer, self.task, self.schedule,
            kwargs.get("attention_mask"),
        )  # fmt: skip


class UniversalSpeculativeDecodingGenerator(AssistedCandidateGeneratorDifferentTokenizers):
    """What a smaller model draws among the words that both vocabularies have (arXiv:2502.05202).

    atm_translator: an AssistantToTargetTranslator, whose size of the vocabulary is taken.
    """

    def __init__(
        self, input_ids: Tensor, assistant_model: nn.Module, target_tokenizer: Any, assistant_tokenizer: Any,
        generation_config: GenerationConfig, model_kwargs: dict[str, Any], atm_translator: Any,
        inputs_tensor: Tensor | None = None, logits_processor: LogitsProcessorList | None = None,
    ):  # fmt: skip
        self.vocabulary = atm_translator.target_vocab_size
        super().__init__(
            input_ids, assistant_model, target_tokenizer, assistant_tokenizer, generation_config,
            model_kwargs, inputs_tensor, logits_processor,
        )  # fmt: skip

    def _draft(self, kwargs: dict[str, Any], source: Tensor | None) -> Any:
        return MappedDraft(
            self.assistant_model, self.target_tokenizer, self.assistant_tokenizer, self.task, self.schedule,
            kwargs.get("attention_mask"), self.vocabulary,
        )  # fmt: skip


class AssistantToTargetTranslator:
    """Ids and scores of a draft's vocabulary as those of the model's; words that it lacks are left out.

    target_vocab_size: how many words the model scores.
    """

    FILTER_VALUE, SUPPRESS_TOKEN_ID = -float("inf"), -1

    def __init__(
        self, target_tokenizer: Any, assistant_tokenizer: Any, target_vocab_size: int,
        assistant_model_device: Any = "cpu",
    ):  # fmt: skip
        self.target_vocab_size = target_vocab_size
        pairs = shared_words(target_tokenizer, assistant_tokenizer, target_vocab_size)
        size = max(assistant_tokenizer.get_vocab().values()) + 1
        self.targets = torch.full((size,), self.SUPPRESS_TOKEN_ID, device=assistant_model_device)
        self.targets[list(pairs.values())] = torch.tensor(list(pairs), device=assistant_model_device)
        self.target_to_assistant_input_ids = pairs

    def get_target_ids(
        self, assistant_input_ids: Tensor, target_input_ids: Tensor, assistant_candidate_ids: Tensor
    ) -> Tensor:
        """The model's ids (1, length) with those behind them that the draft's candidates stand for."""
        count = assistant_candidate_ids.shape[1] - assistant_input_ids.shape[1]
        if not count:
            return target_input_ids
        return torch.cat([target_input_ids, self.targets[assistant_candidate_ids[:, -count:]]], 1)

    def get_target_logits(self, assistant_logits: Tensor) -> Tensor:
        """Scores (..., target_vocab_size) from the draft's (..., vocabulary)."""
        known = self.targets != self.SUPPRESS_TOKEN_ID
        scores = assistant_logits.new_full(
            (*assistant_logits.shape[:-1], self.target_vocab_size), self.FILTER_VALUE
        )
        scores[..., self.targets[known]] = assistant_logits[..., : len(self.targets)][..., known]
        return scores


class AssistantVocabTranslatorCache:
    """Translators of pairs of tokenizers, kept as long as these are."""

    _kept: WeakKeyDictionary = WeakKeyDictionary()

    @classmethod
    def get_translator(
        cls, target_tokenizer: Any, assistant_tokenizer: Any, target_vocab_size: int,
        assistant_model_device: Any = "cpu",
    ) -> AssistantToTargetTranslator:  # fmt: skip
        """The translator of a pair."""
        own = cls._kept.setdefault(target_tokenizer, WeakKeyDictionary())
        if assistant_tokenizer not in own:
            own[assistant_tokenizer] = AssistantToTargetTranslator(
                target_tokenizer, assistant_tokenizer, target_vocab_size, assistant_model_device
            )
        return own[assistant_tokenizer]

    @classmethod
    def cleanup(cls) -> None:
        """Nothing: tokenizers that are gone take their translators along."""


def _one_row(ids: Tensor) -> None:
    if ids.ndim != 2 or ids.shape[0] != 1:
        raise ArgumentError(f"input_ids must have shape (1, length), but has {tuple(ids.shape)}")


def _words(model: nn.Module) -> int:
    size = vocabulary_size(model)
    if size is None:
        raise ArgumentError(f"{type(model).__name__} does not say how many words it knows")
    return size
