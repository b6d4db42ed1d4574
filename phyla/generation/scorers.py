"""Beam search piece by piece, for loops of one's own: the public scorers, over the rules of `generate`.

A loop asks `process` with the best candidates of each row at each step and `finalize` at the end. Facts of
the calls: generation/beam_search.py of Transformers 4.50.
"""

from typing import Any

import torch
from torch import Tensor

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.beams import BeamSettings
from phyla.generation.constraints import Constraint, ConstraintListState
from phyla.generation.grouped import _Next, _Row
from phyla.generation.logits import id_list


class BeamHypotheses:
    """The best `num_beams` ended texts of one row: `beams` holds (score, ids, beam indices)."""

    def __init__(
        self, num_beams: int, length_penalty: float, early_stopping: bool | str, max_length: int | None = None
    ):
        if not isinstance(early_stopping, bool) and max_length is None:
            raise ArgumentError(f"early_stopping={early_stopping!r} needs max_length, but none is given")
        self.num_beams, self.length_penalty = num_beams, length_penalty
        self.early_stopping, self.max_length = early_stopping, max_length
        self.beams: list[tuple[float, Tensor, Any]] = []

    def __len__(self) -> int:
        return len(self.beams)

    @property
    def worst_score(self) -> float:
        """The score that a text must beat once there are enough."""
        return min((beam[0] for beam in self.beams), default=1e9)

    def add(
        self, hyp: Tensor, sum_logprobs: float, beam_indices: Any = None, generated_len: int | None = None
    ) -> None:
        """Take the ids (length,) of an ended text, if it is among the best; scores go by generated_len."""
        length = hyp.shape[-1] if generated_len is None else generated_len
        self.beams.append((sum_logprobs / length**self.length_penalty, hyp, beam_indices))
        if len(self.beams) > self.num_beams:
            self.beams.remove(min(self.beams, key=lambda beam: beam[0]))

    def is_done(self, best_sum_logprobs: float, cur_len: int, decoder_prompt_len: int = 0) -> bool:
        """Whether no running text, the best of which has this sum at cur_len ids, could still get in."""
        if len(self) < self.num_beams:
            return False
        if self.early_stopping is True:
            return True
        reach = cur_len
        if self.early_stopping is not False and self.length_penalty > 0:
            reach = self.max_length or 0
        length = reach - decoder_prompt_len
        if length <= 0:
            raise ArgumentError(f"max_length must be above decoder_prompt_len, but they are {reach} and "
                                f"{decoder_prompt_len}")  # fmt: skip
        return self.worst_score >= best_sum_logprobs / length**self.length_penalty


class BeamScorer:
    """Base class of what chooses the beams of the next step."""

    def process(self, input_ids: Tensor, next_scores: Tensor, next_tokens: Tensor, next_indices: Tensor,
                **more: Any) -> dict[str, Tensor]:  # fmt: skip
        """The beams that go on, from candidates of each row."""
        raise NotImplementedError(f"{type(self).__name__} must define process(...)")

    def finalize(self, input_ids: Tensor, next_scores: Tensor, next_tokens: Tensor, next_indices: Tensor,
                 max_length: int, **more: Any) -> dict[str, Tensor]:  # fmt: skip
        """The best texts of each row."""
        raise NotImplementedError(f"{type(self).__name__} must define finalize(...)")


