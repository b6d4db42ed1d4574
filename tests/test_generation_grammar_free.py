"""Grammars in free text, and with tokenizers in Python."""

import json
import re

import pytest
import torch
from test_generation_grammar import PERSON, model, tokenizer

import phyla
from phyla.errors import ArgumentError, GenerationError
from phyla.generation import Grammar
from phyla.generation.spelled import Spelled

__all__ = ["model", "tokenizer"]  # fixtures
WEATHER = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
                   "additionalProperties": False},
}  # fmt: skip
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def wish(tokenizer, text, start):
    """A processor that wants this text, and an end behind it."""
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    def want(input_ids, scores):
        place = min(input_ids.shape[1] - start, len(ids) - 1)
        scores = scores.clone()
        scores[:, ids[place]] += 50.0
        return scores

    return want


def written(model, tokenizer, grammar, text, **asked):
    prompt = torch.tensor([[40, 41, 42, 43]])
    given = {"max_new_tokens": 120, "logits_processor": [wish(tokenizer, text, 4)], **asked}
    ids = model.generate(prompt, grammar=grammar, tokenizer=tokenizer, **given)
    return tokenizer.decode(ids[0, 4:], skip_special_tokens=True)


def test_text_turns_into_a_call_at_the_trigger(model, tokenizer):
    grammar = Grammar.tools([WEATHER], most=2, trigger="<tool_call>")
    for free in ("Hello there.", "", "1 < 2, <tool>"):
        assert written(model, tokenizer, grammar, free) == free
    for asked in ({}, {"num_beams": 2}):
        text = written(model, tokenizer, grammar, "Let me see: <tool_call>Hmm.", **asked)
        assert text.startswith("Let me see: <tool_call>\n")
        found = CALL.findall(text)
        assert found
        assert all(json.loads(call)["arguments"]["city"] in ("Oslo", "Rome") for call in found)
        assert "<tool_call>" not in CALL.sub("", text)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    long = {"max_new_tokens": 250}
    assert written(model, tokenizer, grammar, f"A{call}B{call}C", **long) == f"A{call}B{call}C"
    for most in (40, 90, 120, 140):  # a call begins only where it can end
        text = written(model, tokenizer, grammar, f"A{call}B{call}C", max_new_tokens=most)
        assert text.startswith(f"A{call}" if most >= 90 else "A")
        assert "<tool_call>" not in CALL.sub("", text)
    third = written(model, tokenizer, grammar, f"{call}{call} and {call}", **long)
    assert third.startswith(f"{call}{call} and ")
    assert len(CALL.findall(third)) == 2
    with pytest.raises(ArgumentError, match="trigger must be how begin begins"):
        Grammar.tools([WEATHER], trigger="<call>")


def slow_of(tokenizer, folder):
    """The same words in a tokenizer in Python."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(backend["vocab"]))
    pairs = [m if isinstance(m, str) else " ".join(m) for m in backend["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    made = phyla.GPT2Tokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), unk_token="<end>", eos_token="<end>",
        pad_token="<pad>", bos_token="<begin>",
    )  # fmt: skip
    assert not hasattr(made, "backend_tokenizer")
    return made


def test_a_tokenizer_in_python(model, tokenizer, tmp_path):
    slow = slow_of(tokenizer, tmp_path)
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in ("<end>", "<pad>", "<begin>")}
    slow.added_tokens_decoder = {i: phyla.AddedToken(t, special=True) for t, i in ids.items()}
    prompt = torch.arange(8).view(2, 4) % 90 + 33
    for asked in ({}, {"do_sample": True, "seed": [1, 2]}, {"num_beams": 2}):
        given = {"grammar": Grammar.json(PERSON), "max_new_tokens": 70, **asked}
        ours, theirs = (model.generate(prompt, tokenizer=t, **given) for t in (slow, tokenizer))
        for row in ours[:, 4:]:
            person = json.loads(slow.decode(row, skip_special_tokens=True))
            assert set(PERSON["required"]) <= set(person)
        if not asked:
            assert torch.equal(ours, theirs)


class Pieces:
    """A vocabulary of pieces with a mark for blanks, or of parts of words."""

    eos_token_id, bos_token_id = 1, None
    all_special_ids = (1,)
    added_tokens_decoder = {}

    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def test_bytes_of_tokens():
    spelled = Spelled(Pieces("<unk>", "</s>", "\u2581the", "<0xC3>", "t", "th", "\u2581"), 9, (1,))
    assert spelled.tokens == [b"<unk>", b"</s>", b" the", b"\xc3", b"t", b"th", b" ", b"", b""]
    assert spelled.special_token_ids == [1]
    assert spelled(" theth\xc3".encode()) == [2, 5, 3]
    with pytest.raises(GenerationError, match="spaces between them"):
        Spelled(Pieces("the", "##re"), 2, (1,))
