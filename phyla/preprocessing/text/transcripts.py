"""Tokenizers of speech recognition: language, task and timestamp tokens, and transcripts from chunks of
speech.
"""

import re
import string
from typing import Any

from phyla.errors import TokenizerInputError, nearest

from .batch import to_python
from .jsonfile import read_json, write_json
from .language_codes import TRANSCRIBED, TRANSCRIBED_NAMES
from .overlaps import joined
from .prefixed import Prefixed

_TIMESTAMP = re.compile(r"<\|(\d+\.\d+)\|>")
_TASKS = ("translate", "transcribe")
_UNSPACED = ("chinese", "japanese", "thai", "lao", "myanmar", "cantonese")
_BEFORE, _AFTER = "\"'“¡¿([{-", "\"'.。,，!！?？:：”)]}、"
_FRAMES = 1500  # the timestamps of one window of speech


class Transcripts(Prefixed):
    """What the Python and the Rust class share."""

    decode_options: tuple[str, ...] = (
        "normalize", "basic_normalize", "remove_diacritics", "use_source_tokenizer",
        "spaces_between_special_tokens",
    )  # fmt: skip
    language: str | None
    task: str | None
    predict_timestamps: bool

    def _take_spellings(self) -> None:
        path = self.normalizer_file
        self.english_spelling_normalizer = None if path is None else read_json(path)

    def _save_spellings(self, folder, prefix: str) -> str:
        path = folder / f"{prefix}normalizer.json"
        if self.english_spelling_normalizer is not None:
            write_json(path, self.english_spelling_normalizer)
        return str(path)

    def _id_limit(self) -> int:
        return super()._id_limit() + _FRAMES + 1  # timestamps may stand behind the vocabulary

    # ------------------------------------------------------------------ the tokens before a transcript

    def set_prefix_tokens(self, language=None, task=None, predict_timestamps=None) -> None:
        """Change what stands before each transcript; None leaves it."""
        given = {"language": language, "task": task, "predict_timestamps": predict_timestamps}
        for name, value in given.items():
            if value is not None:
                setattr(self, name, value)
        self._prefix_changed()

    def _prefix_changed(self) -> None:
        """Hook: the tokens before a transcript are others now."""

    @property
    def prefix_tokens(self) -> list[int]:
        """The ids before a transcript: start, language, task, and that there are no timestamps."""
        find = self.convert_tokens_to_ids
        start = find("<|startoftranscript|>")
        ids = [start]
        if self.language is not None:
            self.language = self.language.lower()
            code = TRANSCRIBED_NAMES.get(self.language, self.language)
            if code not in TRANSCRIBED_NAMES.values():
                known = sorted(TRANSCRIBED) if len(self.language) == 2 else sorted(TRANSCRIBED_NAMES)
                raise TokenizerInputError(
                    f"language must be one of {known}, but is {self.language!r}."
                    f"{nearest(self.language, known)}"
                )
            ids.append(start + 1 + list(TRANSCRIBED).index(code))
        if self.task is not None:
            if self.task not in _TASKS:
                raise TokenizerInputError(f"task must be one of {list(_TASKS)}, but is {self.task!r}")
            ids.append(find(f"<|{self.task}|>"))
        return ids if self.predict_timestamps else [*ids, find("<|notimestamps|>")]

    def get_decoder_prompt_ids(
        self, task=None, language=None, no_timestamps: bool = True
    ) -> list[tuple[int, int]]:
        """Place and id of the tokens that generation must begin with, after the first."""
        self.set_prefix_tokens(task=task, language=language, predict_timestamps=not no_timestamps)
        return list(enumerate(self.prefix_tokens[1:], 1))

    def get_prompt_ids(self, text: str, return_tensors="np"):
        """The ids of a text that goes before a transcript as its context."""
        encoded = self("<|startofprev|>", " " + text.strip(), add_special_tokens=False)
        first = self.all_special_ids[0]
        special = next((index for index in encoded["input_ids"][1:] if index >= first), None)
        if special is not None:
            raise TokenizerInputError(
                f"a prompt must hold no special token, but holds {self.convert_ids_to_tokens(special)}"
            )
        encoded.convert_to_tensors(tensor_type=return_tensors)
        return encoded["input_ids"]

    # ------------------------------------------------------------------ decoding

    @property
    def _first_timestamp(self) -> int:
        return self.all_special_ids[-1] + 1

    def timestamp_ids(self, time_precision: float = 0.02) -> list[int]:
        """The ids of all timestamps."""
        return self.convert_tokens_to_ids([f"<|{i * time_precision:.2f}|>" for i in range(_FRAMES + 1)])

    def _strip_prompt(self, token_ids, prompt_token_id: int, decoder_start_token_id: int) -> list[int]:
        ids = to_python(token_ids)
        if not ids or ids[0] != prompt_token_id:
            return ids
        return ids[ids.index(decoder_start_token_id) :] if decoder_start_token_id in ids else []

    def _without_prompt(self, token_ids):
        find = self.convert_tokens_to_ids
        return self._strip_prompt(token_ids, find("<|startofprev|>"), find("<|startoftranscript|>"))

    def decode(  # type: ignore[override]
        self,
        token_ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        output_offsets: bool = False,
        time_precision: float = 0.02,
        decode_with_timestamps: bool = False,
        normalize: bool = False,
        basic_normalize: bool = False,
        remove_diacritics: bool = False,
        **more,
    ):
        """The text of ids; with `output_offsets` a dictionary of the text and its timed parts."""
        ids = self._without_prompt(token_ids) if skip_special_tokens else token_ids
        if decode_with_timestamps:
            text = self._with_timestamps(to_python(ids), skip_special_tokens, time_precision)
        else:
            text = super().decode(
                ids,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                normalize=normalize,
                basic_normalize=basic_normalize,
                remove_diacritics=remove_diacritics,
                **more,
            )
            text = _TIMESTAMP.sub("", text)
        if not output_offsets:
            return text
        return {"text": text, "offsets": self._compute_offsets(token_ids, time_precision)}

    def _with_timestamps(self, ids, skip_special_tokens: bool, precision: float) -> str:
        """Text with its timestamps, which go on over windows of speech."""
        first = self._first_timestamp
        parts: list = [[]]
        latest = before_latest = passed = 0.0
        for i, index in enumerate([ids] if isinstance(ids, int) else ids):
            if index < first:
                parts[-1].append(index)
                continue
            time = float((index - first) * precision)
            if time < latest:  # a new window begins
                if i >= 2 and not (ids[i - 1] >= first and ids[i - 2] >= first):
                    passed += precision * _FRAMES
                else:
                    latest, passed, parts = before_latest, passed + before_latest, parts[:-2]
            before_latest, latest = latest, time
            parts += [f"<|{time + passed:.2f}|>", []]
        texts = (
            p if isinstance(p, str) else self.decode(p, skip_special_tokens=skip_special_tokens)
            for p in parts
        )
        return "".join(texts)

    def _compute_offsets(
        self, token_ids, time_precision: float = 0.02, segment_size: int = _FRAMES
    ) -> list[dict]:
        """The parts between pairs of timestamps, with their times in seconds."""
        ids = to_python(token_ids)
        if ids and isinstance(ids[0], list):
            if len(ids) > 1:
                raise TokenizerInputError(f"offsets are those of one sequence, but {len(ids)} are given")
            ids = ids[0]
        first = self._first_timestamp
        stamps = [i for i, index in enumerate(ids) if index >= first]
        ends = [i for i in stamps if i and ids[i - 1] >= first]
        if not ends and len(stamps) <= 1:
            return []
        if stamps[-1] + 1 not in ends:
            ends.append(stamps[-1] + 1)
        offsets, start, latest, passed = [], stamps[0], 0, 0
        for end in ends:
            part = ids[start:end]
            if len(part) > 1:
                begin, finish = part[0] - first, part[-1] - first
                if begin < latest:  # a new window begins
                    single = start >= 2 and not (ids[start - 2] >= first and ids[start - 1] >= first)
                    passed += segment_size if single else latest
                latest = finish
                text = _TIMESTAMP.sub("", self._decode(part))
                times = tuple(t * time_precision + passed * time_precision for t in (begin, finish))
                offsets.append({"text": text, "timestamp": times})
            start = end
        return offsets

    def _normal(self, text: str, normalize: bool, basic: bool, remove_diacritics: bool) -> str:
        if normalize:
            return self.normalize(text)
        return self.basic_normalize(text, remove_diacritics=remove_diacritics) if basic else text

    def normalize(self, text: str) -> str:
        """English text as transcripts are compared: words for numbers as digits, one spelling."""
        from .transcript_text import english

        return english(text, self.english_spelling_normalizer or {})

    @staticmethod
    def basic_normalize(text: str, remove_diacritics: bool = False) -> str:
        """Text in lower case without brackets, marks and symbols."""
        from .transcript_text import basic

        return basic(text, remove_diacritics)

    _normalize = normalize
    _basic_normalize = basic_normalize

    # ------------------------------------------------------------------ transcripts of long speech

    def _decode_asr(self, model_outputs, *, return_timestamps, return_language, time_precision):
        return _Assembler(self, return_timestamps, return_language, time_precision)(model_outputs)


