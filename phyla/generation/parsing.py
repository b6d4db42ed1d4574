"""Decoding by a grammar: only tokens that go on to a text of it, and an end in time for the length."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phyla.errors import ArgumentError, GenerationError
from phyla.generation.config import GenerationConfig
from phyla.generation.grammar import Grammar, engine, read_grammar, words_of
from phyla.generation.logits import NEVER, LogitsProcessor, id_list
from phyla.generation.prompt import vocabulary_size

_LOOK_AHEAD = 16  # tokens between two looks at how far the end is
_TRIED = 4  # of the best tokens, how many are tried for an end in time
_WIDTH, _BRANCHES = 8, 6  # of the search for an end, where the first way found does not end
_KEPT = 1024  # states of texts
# what is likely to end what is open, or to be allowed where little is: tried in this order
_ENDING = ('"', "}", "]", ")", "0", "1", "e", "a", "t", "f", "n", "l", "-", ".", ":", ",", "[", "{")


@dataclass
class _Text:
    """A text so far: the parser behind it, and about how many tokens its shortest end takes."""

    parser: Any
    reach: int
    ahead: dict[int, int] = field(default_factory=dict)  # tokens behind which the way to an end is known


class GrammarProcessor(LogitsProcessor):
    """Scores (rows, vocabulary) of which only tokens stay that a grammar allows behind the ids so far.

    grammars: one, or one for each row of the prompt (beams of a row share its). Texts start at position
    `start` of the ids and end, whole, before position `stop`; raises GenerationError where that is too near.
    greedy: only the best of the tokens that stay will be looked at.
    """

    def __init__(
        self, grammars: Sequence[Grammar], words: Any, ends: Sequence[int], start: int, stop: int,
        greedy: bool = False,
    ):  # fmt: skip
        self.tried = 1 if greedy else _TRIED
        self.words, self.ends, self.start, self.stop = words, frozenset(ends), start, stop
        self.texts: OrderedDict[tuple[int, ...], _Text] = OrderedDict()
        single = [ids[0] for text in _ENDING if len(ids := words.tokenize_str(text)) == 1]
        self.ending = [token for token in single if token not in self.ends]
        matcher = engine().LLMatcher
        # log_level 0: a guess of a draft that the rules refuse is no news
        self.roots = [self._root(matcher(words, grammar.rules, log_level=0), grammar) for grammar in grammars]
        # tokens that the shortest end may be away behind a single one
        inner = [grammar.inner for grammar in grammars]
        ways = [None if g is None else self._way_out(matcher(words, g.rules), 4096) for g in inner]
        self.leaps = [0 if way is None else len(way) for way in ways]

    def _root(self, parser: Any, grammar: Grammar) -> _Text:
        if parser.is_error():
            raise GenerationError(f"{grammar!r} does not fit the tokenizer: {parser.get_error().strip()}")
        most = self.stop - self.start
        way = self._way_out(parser, max(most, 4096))
        if way is not None and len(way) > most:
            raise GenerationError(
                f"{grammar!r} needs at least about {len(way)} tokens, but at most {most} may be generated: "
                "raise max_new_tokens"
            )
        return _Text(parser, most if way is None else len(way))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = input_ids[:, self.start :].tolist()
        left = self.stop - input_ids.shape[1]
        allowed = np.ones((len(rows), scores.shape[-1]), dtype=bool)
        for row, tokens in enumerate(rows):
            number = row * len(self.roots) // len(rows)
            text = self._text(number, tokens)
            if text is None:
                continue
            bits = _unpacked(text.parser.compute_bitmask(), scores.shape[-1])
            if left <= 2 * max(text.reach, self.leaps[number]) + _LOOK_AHEAD:
                bits = self._in_time(text, bits, scores[row], left)
            allowed[row] = bits
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), NEVER)

    def _text(self, number: int, tokens: list[int]) -> _Text | None:
        """The state behind the tokens; None behind an end, or where they are not of the grammar."""
        if not self.ends.isdisjoint(tokens):
            return None
        key = (number, *tokens)
        known = self.texts.get(key)
        if known is None:
            known = self._parsed(key)
            self.texts[key] = known
            if len(self.texts) > _KEPT:
                self.texts.popitem(last=False)
        self.texts.move_to_end(key)
        return None if known.parser.is_error() else known

    def _parsed(self, key: tuple[int, ...]) -> _Text:
        before = self.texts.get(key[:-1])
        rest: Sequence[int] = key[-1:]
        if before is None or len(key) == 1:
            before, rest = self.roots[key[0]], key[1:]
        parser = before.parser.deep_copy()
        reach = before.reach
        known = before.ahead.get(rest[0]) if len(rest) == 1 else None
        sound = parser.consume_tokens(list(rest))
        if known is not None:
            reach = known
        elif sound and len(key) % _LOOK_AHEAD == 0:
            way = self._way_out(parser, self.stop - self.start)
            reach = reach if way is None else len(way)
        return _Text(parser, reach)

    def _in_time(self, text: _Text, bits: np.ndarray, scores: Tensor, left: int) -> np.ndarray:
        """The best tokens behind which the text can still end; else the next of the shortest way there."""
        ids = np.flatnonzero(bits)
        best = scores[torch.from_numpy(ids).to(scores.device)].topk(min(_TRIED, len(ids))).indices.tolist()
        tokens = [int(ids[i]) for i in best]
        # a search, which takes long, only where no straight way is short enough
        kept = self._ending_behind(text, tokens, left - 1, self._straight)
        way = None if kept else self._straight(text.parser, left)
        if not kept and way is None:
            kept = self._ending_behind(text, tokens, left - 1, self._way_out)
            way = None if kept else self._way_out(text.parser, left)
        if not kept:
            if way is None:
                return bits
            kept = way[:1] or list(self.ends)
        few = np.zeros_like(bits)
        few[[i for i in kept if i < len(few)]] = True
        return few

    def _ending_behind(self, text: _Text, tokens: list[int], left: int, find: Callable) -> list[int]:
        """The first of the tokens, as many as are wanted, behind which `find` finds a way to an end."""
        kept: list[int] = []
        for token in tokens:
            if len(kept) < self.tried and self._ends_behind(text, token, left, find):
                kept.append(token)
        return kept

    def _ends_behind(self, text: _Text, token: int, left: int, find: Callable) -> bool:
        if token in self.ends:
            return True
        tried = text.parser.deep_copy()
        way = find(tried, left) if tried.consume_token(token) else None
        if way is not None:
            text.ahead[token] = len(way)
        return way is not None

    def _way_out(self, parser: Any, most: int) -> list[int] | None:
        """At most `most` tokens behind which the text is whole, few of them; None if none are found."""
        straight = self._straight(parser, most)
        if straight is not None or most > 1024:
            return straight
        level: list[tuple[Any, list[int]]] = [(parser.deep_copy(), [])]
        while level:
            grown = []
            for work, way in level:
                if work.is_accepting():
                    return way
                for step in self._steps(work):
                    after = work.deep_copy()
                    if len(way) + len(step) <= most and after.consume_tokens(step):
                        grown.append((after, way + step))
            level = sorted(grown, key=lambda pair: len(pair[1]))[:_WIDTH]
        return None

    def _straight(self, parser: Any, most: int) -> list[int] | None:
        work = parser.deep_copy()
        way: list[int] = []
        while len(way) <= most:
            if work.is_accepting():
                return way
            steps = self._steps(work, 1)
            if not steps or not work.consume_tokens(steps[0]):
                return None
            way += steps[0]
        return None

    def _steps(self, parser: Any, most: int = _BRANCHES) -> list[list[int]]:
        """Ways to go on: what must follow, or single tokens, the likeliest to end the text first."""
        forced = parser.compute_ff_tokens()
        if forced:
            return [forced]
        packed = parser.compute_bitmask()
        steps = [[token] for token in self.ending if packed[token >> 3] >> (token & 7) & 1]
        if len(steps) < most:
            bits = _unpacked(packed, self.words.vocab_size)
            steps += [[int(token)] for token in np.flatnonzero(bits)[:most] if token not in self.ends]
        return steps[:most]


def _unpacked(packed: bytes, size: int) -> np.ndarray:
    """Which of `size` tokens a mask allows, of a bit a token."""
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
    if len(bits) < size:
        bits = np.pad(bits, (0, size - len(bits)))
    return bits[:size].view(bool)


def grammar_processor(
    model: nn.Module, config: GenerationConfig, grammar: Any, tokenizer: Any, rows: int, start: int,
    limit: int, row_settings: Any = None,
) -> GrammarProcessor:  # fmt: skip
    """What holds a call to `grammar`: a Grammar, a JSON Schema, or a list of them, one for each row."""
    many = isinstance(grammar, (list, tuple))
    grammars = [read_grammar(given) for given in (grammar if many else [grammar])]
    if many and len(grammars) != rows:
        raise ArgumentError(f"grammar must be one, or one for each of {rows} rows, but has {len(grammars)}")
    if tokenizer is None:
        raise GenerationError("grammar needs the model's tokenizer: pass tokenizer=... to generate")
    if config.eos_token_id is None:
        raise GenerationError("grammar needs an eos_token_id, by which a whole text ends, but none is set")
    ends = id_list(config.eos_token_id)
    size = max(vocabulary_size(model) or 0, len(tokenizer))
    greedy = not config.do_sample and (config.num_beams or 1) == 1 and config.watermarking_config is None
    words = words_of(tokenizer, size, tuple(ends))
    return GrammarProcessor(grammars, words, ends, start, start + limit, greedy and not row_settings)