class BeamSearchScorer(BeamScorer):
    """Beam search of `batch_size` rows, with `num_beams` beams in `num_beam_groups` groups each."""

    def __init__(
        self, batch_size: int, num_beams: int, device: Any, length_penalty: float = 1.0,
        do_early_stopping: bool | str = False, num_beam_hyps_to_keep: int = 1, num_beam_groups: int = 1,
        max_length: int | None = None,
    ):  # fmt: skip
        if num_beams < 2:
            raise ArgumentError(f"num_beams must be at least 2, but is {num_beams}")
        if num_beam_groups < 1 or num_beams % num_beam_groups:
            raise ArgumentError(
                f"num_beam_groups must divide num_beams ({num_beams}), but is {num_beam_groups}"
            )
        self.num_beams, self.num_beam_groups, self.device = num_beams, num_beam_groups, device
        self.group_size = num_beams // num_beam_groups
        self.length_penalty, self.do_early_stopping = length_penalty, do_early_stopping
        self.num_beam_hyps_to_keep = num_beam_hyps_to_keep
        self._beam_hyps = [
            BeamHypotheses(self.group_size, length_penalty, do_early_stopping, max_length)
            for _ in range(batch_size * num_beam_groups)
        ]
        self._done = [False] * len(self._beam_hyps)

    @property
    def is_done(self) -> bool:
        """Whether all rows are settled."""
        return all(self._done)

    def process(  # type: ignore[override]
        self, input_ids: Tensor, next_scores: Tensor, next_tokens: Tensor, next_indices: Tensor,
        pad_token_id: int | Tensor | None = None, eos_token_id: Any = None, beam_indices: Any = None,
        group_index: int = 0, decoder_prompt_len: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The beams of the next step: next_beam_scores, next_beam_tokens, next_beam_indices (rows * beams,).

        input_ids (rows * beams, length); the others (rows, candidates), best first. beam_indices: for each
        beam the beams that its tokens came from.
        """
        return self._process(
            input_ids, next_scores, next_tokens, next_indices, pad_token_id, eos_token_id, beam_indices,
            group_index, decoder_prompt_len,
        )  # fmt: skip

    def _process(self, ids: Tensor, scores: Tensor, tokens: Tensor, indices: Tensor, pad: Any, eos: Any,
                 origins: Any, group: int, begun: int) -> dict[str, Tensor]:  # fmt: skip
        batch = len(self._beam_hyps) // self.num_beam_groups
        if ids.shape[0] != batch * self.group_size:
            raise ArgumentError(
                f"input_ids must have {batch} * {self.group_size} rows, but has {ids.shape[0]}"
            )
        ends = set() if eos is None else set(id_list(eos))
        length = ids.shape[1] + 1 - begun
        chosen: list[list[_Next]] = []
        for row in range(batch):
            number = row * self.num_beam_groups + group
            base, pool = row * self.group_size, self._beam_hyps[number]
            if self._done[number]:
                if pad is None:
                    raise ArgumentError("rows that are over need a pad_token_id, but none is given")
                chosen.append([_Next(0.0, int(pad), -base)] * self.group_size)
                continue
            going: list[_Next] = []
            told = (x[row].tolist() for x in (scores, tokens, indices))
            for rank, (score, token, beam) in enumerate(zip(*told, strict=True)):
                if token not in ends:
                    going.append(_Next(score, token, beam))
                elif rank < self.group_size and self._may_end(ids[base + beam], begun):
                    came = None if origins is None else (*origins[base + beam], base + beam)
                    pool.add(ids[base + beam].clone(), score, came, length)
                if len(going) == self.group_size:
                    break
            if len(going) < self.group_size:
                raise GenerationError(
                    f"row {row} needs {self.group_size} candidates that do not end, but has {len(going)}"
                )
            chosen.append(self._favoured(ids[base : base + self.group_size], row, going, begun))
            best = float(scores[row].max())
            self._done[number] = pool.is_done(best, ids.shape[1] + 1, begun)
        flat = [(c, row * self.group_size) for row, beams in enumerate(chosen) for c in beams]
        return {
            "next_beam_scores": scores.new_tensor([c.total for c, _ in flat]),
            "next_beam_tokens": tokens.new_tensor([c.token for c, _ in flat]),
            "next_beam_indices": indices.new_tensor([c.source + base for c, base in flat]),
        }

    def _may_end(self, ids: Tensor, begun: int) -> bool:
        return True

    def _favoured(self, ids: Tensor, row: int, going: list[_Next], begun: int) -> list[_Next]:
        return going

    def finalize(  # type: ignore[override]
        self, input_ids: Tensor, final_beam_scores: Tensor, final_beam_tokens: Tensor,
        final_beam_indices: Tensor, max_length: int, pad_token_id: int | Tensor | None = None,
        eos_token_id: Any = None, beam_indices: Any = None, decoder_prompt_len: int = 0,
    ) -> dict[str, Any]:  # fmt: skip
        """The best texts: sequences (rows * kept, length), sequence_scores (rows * kept,), beam_indices.

        Running beams end here; texts that ended before get their end token back, and padding behind it.
        """
        length = input_ids.shape[-1] - decoder_prompt_len
        count = self.group_size * self.num_beam_groups
        for number, pool in enumerate(self._beam_hyps):
            if self._done[number]:
                continue
            row, group = divmod(number, self.num_beam_groups)
            base = row * count + group * self.group_size
            running = range(base, base + self.group_size)
            kept = [i for i in running if self._may_end(input_ids[i], decoder_prompt_len)]
            lacking = self.num_beam_hyps_to_keep - len(pool) - len(kept)
            kept += [i for i in running if i not in kept][: max(lacking, 0)]
            for i in kept:
                came = None if beam_indices is None else beam_indices[i]
                pool.add(input_ids[i], float(final_beam_scores[i]), came, length)
        best = []
        for row in range(len(self._beam_hyps) // self.num_beam_groups):
            pools = self._beam_hyps[row * self.num_beam_groups : (row + 1) * self.num_beam_groups]
            ended = sorted((beam for pool in pools for beam in pool.beams), key=lambda beam: beam[0])
            best += ended[::-1][: self.num_beam_hyps_to_keep]
        return _filled(best, max_length, pad_token_id, eos_token_id)


class ConstrainedBeamSearchScorer(BeamSearchScorer):
    """Beam search whose texts must hold what `constraints` say."""

    def __init__(
        self, batch_size: int, num_beams: int, constraints: list[Constraint], device: Any,
        length_penalty: float = 1.0, do_early_stopping: bool | str = False, num_beam_hyps_to_keep: int = 1,
        num_beam_groups: int = 1, max_length: int | None = None,
    ):  # fmt: skip
        super().__init__(
            batch_size, num_beams, device, length_penalty, do_early_stopping, num_beam_hyps_to_keep,
            num_beam_groups, max_length,
        )  # fmt: skip
        self.constraints = constraints
        self.totals = torch.empty(0)

    def check_completes_constraints(self, sequence: list[int]) -> bool:
        """Whether ids have all that must be there."""
        return self._state(sequence).completed

    def process(  # type: ignore[override]
        self, input_ids: Tensor, next_scores: Tensor, next_tokens: Tensor, next_indices: Tensor,
        scores_for_all_vocab: Tensor, pad_token_id: int | Tensor | None = None, eos_token_id: Any = None,
        beam_indices: Any = None, decoder_prompt_len: int = 0,
    ) -> dict[str, Tensor]:  # fmt: skip
        """As BeamSearchScorer; scores_for_all_vocab (rows * beams, vocabulary) are the sums of all tokens."""
        self.totals = scores_for_all_vocab
        return self._process(
            input_ids, next_scores, next_tokens, next_indices, pad_token_id, eos_token_id, beam_indices, 0,
            decoder_prompt_len,
        )  # fmt: skip

    def _state(self, ids: list[int]) -> ConstraintListState:
        state = ConstraintListState([constraint.copy() for constraint in self.constraints])
        state.reset(ids)
        return state

    def _may_end(self, ids: Tensor, begun: int) -> bool:
        return self._state(ids.tolist()).completed

    def _favoured(self, ids: Tensor, row: int, going: list[_Next], begun: int) -> list[_Next]:
        settings = BeamSettings(self.group_size, self.num_beam_hyps_to_keep)
        beams = _Row(0, 1, 1, settings, self.constraints)
        beams.new = ids.tolist()
        beams.states = [self._state(known) for known in beams.new]
        first = row * self.group_size
        return beams.favour(going, self.totals[first : first + self.group_size])


def _filled(best: list[tuple[float, Tensor, Any]], most: int | None, pad: Any, eos: Any) -> dict[str, Any]:
    """Texts (score, ids, beam indices) of any length as one tensor, with end tokens and padding behind."""
    ids = [beam[1] for beam in best]
    lengths = [len(text) for text in ids]
    width = max(lengths) + 1
    width = width if most is None else min(width, most)
    if min(lengths) != max(lengths) and pad is None:
        raise ArgumentError("texts of different lengths need a pad_token_id, but none is given")
    sequences = ids[0].new_full((len(ids), width), 0 if pad is None else int(pad))
    origins = None if best[0][2] is None else ids[0].new_full((len(ids), width), -1)
    for row, (_, text, came) in enumerate(best):
        sequences[row, : len(text)] = text
        if len(text) < width and eos is not None:
            sequences[row, len(text)] = id_list(eos)[0]
        if origins is not None:
            origins[row, : len(came)] = torch.tensor([int(i) for i in came], dtype=origins.dtype)[:width]
    return {
        "sequences": sequences,
        "sequence_scores": torch.tensor([beam[0] for beam in best], device=sequences.device),
        "beam_indices": origins,
    }