class _Assembler:
    """One transcript from the outputs of overlapping chunks."""

    def __init__(self, tokenizer: Transcripts, return_timestamps, return_language, precision: float):
        self.tokenizer = tokenizer
        self.timed, self.words = bool(return_timestamps), return_timestamps == "word"
        self.with_language = return_language
        self.precision = precision
        self.language: str | None = None
        self.done: list[dict] = []
        self.first = tokenizer.convert_tokens_to_ids("<|notimestamps|>") + 1
        self.special = set(tokenizer.all_special_ids)
        self._start_chunk()
        self.skip = False

    def _start_chunk(self) -> None:
        self.chunk: dict[str, Any] = {"language": self.language, "timestamp": [None, None], "text": ""}
        self._forget()

    def _forget(self) -> None:
        self.runs: list[list[int]] = []
        self.run_times: list[list[tuple]] = []
        self._new_run()

    def _new_run(self) -> None:
        self.run: list[int] = []
        self.times: list[tuple] = []

    def _keep_run(self) -> None:
        self.runs.append(self.run)
        if self.words:
            self.run_times.append(self.times)

    def _close_chunk(self) -> None:
        tokens, times = joined(self.runs, self.run_times)
        self.chunk["text"] = self.tokenizer.decode(tokens)
        if self.words:
            self.chunk["words"] = self._timed_words(tokens, times)
        self.done.append(self.chunk)

    def __call__(self, outputs) -> tuple[str, dict]:
        offset = 0.0
        for output in outputs:
            offset = self._take(output, offset)
        if self.runs:
            self._close_chunk()
        text = "".join(chunk["text"] for chunk in self.done)
        if not (self.timed or self.with_language):
            return text, {}
        for chunk in self.done:
            if self.timed:
                chunk["timestamp"] = tuple(chunk["timestamp"])
            else:
                del chunk["timestamp"]
            if not self.with_language:
                del chunk["language"]
        return text, {"chunks": [w for c in self.done for w in c["words"]] if self.words else self.done}

    def _take(self, output: dict, offset: float) -> float:
        ids = self.tokenizer._without_prompt(to_python(output["tokens"][0]))
        times = to_python(output["token_timestamps"][0]) if self.words else []
        low, high, end = self.first, None, None
        if "stride" in output:
            length, left, right = output["stride"]
            offset -= left
            end = length - right
            if left:
                low = left / self.precision + self.first
            if right:
                high = self._last_inside(ids, end)
        self._new_run()
        for i, token in enumerate(ids):
            if token in self.special:
                self._take_language(token)
            elif token >= self.first:
                self._take_timestamp(token, offset, low, high)
            else:
                self.run.append(token)
                if self.words:
                    after = round(times[i + 1] + offset, 2) if i + 1 < len(times) else None
                    self.times.append((round(times[i] + offset, 2), after))
        if self.run:
            self._keep_run()
        elif not any(self.runs):
            self._start_chunk()
        return offset if end is None else offset + end

    def _last_inside(self, ids: list[int], end: float) -> int | None:
        """The first timestamp of the right stride: from it on the next chunk knows better."""
        found = None
        for token in reversed(ids):
            if token >= self.first:
                if found is not None and (token - self.first) * self.precision < end:
                    break
                found = token
        return found

    def _take_language(self, token: int) -> None:
        language = TRANSCRIBED.get(self.tokenizer.decode([token])[2:-2])
        if language is None:
            return
        if self.language and language != self.language and not self.timed:
            self._keep_run()
            self._close_chunk()
            self._start_chunk()
        self.chunk["language"] = self.language = language

    def _take_timestamp(self, token: int, offset: float, low: float, high: int | None) -> None:
        time = round((token - self.first) * self.precision + offset, 2)
        times = self.chunk["timestamp"]
        if high and token >= high:
            self.skip = True
        elif self.skip or (self.runs and token < low):
            self.skip = False
        elif times[0] is None:
            times[0] = time
        elif time != times[0]:
            times[1] = time
            self._keep_run()
            self._close_chunk()
            self._start_chunk()

    def _timed_words(self, tokens: list[int], times: list[tuple]) -> list[dict]:
        language = {"language": self.language} if self.with_language else {}
        return [
            {"text": word, "timestamp": (times[places[0]][0], times[places[-1]][1]), **language}
            for word, places in words_of_tokens(self.tokenizer, tokens, self.language)
        ]


