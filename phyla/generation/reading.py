"""Sources of candidates that read what the model computed, for loops of one's own: see candidates.py.

`get_candidates` is given the model's newest output too, and how many candidates were right; a loop's first
call is for what the model has not computed yet, and gives none.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.checkpoints.ahead import heads_ahead
from phyla.errors import ArgumentError
from phyla.generation.ahead import HeadsDraft, Tail
from phyla.generation.blanks import BlanksDraft
from phyla.generation.candidates import CandidateGenerator, _one_row, _words
from phyla.generation.config import GenerationConfig
from phyla.generation.drafts import explicit
from phyla.generation.logits import LogitsProcessorList
from phyla.generation.one_place import OnePlaceDraft
from phyla.generation.plan import end_tokens, pad_token
from phyla.generation.task import Task


class ReadingCandidateGenerator(CandidateGenerator):
    """Base of those that read the model's hidden_states, which its outputs must have."""

    requires_model_outputs: ClassVar[bool] = True
    model_kwargs_overrides: ClassVar[dict[str, Any]] = {"output_hidden_states": True}
    draft: Any
    most: int

    def get_candidates(
        self, input_ids: Tensor, model_kwargs: dict[str, Any] | None = None, model_outputs: Any = None,
        is_first_iteration: bool = False, n_last_matches: int = 0,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As CandidateGenerator; model_outputs are of the last token and the candidates behind it."""
        _one_row(input_ids)
        if is_first_iteration:
            return input_ids, None
        length = input_ids.shape[1]
        self._hear(model_outputs, length, int(n_last_matches))
        with torch.no_grad():
            found = self.draft.propose(input_ids, [length], [True], [self.most])
        assert found is not None
        count = found.counts[0]
        return torch.cat([input_ids, found.ids[:, :count]], 1), found.chances[:, :count].log()

    def _hear(self, outputs: Any, length: int, matched: int) -> None:
        """Give the draft what the model's output says of a text of `length` tokens."""
        states = self.states(outputs)
        if self.draft.tail is None:
            self.draft.tail = Tail(states[:, : length - 1])
        else:
            self.draft.take(states, [matched], [True])

    def states(self, outputs: Any) -> Tensor:
        """What of the model's output the draft reads, (1, positions, ...)."""
        return states_of(outputs)[-1]

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Nothing: the number of candidates is what the draft was made for."""


class MTPCandidateGenerator(ReadingCandidateGenerator):
    """What the model's own heads guess behind the next token, one token each."""

    def __init__(
        self, main_model: Any, generation_config: GenerationConfig,
        model_kwargs: dict[str, Any] | None = None,
        logits_processor: LogitsProcessorList | None = None,
    ):  # fmt: skip
        heads = heads_ahead(main_model)
        self.num_mtp_layers = self.most = len(heads)
        task = task_of(main_model, generation_config, logits_processor)
        self.draft = HeadsDraft(main_model, heads, task, _words(main_model))


class DFlashTokenCandidateGenerator(ReadingCandidateGenerator):
    """What a smaller model, with the model's token table and output matrix, fills into a block of blanks."""

    def __init__(
        self, assistant_model: Any, main_model_input_embeddings: Any, main_model_output_embeddings: Any,
        generation_config: GenerationConfig, logits_processor: LogitsProcessorList | None = None,
    ):  # fmt: skip
        task, out = (
            task_of(assistant_model, generation_config, logits_processor),
            main_model_output_embeddings,
        )
        self.draft = BlanksDraft(
            assistant_model, main_model_input_embeddings, out, task, int(out.out_features)
        )
        self.assistant_model, self.target_layer_ids = assistant_model, assistant_model.config.target_layer_ids
        self.block_size = self.draft.block
        self.most = self.block_size - 1

    def states(self, outputs: Any) -> Tensor:
        """Those of the layers that the draft was made for, joined."""
        return torch.cat([states_of(outputs)[i + 1] for i in self.target_layer_ids], -1)


class SinglePositionMultiTokenCandidateGenerator(ReadingCandidateGenerator):
    """What a smaller model guesses from the place of the last token, over keys that the model keeps.

    The model's outputs must have hidden_states, and shared_kv_states: keys and values (1, G, K, E) of the
    last layer of each kind, of the text without its last token.
    """

    def __init__(
        self, assistant_model: Any, target_model_input_embeddings: Any, generation_config: GenerationConfig,
    ):  # fmt: skip
        task = task_of(assistant_model, generation_config, None)
        schedule = explicit(assistant_model, generation_config, generation_config._given)
        self.num_assistant_tokens = self.most = int(schedule.count)
        self.shared: dict[str, tuple[Tensor, Tensor]] = {}
        words = assistant_model.config.get_text_config().vocab_size
        self.draft = OnePlaceDraft(
            assistant_model, target_model_input_embeddings, lambda: (self.shared, None), task, schedule, words
        )

    def _hear(self, outputs: Any, length: int, matched: int) -> None:
        """As ReadingCandidateGenerator."""
        at = -1 if self.draft.states is None else matched
        self.draft.states = self.states(outputs)[:, at][:, None]
        self.shared = dict(outputs.shared_kv_states)


def task_of(model: Any, config: GenerationConfig, processors: LogitsProcessorList | None) -> Task:
    """What a draft of one row runs with; its chances are told."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    return Task(
        ids=ids, given=ids, start=1, limit=0, repeats=1, pad_id=pad_token(config),
        eos=end_tokens(config, ids.device), processors=LogitsProcessorList(processors or []),
        do_sample=bool(config.do_sample), ensemble=1.0,
    )  # fmt: skip


def states_of(outputs: Any) -> Any:
    """The states of all layers in a model's output; ArgumentError without them."""
    states = getattr(outputs, "hidden_states", None)
    if states is None:
        raise ArgumentError("model_outputs must have hidden_states: call the model with output_hidden_states")
    return states
