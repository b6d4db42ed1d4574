"""Streamed text: settled, whole, for one row and many; stop strings over the borders of tokens."""

import asyncio
import queue
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import FixedScores, TinyDecoder

import phyla.generation as g
from phyla.errors import ArgumentError, GenerationError, NonFiniteLogitsError
from phyla.generation import generate
from phyla.generation.streaming import SettledText


class Bytes:
    """A tokenizer of single bytes: token id = byte, 256 a special token."""

    clean_up_tokenization_spaces = False

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        out, run = "", []
        for i in [*ids, None]:
            if i is None or i >= 256:
                out, run = out + bytes(run).decode("utf-8", errors="replace"), []
                out += "" if skip_special_tokens or i is None else "<end>"
            else:
                run.append(i)
        return out


class Pieces:
    """A tokenizer of words: a piece starting with _ begins a word; the first blank of a text is dropped."""

    def __init__(self, pieces, tidies=False):
        self.pieces, self.clean_up_tokenization_spaces = pieces, tidies

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        text = "".join(self.pieces[i] for i in ids).replace("_", " ")
        text = text[1:] if text.startswith(" ") else text
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        if clean_up_tokenization_spaces:
            for loose, tight in ((" .", "."), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 's", "'s")):
                text = text.replace(loose, tight)
        return text


def streamed(decode, ids, tidies=False):
    text = SettledText(decode, tidies)
    pieces = [text.add([i]) for i in ids]
    return pieces, text.flush()


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=80)


@given(texts)
def test_pieces_are_whole_characters_and_make_up_the_text(text):
    pieces, rest = streamed(Bytes().decode, Bytes().encode(text))
    assert "".join(pieces) + rest == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in p for p in pieces)
        assert rest == "", "nothing is held back that is settled"


@given(st.lists(st.integers(0, 255), max_size=120))
def test_bytes_that_are_no_text_are_streamed_too(ids):
    pieces, rest = streamed(Bytes().decode, ids)
    assert "".join(pieces) + rest == Bytes().decode(ids)


WORDS = [
    "_the",
    "_a",
    "_cat",
    "s",
    "_.",
    "_,",
    "_do",
    "_n't",
    "_'",
    "_s",
    "_'s",
    "_it",
    "ing",
    "_",
    "\n",
    "x",
]


@given(st.lists(st.integers(0, len(WORDS) - 1), max_size=100))
def test_words_are_streamed_as_they_come(ids):
    tokenizer = Pieces(WORDS)
    pieces, rest = streamed(tokenizer.decode, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)
    assert rest == ""


@given(st.lists(st.sampled_from([i for i, w in enumerate(WORDS) if w not in ("_", "\n")]), max_size=100))
def test_the_last_word_waits_where_spaces_are_tidied(ids):
    tokenizer = Pieces(WORDS, tidies=True)
    pieces, rest = streamed(tokenizer.decode, ids, tidies=True)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_the_work_of_a_step_does_not_grow():
    lengths = []

    def decode(ids):
        lengths.append(len(ids))
        return Bytes().decode(ids)

    text = ("a long answer, of wörds and 漢字 " * 40).encode()
    pieces, rest = streamed(decode, list(text))
    assert ("".join(pieces) + rest).encode() == text
    assert max(lengths) < 60


def bytes_model(text):
    """A model that says the bytes of `text` one after the other, then 256 (row: by the last id)."""
    ids = [*text.encode(), 256]
    assert len(set(ids)) == len(ids)
    table = torch.zeros(257, 257)
    for a, b in zip([0, *ids], ids):
        table[a, b] = 9.0
    return FixedScores(table)


