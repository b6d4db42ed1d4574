"""Tokenizers of music: artists, genres and lyrics; notes of a piano."""

import math
import re
import unicodedata
from pathlib import Path

from phyla.errors import TokenizerFileError, TokenizerInputError, require

from .batch import BatchEncoding, converter, to_python
from .byte_level import read_vocabulary
from .jsonfile import write_json
from .slow import PreTrainedTokenizer
from .table import FromTable
from .tokens import AddedToken

_LYRICS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?-+'\"()[] \t\n"
_ODD = re.compile(r"""[^A-Za-z0-9.,:;!?\-'"()\[\] \t\n]+""")
_ODD_BUT_PLUS = re.compile(r"""[^A-Za-z0-9.,:;!?\-+'"()\[\] \t\n]+""")


class PythonSongs(FromTable, PreTrainedTokenizer):
    """An artist, genres and lyrics for each of the levels of a model of music."""

    names_once = False

    def _load(self, settings: dict, given: dict) -> None:
        for kind in ("artists", "genres", "lyrics"):
            path = settings.get(f"{kind}_file")
            if path is None:
                raise TokenizerFileError(
                    f"{type(self).__name__} needs {kind}_file ({kind}.json), but got none"
                )
            self._use(kind, read_vocabulary(path))
        fixed = settings["unk_token"]
        settings["added_tokens_decoder"] = {
            **(settings.get("added_tokens_decoder") or {}),
            0: AddedToken(fixed) if isinstance(fixed, str) else fixed,
        }

    def _use(self, kind: str, encoder: dict[str, int]) -> None:
        setattr(self, f"{kind}_encoder", encoder)
        setattr(self, f"{kind}_decoder", {index: name for name, index in encoder.items()})

    @property
    def vocab_size(self) -> int:
        """The sizes of all three tables together."""
        return len(self.artists_encoder) + len(self.genres_encoder) + len(self.lyrics_encoder)

    def get_vocab(self) -> dict:
        """The three tables."""
        return {
            f"{kind}_encoder": getattr(self, f"{kind}_encoder") for kind in ("artists", "genres", "lyrics")
        }

    @staticmethod
    def _name(text: str) -> str:
        return re.sub(
            "_+", "_", "".join(c if re.match(r"[a-z0-9.]", c) else "_" for c in text.lower())
        ).strip("_")

    def prepare_for_tokenization(self, artists, genres, lyrics, is_split_into_words=False):  # type: ignore[override]
        """Names as the tables spell them, and lyrics of known characters."""
        artists, genres = list(artists), list(genres)
        for i, version in enumerate(self.version):
            if version == "v3":
                artists[i], genres[i] = artists[i].lower(), [genres[i].lower()]
            else:
                artists[i] = f"{self._name(artists[i])}.v2"
                genres[i] = [f"{self._name(genre)}.v2" for genre in genres[i].split("_")]
        old = self.version[0] == "v2"
        if old:
            self._use("lyrics", {"<unk>": 0, **{char: i for i, char in enumerate(_LYRICS, 1)}})
            self.lyrics_decoder[0] = ""
        plain = "".join(c for c in unicodedata.normalize("NFD", lyrics) if unicodedata.category(c) != "Mn")
        plain = (_ODD if old else _ODD_BUT_PLUS).sub("", plain.replace("\\", "\n"))
        return artists, genres, (plain, [], [])

    def tokenize(self, artist, genre, lyrics, **options):  # type: ignore[override]
        """The names and characters for each level."""
        artists, genres, texts = self.prepare_for_tokenization(artist, genre, lyrics)
        return artists, genres, list(texts)

    def _convert_token_to_id(self, list_artists, list_genres, list_lyrics):  # type: ignore[override]
        artists = [self.artists_encoder.get(artist, 0) for artist in list_artists]
        genres = [[self.genres_encoder.get(genre, 0) for genre in row] for row in list_genres]
        genres = [row + [-1] * (self.n_genres - len(row)) for row in genres]
        return artists, genres, [[self.lyrics_encoder.get(char, 0) for char in list_lyrics[0]], [], []]

    def _convert_id_to_token(self, artists_index, genres_index, lyric_index):  # type: ignore[override]
        return (
            self.artists_decoder.get(artists_index),
            [self.genres_decoder.get(genre) for genre in genres_index],
            [self.lyrics_decoder.get(char) for char in lyric_index],
        )

    def convert_lyric_tokens_to_string(self, lyrics: list[str]) -> str:
        """The characters with spaces between."""
        return " ".join(lyrics)

    def __call__(self, artist: str, genres: str, lyrics: str = "", return_tensors="pt") -> BatchEncoding:  # type: ignore[override]
        """`input_ids`: for each level (1, 4 + n_genres + characters): three times, artist, genres, lyrics."""
        levels = len(self.version)
        ids = self._convert_token_to_id(*self.tokenize([artist] * levels, [genres] * levels, lyrics))
        make = converter(return_tensors)
        rows = [make([[0, 0, 0, a, *g, *text]]) for a, g, text in zip(*ids)]
        return BatchEncoding({"input_ids": rows, "attention_masks": [-math.inf] * len(ids[2][-1])})

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the three tables; returns their paths."""
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        return tuple(
            write_json(folder / f"{prefix}{kind}.json", getattr(self, f"{kind}_encoder"))
            for kind in ("artists", "genres", "lyrics")
        )


class PythonNotes(FromTable, PreTrainedTokenizer):
    """Notes (start, end, pitch, velocity) as tokens of time, velocity and pitch."""

    def _load(self, settings: dict, given: dict) -> None:
        path = settings.get("vocab")
        if path is None:
            raise TokenizerFileError(f"{type(self).__name__} needs vocab (vocab.json), but got none")
        self.encoder = read_vocabulary(path)
        self._names = {index: name for name, index in self.encoder.items()}

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary without added tokens."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Text to id of every token."""
        return {**self.encoder, **self._added_tokens_encoder}

    def _convert_id_to_token(self, index: int) -> list:  # type: ignore[override]
        value, _, kind = self._names.get(int(index), f"{self.unk_token}_TOKEN_TIME").partition("_")
        return [kind, int(value)]

    def _convert_token_to_id(self, token, token_type: str = "TOKEN_TIME") -> int:
        return self.encoder.get(f"{token}_{token_type}", int(self.unk_token))

    # ------------------------------------------------------------------ notes to tokens

    def encode_plus(  # type: ignore[override]
        self, notes, truncation_strategy=None, max_length: int | None = None, **options
    ) -> BatchEncoding:
        """The tokens of notes: an array (notes, 4), or notes of pretty_midi."""
        import numpy

        if not hasattr(notes, "shape") and len(notes) and hasattr(notes[0], "pitch"):
            notes = [[note.start, note.end, note.pitch, note.velocity] for note in notes]
        notes = numpy.round(numpy.asarray(notes).reshape(-1, 4)).astype(numpy.int32).tolist()
        times: dict[int, list[tuple[int, int]]] = {}
        for start, end, pitch, velocity in notes:
            times.setdefault(start, []).append((pitch, int(velocity > 0)))
            times.setdefault(end, []).append((pitch, 0))
        tokens, current = [], 0
        for time in sorted(times):
            tokens.append(self._convert_token_to_id(time, "TOKEN_TIME"))
            for pitch, velocity in times[time]:
                if velocity != current:
                    current = velocity
                    tokens.append(self._convert_token_to_id(velocity, "TOKEN_VELOCITY"))
                tokens.append(self._convert_token_to_id(pitch, "TOKEN_NOTE"))
        cuts = getattr(truncation_strategy, "value", truncation_strategy) not in (None, "do_not_truncate")
        if cuts and max_length and len(tokens) > max_length:
            tokens, _, _ = self.truncate_sequences(
                tokens, None, len(tokens) - max_length, truncation_strategy, **options
            )
        return BatchEncoding({"token_ids": tokens})

    def batch_encode_plus(  # type: ignore[override]
        self, notes, truncation_strategy=None, max_length: int | None = None, **options
    ) -> BatchEncoding:
        """The tokens of a list of examples."""
        rows = [
            self.encode_plus(each, truncation_strategy, max_length, **options)["token_ids"] for each in notes
        ]
        return BatchEncoding({"token_ids": rows})

    def __call__(  # type: ignore[override]
        self,
        notes,
        padding=False,
        truncation=None,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors=None,
        verbose: bool = True,
        **options,
    ) -> BatchEncoding:
        """`token_ids` of one example or a batch of notes."""
        batched = notes.ndim == 3 if hasattr(notes, "ndim") else isinstance(notes[0], list)
        plan = self._plan(padding, truncation, max_length, pad_to_multiple_of, verbose)
        encode = self.batch_encode_plus if batched else self.encode_plus
        if batched and return_attention_mask is None:
            return_attention_mask = True
        return self.pad(
            encode(notes, plan.truncation, plan.max_length, **options),
            padding=plan.padding.value,
            max_length=plan.max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
            verbose=verbose,
        )

    # ------------------------------------------------------------------ tokens to notes

    def relative_tokens_ids_to_notes(self, tokens, start_idx: int, cutoff_time_idx: int | None = None):
        """Notes (start, end, pitch, velocity) in beats, in order of their starts."""
        import numpy

        now, velocity = start_idx, 0
        open_at: dict[int, int] = {}
        notes: list[list] = []
        for kind, number in map(self._convert_id_to_token, tokens):
            if kind == "TOKEN_SPECIAL":
                if number == 1:
                    break
            elif kind == "TOKEN_TIME":
                now = now + number if cutoff_time_idx is None else min(now + number, cutoff_time_idx)
            elif kind == "TOKEN_VELOCITY":
                velocity = number
            elif kind == "TOKEN_NOTE":
                if number not in open_at:
                    open_at[number] = now
                elif open_at[number] < now:
                    notes.append([open_at.pop(number), now, number, self.default_velocity])
                    if velocity:
                        open_at[number] = now
            else:
                raise TokenizerInputError(
                    f"a token must be a time, velocity, note or special, but is {kind!r}"
                )
        for pitch in sorted(open_at):
            start = open_at[pitch]
            end = start + 1 if cutoff_time_idx is None else max(cutoff_time_idx, start + 1)
            notes.append([start, max(now, end), pitch, self.default_velocity])
        if not notes:
            return []
        table = numpy.array(notes)
        return table[(table[:, 0] * 128 + table[:, 1]).argsort()]

    def relative_batch_tokens_ids_to_notes(
        self, tokens, beat_offset_idx: int, bars_per_batch: int, cutoff_time_idx: int
    ):
        """The notes of several rows of tokens, `bars_per_batch` bars after each other."""
        import numpy

        parts = []
        for i, row in enumerate(tokens):
            start = beat_offset_idx + i * bars_per_batch * 4
            notes = self.relative_tokens_ids_to_notes(row, start, cutoff_time_idx + start)
            if len(notes):
                parts.append(notes)
        return numpy.concatenate(parts, axis=0) if parts else []

    def relative_batch_tokens_ids_to_midi(
        self, tokens, beatstep, beat_offset_idx: int = 0, bars_per_batch: int = 2, cutoff_time_idx: int = 12
    ):
        """A PrettyMIDI object of several rows of tokens; `beatstep` gives the seconds of each beat."""
        first = beat_offset_idx or 0
        notes = self.relative_batch_tokens_ids_to_notes(tokens, first, bars_per_batch, cutoff_time_idx)
        return self.notes_to_midi(notes, beatstep, offset_sec=beatstep[first])

    def notes_to_midi(self, notes, beatstep, offset_sec: float = 0.0):
        """A PrettyMIDI object of notes in beats."""
        midi = require("pretty_midi", "midi", "writing MIDI")
        song, piano = midi.PrettyMIDI(resolution=384, initial_tempo=120.0), midi.Instrument(program=0)
        piano.notes = [
            midi.Note(velocity=v, pitch=p, start=beatstep[a] - offset_sec, end=beatstep[b] - offset_sec)
            for a, b, p, v in notes
        ]
        song.instruments.append(piano)
        song.remove_invalid_notes()
        return song

    def batch_decode(self, token_ids, feature_extractor_output, return_midi: bool = True) -> BatchEncoding:  # type: ignore[override]
        """The notes of generated ids in seconds, by the beats of the recordings; and their MIDI if asked."""
        import numpy

        given = {
            key: numpy.asarray(to_python(feature_extractor_output[key]))
            for key in feature_extractor_output
            if key in ("beatsteps", "extrapolated_beatstep", "attention_mask", "attention_mask_beatsteps",
                       "attention_mask_extrapolated_beatstep")
        }  # fmt: skip
        ids = numpy.asarray(to_python(token_ids))
        count = len(given["beatsteps"])
        if "attention_mask" in given:
            ends = numpy.where(given["attention_mask"][:, 0] == 0)[0].tolist()
        else:
            ends = [len(ids)]
        if len(ends) != count or count != len(given["extrapolated_beatstep"]):
            raise TokenizerInputError(
                f"{len(ends)} recordings have {count} rows of beatsteps and"
                f" {len(given['extrapolated_beatstep'])} of extrapolated_beatstep: each needs one"
                " (a batch of several needs the attention masks too)"
            )
        notes, songs, start = [], [], 0
        for i, end in enumerate(ends):
            rows = ids[start:end]
            rows = rows[:, : numpy.max(numpy.where(rows == int(self.eos_token))[1]) + 1]
            beats = {}
            for name in ("beatsteps", "extrapolated_beatstep"):
                mask = given.get(f"attention_mask_{name}")
                beats[name] = given[name][i] if mask is None else given[name][i][mask[i] == 1]
            song = self.relative_batch_tokens_ids_to_midi(
                rows, beats["extrapolated_beatstep"], 0, self.num_bars, (self.num_bars + 1) * 4
            )
            for note in song.instruments[0].notes:
                note.start += beats["beatsteps"][0]
                note.end += beats["beatsteps"][0]
                notes.append(note)
            songs.append(song)
            start = end + 1
        return BatchEncoding({"notes": notes, **({"pretty_midi_objects": songs} if return_midi else {})})

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json; returns its path."""
        name = self.vocab_files_names["vocab"]
        path = Path(save_directory) / (f"{filename_prefix}-{name}" if filename_prefix else name)
        return (write_json(path, self.encoder),)
