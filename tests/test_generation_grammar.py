"""Decoding by grammars: whatever the model and the strategy, the text is one of the grammar's."""

import json
import re

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from phyla import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from phyla.errors import ArgumentError, GenerationError, MissingExtraError
from phyla.generation import Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b b"]}, "maxItems": 3},
        "home": {"type": "object", "properties": {"city": {"type": "string", "minLength": 2}},
                 "required": ["city"], "additionalProperties": False},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}  # fmt: skip
ARITHMETIC = 'start: term (("+"|"-") term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]+/'


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and some pairs of them."""
    words = {word: i for i, word in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [('"', ":"), ("Ġ", '"'), ("}", "}"), ("a", "g"), ("ag", "e"), ('"', "}"), ("t", "r"), ("1", "2")]
    for pair in merges:
        words["".join(pair)] = len(words)
    backend = Tokenizer(models.BPE(words, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend)
    made.add_special_tokens({"eos_token": "<end>", "pad_token": "<pad>", "bos_token": "<begin>"})
    return made


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts(model, tokenizer, grammar, rows=2, **settings) -> list[str]:
    prompt = torch.arange(rows * 4).view(rows, 4) % 90 + 33
    ids = model.generate(prompt, grammar=grammar, tokenizer=tokenizer, **settings)
    return tokenizer.batch_decode(ids[:, 4:], skip_special_tokens=True)


def is_person(text: str) -> bool:
    found = json.loads(text)
    rules = {
        "name": lambda v: isinstance(v, str),
        "age": lambda v: isinstance(v, int) and 0 <= v <= 120,
        "tags": lambda v: len(v) <= 3 and set(v) <= {"a", "b b"},
        "home": lambda v: set(v) == {"city"} and len(v["city"]) >= 2,
    }
    return {"name", "age", "tags"} <= set(found) and all(rules[name](value) for name, value in found.items())


def is_sum(text: str) -> bool:
    return (
        re.fullmatch(r"[0-9+()-]+", text) is not None
        and text.count("(") == text.count(")")
        and not re.search(r"[+-]$|[+-][+)-]|\(\)|\)\(|[0-9]\(|\)[0-9]|^[+-]|\([+-]", text)
    )


WORDS = ["ja", "nein", 'ein "Teil"']
GRAMMARS = {
    "schema": (lambda: Grammar.json(PERSON), is_person),
    "spaced schema": (lambda: Grammar.json(PERSON, whitespace=True), is_person),
    "any object": (Grammar.json, lambda text: isinstance(json.loads(text), dict)),
    "choices": (lambda: Grammar.choices(WORDS), set(WORDS).__contains__),
    "regex": (
        lambda: Grammar.regex(r"[a-c]{2,}-\d{3}(é|ü)?"),
        re.compile(r"[a-c]{2,}-\d{3}(é|ü)?").fullmatch,
    ),
    "ebnf": (lambda: Grammar.ebnf(ARITHMETIC), is_sum),
    "gbnf": (
        lambda: Grammar.gbnf('root ::= item (", " item)*\nitem ::= [x-z]+'),
        re.compile(r"[x-z]+(, [x-z]+)*").fullmatch,
    ),
}  # fmt: skip
STRATEGIES = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 3.0, "top_k": 0, "num_return_sequences": 4},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "grouped beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 4},
    "penalties": {"repetition_penalty": 1.3, "min_new_tokens": 1},
}


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_text_is_of_the_grammar(model, tokenizer, name, strategy) -> None:
    make, holds = GRAMMARS[name]
    torch.manual_seed(1)
    for text in texts(model, tokenizer, make(), max_new_tokens=64, **STRATEGIES[strategy]):
        assert holds(text), text


@pytest.mark.parametrize("limit", range(36, 60, 3))
def test_text_is_whole_at_any_length(model, tokenizer, limit: int) -> None:
    torch.manual_seed(limit)
    grammar = Grammar.json(PERSON)
    drawn = {"do_sample": True, "temperature": 2.0}
    for text in texts(model, tokenizer, grammar, rows=4, max_new_tokens=limit, **drawn):
        assert is_person(text), text


def test_a_length_that_is_too_short_is_an_error(model, tokenizer) -> None:
    with pytest.raises(GenerationError, match=r"at least about \d+ tokens, but at most 5.*max_new_tokens"):
        texts(model, tokenizer, PERSON, max_new_tokens=5)


def test_a_draft_changes_nothing(model, tokenizer) -> None:
    torch.manual_seed(3)
    draft = LlamaForCausalLM(model.config).eval()
    for grammar in (Grammar.json(PERSON), Grammar.ebnf(ARITHMETIC)):
        alone = texts(model, tokenizer, grammar, rows=1, max_new_tokens=50)
        assert texts(model, tokenizer, grammar, rows=1, max_new_tokens=50, assistant_model=draft) == alone


def test_rows_have_grammars_of_their_own(model, tokenizer) -> None:
    grammars = [Grammar.choices(["one", "two"]), PERSON]
    for settings in ({}, {"num_beams": 2}):
        first, second = texts(model, tokenizer, grammars, max_new_tokens=60, **settings)
        assert first in ("one", "two") and is_person(second)
    with pytest.raises(ArgumentError, match="one for each of 3 rows, but has 2"):
        texts(model, tokenizer, grammars, rows=3, max_new_tokens=60)


def test_the_likeliest_choice_is_found(model, tokenizer) -> None:
    """Beams over few choices rank them as scoring each alone does."""
    choices = ["ab", "b", "cab", "cc"]
    prompt = torch.tensor([[40, 50, 60]])
    found = model.generate(
        prompt, grammar=Grammar.choices(choices), tokenizer=tokenizer, max_new_tokens=8, num_beams=6,
        num_return_sequences=4, length_penalty=0.0, return_dict_in_generate=True, output_scores=True,
        early_stopping="never",
    )  # fmt: skip
    ranked = tokenizer.batch_decode(found.sequences[:, 3:], skip_special_tokens=True)

    @torch.inference_mode()
    def chance(text: str) -> float:
        ids = torch.tensor([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        whole = torch.cat([prompt[0], ids])[None]
        scores = model(whole).logits[0, 2:-1].log_softmax(-1)
        return float(scores.gather(1, ids[:, None]).sum())

    assert ranked == sorted(choices, key=chance, reverse=True)


def test_tool_calls(model, tokenizer) -> None:
    def weather(city: str, days: int = 1) -> str:
        """Look up the weather.

        Args:
            city: which city
            days: how many days
        """
        return city * days

    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    clock = {"type": "function", "function": {"name": "clock", "parameters": nothing}}
    grammar = Grammar.tools([weather, clock], most=2)
    for text in texts(model, tokenizer, grammar, max_new_tokens=150, do_sample=True, num_return_sequences=3):
        calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text)
        assert 1 <= len(calls) <= 2, text
        for call in map(json.loads, calls):
            assert call["name"] in ("weather", "clock") and isinstance(call["arguments"], dict)
            assert call["name"] == "clock" or isinstance(call["arguments"]["city"], str)


FAULTS = {
    "regex": (lambda: Grammar.regex("(a"), GenerationError, "regex '\\(a' is no grammar.*unclosed group"),
    "schema": (lambda: Grammar.json({"type": "strin"}), GenerationError, "JSON Schema is no grammar.*strin"),
    "schema text": (lambda: Grammar.json("{"), GenerationError, "is not JSON"),
    "schema kind": (lambda: Grammar.json(3), ArgumentError, "but is a int"),
    "ebnf": (lambda: Grammar.ebnf("start: missing"), GenerationError, "EBNF is no grammar.*missing"),
    "gbnf": (lambda: Grammar.gbnf('root ::= "a'), GenerationError, "GBNF is no grammar"),
    "choices": (lambda: Grammar.choices([]), ArgumentError, "at least one text"),
    "tools": (lambda: Grammar.tools([3]), ArgumentError, "a function or a schema"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name) -> None:
    make, kind, message = FAULTS[name]
    with pytest.raises(kind, match=f"(?s){message}"):
        make()


def test_what_a_call_lacks_is_named(model, tokenizer) -> None:
    prompt = torch.tensor([[40, 50]])
    with pytest.raises(GenerationError, match="needs the model's tokenizer"):
        model.generate(prompt, grammar=PERSON, max_new_tokens=60)
    with pytest.raises(GenerationError, match="needs an eos_token_id"):
        bare = LlamaForCausalLM(LlamaConfig(**{**model.config.to_dict(), "eos_token_id": None}))
        bare.generate(prompt, grammar=PERSON, tokenizer=tokenizer, max_new_tokens=60)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"phyla\[grammar\]"):
        Grammar.choices(["a"])