class Collect(g.TextStreamer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pieces = []

    def on_finalized_text(self, text, stream_end=False):
        self.pieces.append((text, stream_end))


def test_a_stream_of_one_row():
    streamer = Collect(Bytes(), skip_prompt=True, skip_special_tokens=True)
    model = bytes_model("aé漢z")
    generate(model, torch.tensor([[0]]), max_new_tokens=20, eos_token_id=256, streamer=streamer)
    assert streamer.pieces == [("a", False), ("é", False), ("漢", False), ("z", False), ("", True)]
    streamer.pieces.clear()
    generate(model, torch.tensor([[0]]), max_new_tokens=3, streamer=streamer)
    assert "".join(t for t, _ in streamer.pieces) == "aé", "a streamer serves several calls"


def test_the_prompt_is_streamed_unless_skipped():
    streamer = Collect(Bytes(), skip_special_tokens=True)
    model = bytes_model("abc")
    generate(model, torch.tensor([[88, 0]]), max_new_tokens=2, streamer=streamer)
    assert "".join(t for t, _ in streamer.pieces) == "X\0ab"


def test_printing_goes_to_standard_output(capsys):
    generate(
        bytes_model("abc"),
        torch.tensor([[0]]),
        max_new_tokens=3,
        streamer=g.TextStreamer(Bytes(), skip_prompt=True),
    )
    assert capsys.readouterr().out == "abc\n"


def test_rows_of_a_batch_are_streamed_each_for_itself(capsys):
    table = torch.zeros(257, 257)
    for a, b in zip("kabx", "abx\0"):
        table[ord(a), ord(b)] = 9.0
    for a, b in zip("lpq", "pq\0"):
        table[ord(a), ord(b)] = 9.0
    model, ids = FixedScores(table), torch.tensor([[ord("k")], [ord("l")]])
    asked = {"max_new_tokens": 9, "eos_token_id": 0, "pad_token_id": ord("!")}
    seen = []
    on_text = lambda row, text, end: seen.append((row, text, end))  # noqa: E731
    generate(model, ids, streamer=g.TextStreamer(Bytes(), skip_prompt=True, on_text=on_text), **asked)
    for row, want in ((0, "abx\0"), (1, "pq\0")):
        mine = [s for s in seen if s[0] == row]
        assert "".join(t for _, t, _ in mine) == want, "and no padding"
        assert [e for _, _, e in mine] == [False] * (len(mine) - 1) + [True]
    generate(model, ids, streamer=g.TextStreamer(Bytes(), skip_prompt=True), **asked)
    assert capsys.readouterr().out == "[1] pq\0\n[0] abx\0\n"
    streamer = g.TextIteratorStreamer(Bytes(), skip_prompt=True)
    generate(model, ids, streamer=streamer, **asked)
    pieces = list(streamer)
    assert "".join(p for p in pieces if p.row == 0) == "abx\0"
    assert "".join(p for p in pieces if p.row == 1) == "pq\0"


def test_several_sequences_of_one_prompt_are_rows():
    streamer = g.TextIteratorStreamer(Bytes())
    model = TinyDecoder(vocabulary=100)
    out = generate(
        model,
        torch.tensor([[70, 71]]),
        max_new_tokens=5,
        do_sample=True,
        num_return_sequences=3,
        seed=1,
        streamer=streamer,
    )
    pieces = list(streamer)
    for row in range(3):
        assert "".join(p for p in pieces if p.row == row) == Bytes().decode(out[row].tolist())


def test_any_object_with_put_and_end_is_a_streamer():
    class Plain:
        def __init__(self):
            self.values, self.ended = [], 0

        def put(self, value):
            self.values.append(value)

        def end(self):
            self.ended += 1

    streamer, ids = Plain(), torch.tensor([[4, 5], [6, 7]])
    out = generate(TinyDecoder(), ids, max_new_tokens=3, streamer=streamer)
    assert torch.equal(streamer.values[0], ids)
    assert [v.shape for v in streamer.values[1:]] == [(2,)] * 3
    assert torch.equal(torch.stack(streamer.values[1:], 1), out[:, 2:])
    assert streamer.ended == 1


def test_iteration_in_another_thread():
    streamer = g.TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=30, skip_special_tokens=True)
    arguments = {"max_new_tokens": 20, "eos_token_id": 256, "streamer": streamer}
    thread = threading.Thread(
        target=generate, args=(bytes_model("aé漢z"), torch.tensor([[0]])), kwargs=arguments
    )
    thread.start()
    assert list(streamer) == ["a", "é", "漢", "z"]
    thread.join()


def test_iteration_ends_with_the_error_of_the_call():
    streamer = g.TextIteratorStreamer(Bytes(), skip_prompt=True, timeout=30)
    model = FixedScores(torch.tensor([float("nan")] * 4))
    with pytest.raises(NonFiniteLogitsError):
        generate(model, torch.tensor([[0]]), max_new_tokens=2, streamer=streamer)
    with pytest.raises(NonFiniteLogitsError):
        next(streamer)


def test_waiting_for_text_has_an_end():
    streamer = g.TextIteratorStreamer(Bytes(), timeout=0.01)
    with pytest.raises(queue.Empty, match="no text came within"):
        next(streamer)


def test_asynchronous_iteration():
    async def read(timeout, run):
        streamer = g.AsyncTextIteratorStreamer(
            Bytes(), skip_prompt=True, timeout=timeout, skip_special_tokens=True
        )
        thread = threading.Thread(target=run, args=(streamer,))
        thread.start()
        pieces = [p async for p in streamer]
        thread.join()
        return pieces

    def good(streamer):
        generate(
            bytes_model("aé漢z"), torch.tensor([[0]]), max_new_tokens=20, eos_token_id=256, streamer=streamer
        )

    def bad(streamer):
        with pytest.raises(NonFiniteLogitsError):
            generate(
                FixedScores(torch.full((4,), torch.nan)),
                torch.tensor([[0]]),
                max_new_tokens=2,
                streamer=streamer,
            )

    assert asyncio.run(read(30, good)) == ["a", "é", "漢", "z"]
    with pytest.raises(NonFiniteLogitsError):
        asyncio.run(read(30, bad))
    with pytest.raises(TimeoutError):
        asyncio.run(read(0.01, lambda streamer: None))