def words_of_tokens(
    tokenizer: Transcripts, tokens: list[int], language: str | None
) -> list[tuple[str, list[int]]]:
    """The words of a transcript and the places of their tokens, with marks at the words they belong to."""
    units = _characters(tokenizer, tokens)
    if (language or tokenizer.language or "english") not in _UNSPACED:
        units = _spaced(tokenizer, tokens, units)
    units = _with_marks_before(units)
    return _with_marks_after(units)


def _characters(tokenizer: Transcripts, tokens: list[int]) -> list[tuple[str, list[int]]]:
    """The shortest runs of tokens that are whole characters."""
    whole = tokenizer.decode(tokens, decode_with_timestamps=True)
    units, places, done = [], [], 0
    for place in range(len(tokens)):
        places.append(place)
        text = tokenizer.decode([tokens[p] for p in places], decode_with_timestamps=True)
        if "\ufffd" not in text or whole[done + text.index("\ufffd")] == "\ufffd":
            units.append((text, places))
            done += len(text)
            places = []
    return units


def _spaced(tokenizer: Transcripts, tokens: list[int], units) -> list[tuple[str, list[int]]]:
    words: list[tuple[str, list[int]]] = []
    for text, places in units:
        special = tokens[places[0]] >= tokenizer.eos_token_id
        if special or text.startswith(" ") or text.strip() in string.punctuation or not words:
            words.append((text, places))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1] + places)
    return words


def _with_marks_before(units) -> list[tuple[str, list[int]]]:
    joined_units: list[tuple[str, list[int]]] = []
    for text, places in reversed(units):
        if joined_units and text.startswith(" ") and text.strip() in _BEFORE:
            after, more = joined_units[-1]
            joined_units[-1] = (text + after, places + more)
        else:
            joined_units.append((text, places))
    return joined_units[::-1]


def _with_marks_after(units) -> list[tuple[str, list[int]]]:
    joined_units: list[tuple[str, list[int]]] = []
    for text, places in units:
        if joined_units and not joined_units[-1][0].endswith(" ") and text in _AFTER:
            before, more = joined_units[-1]
            joined_units[-1] = (before + text, more + places)
        else:
            joined_units.append((text, places))
    return [unit for unit in joined_units if unit[0]]