def test_a_step_must_have_a_token_for_each_row():
    streamer = Collect(Bytes())
    streamer.put(torch.tensor([[4], [5]]))
    with pytest.raises(ArgumentError, match="one token for each of 2 rows, not 3"):
        streamer.put(torch.tensor([1, 2, 3]))


@given(texts.filter(len), st.data())
def test_stop_strings_are_found_when_they_are_complete_and_not_before(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    stop = text[start : start + data.draw(st.integers(1, 6))]
    criterion = g.StopStringCriteria(Bytes(), stop)
    ids = Bytes().encode(text)
    first = next(n for n in range(1, len(ids) + 1) if stop in bytes(ids[:n]).decode(errors="ignore"))
    for n in range(1, first + 1):
        assert criterion.completes(ids[:n]) == (n == first)


PIECES = ["</", "s", ">", "x</s>y", "</s", ">>", " ", "a</", "stop"]


@given(st.lists(st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=9), min_size=1, max_size=3),
       st.lists(st.sampled_from(["</s>", "stop", ">", "</s></s>"]), min_size=1, max_size=2))  # fmt: skip
def test_stop_strings_over_the_borders_of_tokens(rows, stops):
    width = max(map(len, rows))
    ids = torch.tensor([[6] * (width - len(r)) + r for r in rows])
    got = g.StopStringCriteria(Pieces(PIECES), stops)(ids, None)
    for row, done in zip(ids.tolist(), got.tolist()):
        text, before = ("".join(PIECES[i] for i in r) for r in (row, row[:-1]))
        ends = [i + len(s) for s in stops for i in range(len(text)) if text.startswith(s, i)]
        assert done == any(e > len(before) for e in ends)


def test_generation_stops_at_a_string_split_over_tokens():
    asked = {"max_new_tokens": 20, "tokenizer": Bytes(), "pad_token_id": 256}
    table = torch.zeros(257, 257)
    for a, b in zip("0abcdefgh", "abcdefghi"):
        table[ord(a), ord(b)] = 9.0
    out = generate(FixedScores(table), torch.tensor([[ord("0")]]), stop_strings=["cde", "zz"], **asked)
    assert bytes(out[0].tolist()) == b"0abcde"
    rows = torch.tensor([[ord("0")], [ord("c")]])
    out = generate(FixedScores(table), rows, stop_strings="de", **asked)
    assert out.tolist() == [[*b"0abcde"], [*b"cde", 256, 256, 256]]


def test_a_stop_string_of_the_prompt_does_not_stop_but_may_begin_there():
    table = torch.zeros(257, 257)
    for a, b in zip("cabdefg", "abdefgh"):
        table[ord(a), ord(b)] = 9.0
    model, tokenizer = FixedScores(table), Bytes()
    out = generate(
        model, torch.tensor([[*b"xyabc"]]), max_new_tokens=4, stop_strings="xy", tokenizer=tokenizer
    )
    assert out.shape == (1, 9)
    out = generate(
        model, torch.tensor([[*b"xyabc"]]), max_new_tokens=4, stop_strings="cab", tokenizer=tokenizer
    )
    assert bytes(out[0].tolist()) == b"xyabcab"


def test_criteria_by_themselves():
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    assert g.MaxLengthCriteria(3)(ids, None).tolist() == [True, True]
    assert g.MaxLengthCriteria(4)(ids, None).tolist() == [False, False]
    assert g.EosTokenCriteria([4, 9])(ids, None).tolist() == [False, True]
    assert g.EosTokenCriteria(3)(ids, None).tolist() == [True, False]
    assert g.MaxTimeCriteria(0.0, initial_timestamp=0.0)(ids, None).all()
    assert not g.MaxTimeCriteria(1000.0)(ids, None).any()
    both = g.StoppingCriteriaList([g.MaxLengthCriteria(9), g.EosTokenCriteria(4)])
    assert both(ids, None).tolist() == [False, True]
    assert both.max_length == 9
    scores = (torch.tensor([[0.0, 0, 0, 9, 0], [0, 0, 0, 0, 0]]),)
    assert g.ConfidenceCriteria(0.5)(ids, scores).tolist() == [False, True]
    assert g.StoppingCriteriaList([lambda i, s: False, lambda i, s: torch.tensor([[True], [False]])])(
        ids
    ).tolist() == [True, False]
    with pytest.raises(GenerationError, match="max_time"):
        g.MaxTimeCriteria(-1)
    with pytest.raises(GenerationError, match="tokenizer"):
        g.StopStringCriteria(None, "x")


@settings(max_examples=10)
@given(st.integers(1, 4))
def test_streaming_does_not_change_the_tokens(rows):
    ids = torch.arange(rows * 3).reshape(rows, 3) + 4
    model = TinyDecoder(vocabulary=40)
    want = generate(model, ids, max_new_tokens=6)
    streamer = g.TextStreamer(Bytes(), on_text=lambda row, text, end: None)
    assert torch.equal(generate(model, ids, max_new_tokens=6, streamer=streamer), want)
