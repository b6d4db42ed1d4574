"""Tokenizers: properties on any text, bad files and bad input, the public call surface beyond the
recordings.
"""

import copy
import json
import pickle
import subprocess
import sys
import tarfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import phyla
from phyla.errors import MissingFileError, TokenizerFileError, TokenizerInputError, UnknownArgumentError

PACKED = Path(__file__).parent / "goldens" / "tokenizers"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDS = st.lists(
    st.sampled_from(["the", "old", "river", "naïve", "東京", "x9", "don't", "\n", "👍🏽"]), max_size=30
).map(" ".join)
few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a packed class: `folder("BertTokenizer", "saved")`."""
    root = tmp_path_factory.mktemp("tokenizers")

    def unpack(name: str, part: str = "saved") -> Path:
        if not (root / name).exists():
            with tarfile.open(PACKED / f"{name}.tar.xz") as packed:
                packed.extractall(root, filter="data")
        return root / name / part

    return unpack


@pytest.fixture(scope="module")
def load(folder):
    """The tokenizer of a packed class, loaded once."""
    kept = {}

    def get(name: str, part: str = "saved"):
        if (name, part) not in kept:
            kept[name, part] = getattr(phyla, name.split("@")[0]).from_pretrained(folder(name, part))
        return kept[name, part]

    return get


@pytest.fixture
def edited(folder, tmp_path):
    """A copy of a folder with one JSON file changed by a function, or replaced by text."""

    def edit(
        change=None, file="tokenizer.json", text=None, name="PreTrainedTokenizerFast@llama3", part="saved"
    ) -> Path:
        target = tmp_path / "edited"
        target.mkdir(exist_ok=True)
        for path in folder(name, part).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        if change is not None:
            data = json.loads((target / file).read_text(encoding="utf-8"))
            change(data)
            text = json.dumps(data)
        if text is not None:
            (target / file).write_text(text, encoding="utf-8")
        return target

    return edit


# ---------------------------------------------------------------------- any text


@few
@given(TEXT)
@pytest.mark.parametrize(
    "name",
    [
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "RobertaTokenizerFast",
        "BloomTokenizerFast",
        "PreTrainedTokenizerFast@falcon",
    ],
)
def test_byte_level_round_trip(load, name, text):
    tokenizer = load(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = text.replace("  ", "") == text or "Bloom" not in name
    assert not kept or tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@few
@given(TEXT)
def test_composed_text_comes_back_from_qwen2(load, text):
    for name in ("Qwen2Tokenizer", "Qwen2TokenizerFast"):
        tokenizer = load(name)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == unicodedata.normalize("NFC", text)


@few
@given(TEXT | WORDS)
@pytest.mark.parametrize("family", ["GPT2", "Qwen2", "Llama", "Bart"])
def test_python_and_rust_give_the_same_ids(load, family, text):
    slow, fast = load(f"{family}Tokenizer"), load(f"{family}TokenizerFast")
    if family == "Llama" and not text:
        return
    assert slow(text)["input_ids"] == fast(text)["input_ids"]


@few
@given(st.lists(WORDS, min_size=1, max_size=5), st.sampled_from(["left", "right"]))
@pytest.mark.parametrize("name", ["BertTokenizer", "BertTokenizerFast", "T5Tokenizer", "T5TokenizerFast"])
def test_a_padded_batch_holds_the_single_texts(load, name, texts, side):
    tokenizer = load(name)
    batch = tokenizer(texts, padding=True, padding_side=side)
    assert len({len(row) for row in batch["input_ids"]}) == 1
    for text, row, mask in zip(texts, batch["input_ids"], batch["attention_mask"], strict=True):
        assert [token for token, real in zip(row, mask, strict=True) if real] == tokenizer(text)["input_ids"]
        assert mask == sorted(mask, reverse=side == "right")


@few
@given(WORDS, st.integers(4, 12), st.integers(0, 1))
@pytest.mark.parametrize("name", ["BertTokenizerFast", "LlamaTokenizerFast"])
def test_overflow_windows_cover_the_text(load, name, text, length, stride):
    tokenizer = load(name)
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = tokenizer(
        text,
        max_length=length,
        stride=stride,
        truncation=True,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
    )
    joined = []
    for ids, special in zip(parts["input_ids"], parts["special_tokens_mask"], strict=True):
        assert len(ids) <= length
        window = [token for token, mark in zip(ids, special, strict=True) if not mark]
        joined += window if not joined else window[stride:]
    assert joined == whole
    assert set(parts["overflow_to_sample_mapping"]) == {0}


@few
@given(WORDS, WORDS, st.integers(5, 20), st.sampled_from(["longest_first", "only_first", "only_second"]))
def test_python_and_rust_cut_pairs_alike(load, first, second, length, strategy):
    slow, fast = load("BertTokenizer"), load("BertTokenizerFast")
    sizes = [len(slow(text, add_special_tokens=False)["input_ids"]) for text in (first, second)]
    over = sum(sizes) + 3 - length
    if strategy != "longest_first" and over >= sizes[strategy == "only_second"]:
        return  # cutting one sequence cannot make it fit
    options = {"truncation": strategy, "max_length": length}
    one, other = slow(first, second, **options), fast(first, second, **options)
    if strategy == "longest_first":  # of two equally long sequences each side cuts another first
        assert len(one["input_ids"]) == len(other["input_ids"]) <= length
    else:
        assert dict(one) == dict(other)


@few
@given(WORDS)
def test_offsets_and_words_point_into_the_text(load, text):
    encoding = load("BertTokenizerFast")(text, return_offsets_mapping=True)
    for i, (start, end) in enumerate(encoding["offset_mapping"]):
        assert 0 <= start <= end <= len(text)
        if encoding.word_ids()[i] is not None:
            assert encoding.char_to_token(start) == i
            assert encoding.token_to_chars(i) == (start, end)


@few
@given(st.lists(st.sampled_from(["<x>", "New Token", "[Y]", "zz"]), unique=True, max_size=4), WORDS)
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "BertTokenizerFast"])
def test_added_tokens_survive_a_save(folder, tmp_path_factory, name, tokens, text):
    tokenizer = getattr(phyla, name).from_pretrained(folder(name))
    before = len(tokenizer)
    assert tokenizer.add_tokens(tokens) == len(tokenizer) - before
    again = type(tokenizer).from_pretrained(_saved(tokenizer, tmp_path_factory))
    full = " ".join([text, *tokens])
    assert again(full)["input_ids"] == tokenizer(full)["input_ids"]
    assert again.get_added_vocab() == tokenizer.get_added_vocab()


def _saved(tokenizer, factory) -> Path:
    target = factory.mktemp("saved")
    tokenizer.save_pretrained(target)
    return target


# ---------------------------------------------------------------------- bad files (reliability table C2)


def test_cut_json_names_the_place(edited, folder):
    text = (folder("PreTrainedTokenizerFast@llama3") / "tokenizer.json").read_text(encoding="utf-8")
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json is not valid JSON.*column"):
        phyla.AutoTokenizer.from_pretrained(edited(text=text[:199]))


def _added(**changes):
    """A change of tokenizer.json that adds a token like its first, but for the changes."""
    return lambda d: d["added_tokens"].append({**d["added_tokens"][0], "content": "<other>", **changes})


BAD_FILES = {
    "unknown model type": (lambda d: d["model"].update(type="BPX"), "/model/type .*'BPX'.*'BPE'"),
    "two tokens with one id": (
        lambda d: d["model"]["vocab"].update(zzz=5),
        "/model/vocab .*'zzz' the same id 5",
    ),
    "negative id": (lambda d: d["model"]["vocab"].update(zzz=-5), "/model/vocab/zzz .*-5"),
    "vocabulary is text": (lambda d: d["model"].update(vocab="x"), "tokenizer.json"),
    "added token shares an id": (
        _added(),
        "/added_tokens .*same id",
    ),
    "added token takes a vocabulary id": (
        _added(id=7),
        "/added_tokens/.*same id 7",
    ),
    "added token id too large": (
        _added(id=2**31),
        "/added_tokens/.*/id",
    ),
    "added token without content": (
        lambda d: d["added_tokens"].append({"id": 900}),
        "/added_tokens/.*content",
    ),
    "invalid pattern": (lambda d: d.update(pre_tokenizer=_split("(a")), "/pre_tokenizer/pattern/Regex"),
    "endless pattern": (
        lambda d: d.update(pre_tokenizer=_split("a" * 9_000)),
        "/pre_tokenizer/pattern/Regex .*9000",
    ),
}


def _split(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_tokenizer_json(edited, case):
    change, message = BAD_FILES[case]
    with pytest.raises(TokenizerFileError, match=message):
        phyla.AutoTokenizer.from_pretrained(edited(change))


@pytest.mark.parametrize("text", ["[" * 10_000, '{"model": ' + "[" * 50_000 + "]" * 50_000 + "}"])
def test_deep_nesting(edited, text):
    with pytest.raises(TokenizerFileError, match=r"tokenizer\.json"):
        phyla.AutoTokenizer.from_pretrained(edited(text=text))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(?:(?:x{1,100}){1,100}){1,100}"])
def test_catastrophic_pattern_is_never_more_than_an_error(edited, pattern):
    tokenizer = phyla.AutoTokenizer.from_pretrained(edited(lambda d: d.update(pre_tokenizer=_split(pattern))))
    try:
        tokenizer("a" * 60 + "b")
    except TokenizerFileError as error:
        assert "exponential time" in str(error)
    assert tokenizer("hello")["input_ids"]


BAD_CONFIGS = {
    "unknown class": ({"tokenizer_class": "os.system"}, "tokenizer_class 'os.system'"),
    "misspelt class": ({"tokenizer_class": "LlammaTokenizer"}, "tokenizer_class .*'LlamaTokenizer"),
    "class is a list": ({"tokenizer_class": ["x"]}, "tokenizer_class must be a string"),
    "special token is a list": ({"eos_token": ["</s>"]}, "eos_token must be a string"),
    "special token list of numbers": (
        {"additional_special_tokens": [1]},
        "additional_special_tokens must be a list",
    ),
    "length is text": ({"model_max_length": "long"}, "model_max_length must be a number"),
    "added token id": (
        {"added_tokens_decoder": {"x": {"content": "a"}}},
        "added_tokens_decoder has the id 'x'",
    ),
    "one token, two ids": (
        {"added_tokens_decoder": {"1": {"content": "a"}, "2": {"content": "a"}}},
        "added_tokens_decoder gives 'a' two ids",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_tokenizer_config(edited, case):
    change, message = BAD_CONFIGS[case]
    with pytest.raises(TokenizerFileError, match=f"tokenizer_config.json: {message}"):
        phyla.AutoTokenizer.from_pretrained(edited(lambda d: d.update(change), file="tokenizer_config.json"))


def test_garbage_sentencepiece_model(edited):
    bad = edited(name="LlamaTokenizer", part="raw")
    (bad / "tokenizer.model").write_bytes(b"garbage" * 100)
    for fast in (True, False):
        with pytest.raises(TokenizerFileError, match=r"tokenizer\.model is not a SentencePiece file"):
            phyla.AutoTokenizer.from_pretrained(bad, use_fast=fast)


def test_bad_vocabulary_files(edited):
    bad = edited(lambda d: d.update(zz=3), file="vocab.json", name="GPT2Tokenizer", part="raw")
    with pytest.raises(TokenizerFileError, match=r"vocab\.json gives .*'zz' the same id 3"):
        phyla.GPT2Tokenizer.from_pretrained(bad)
    bad = edited(file="merges.txt", text="#version: 0.2\na b c\n", name="GPT2Tokenizer", part="raw")
    with pytest.raises(TokenizerFileError, match=r"merges\.txt, line 2"):
        phyla.GPT2Tokenizer.from_pretrained(bad)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(MissingFileError, match=r"vocab\.txt"):
        phyla.BertTokenizer.from_pretrained(folder("LlamaTokenizer", "raw"))
    with pytest.raises(TokenizerFileError, match=r"tokenizer_config\.json"):
        phyla.AutoTokenizer.from_pretrained(tmp_path)


# ---------------------------------------------------------------------- bad input

KINDS = [
    "BertTokenizer",
    "BertTokenizerFast",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
]


@pytest.mark.parametrize("name", KINDS)
def test_bad_text_is_located(load, name):
    tokenizer = load(name)
    with pytest.raises(TokenizerInputError, match=r"U\+D800\) at index 2"):
        tokenizer("ab\ud800c")
    with pytest.raises(TokenizerInputError, match="None"):
        tokenizer(None)
    with pytest.raises(TypeError, match=r"text\[1\] must be a string, but is None"):
        tokenizer(["a", None])
    with pytest.raises(ValueError, match="must be a string"):
        tokenizer(5)


@pytest.mark.parametrize("name", KINDS)
def test_ids_outside_the_vocabulary(load, name):
    tokenizer = load(name)
    for bad in (-1, len(tokenizer), 10**12):
        with pytest.raises(IndexError, match=str(bad)):
            tokenizer.decode([5, bad])
        assert tokenizer.decode([5, bad], skip_invalid=True) == tokenizer.decode([5])
    with pytest.raises(TokenizerInputError):
        tokenizer.decode([1.5])


@pytest.mark.parametrize("name", KINDS)
def test_unknown_arguments_name_the_nearest(load, name):
    with pytest.raises(UnknownArgumentError, match="'truncation'"):
        load(name)("a", truncatoin=True)
    with pytest.raises(UnknownArgumentError, match="'skip_special_tokens'"):
        load(name).decode([5], skip_special_token=True)
    with pytest.raises(ValueError, match="'max_length'"):
        load(name)("a", padding="maxlength")


@pytest.mark.parametrize(
    "name", ["BertTokenizerFast", "BertTokenizer", "Qwen2TokenizerFast", "GPT2Tokenizer", "T5Tokenizer"]
)
@pytest.mark.parametrize(
    "text", ["a" + "\u0301" * 10**5, "x" * 10**5, " " * 10**5], ids=["marks", "word", "spaces"]
)
def test_long_texts_end(load, name, text):
    # Work that grows with the square of the length would hold the run up for hours.
    load(name)(text)


# ---------------------------------------------------------------------- beyond the recordings


def test_import_and_use_load_neither_torch_nor_numpy(folder):
    code = (
        "import sys, phyla\n"
        f"t = phyla.AutoTokenizer.from_pretrained({str(folder('LlamaTokenizerFast'))!r})\n"
        "assert t.decode(t('hello there')['input_ids'], skip_special_tokens=True) == 'hello there'\n"
        "assert not {'torch', 'numpy', 'sentencepiece', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_tokenizer_json_alone_is_enough(folder, tmp_path):
    source = folder("GPT2TokenizerFast") / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(source.read_bytes())
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = phyla.AutoTokenizer.from_pretrained(place)
        assert type(tokenizer) is phyla.PreTrainedTokenizerFast
        assert (
            tokenizer("hello there")["input_ids"]
            == phyla.GPT2TokenizerFast.from_pretrained(source.parent)("hello there")["input_ids"]
        )


def test_switching_special_tokens_later(load, folder):
    tokenizer = phyla.LlamaTokenizerFast.from_pretrained(folder("LlamaTokenizerFast"))
    plain = tokenizer("hi", add_special_tokens=False)["input_ids"]
    tokenizer.add_bos_token, tokenizer.add_eos_token = False, True
    assert tokenizer("hi")["input_ids"] == [*plain, tokenizer.eos_token_id]


class Letters(phyla.PreTrainedTokenizer):
    """One token a letter."""

    vocab_files_names = {"letters_file": "letters.txt"}

    def __init__(self, letters_file=None, letters=None, **settings):
        self.letters = letters or Path(letters_file).read_text(encoding="utf-8")
        super().__init__(letters_file=letters_file, **settings)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return {**{letter: i for i, letter in enumerate(self.letters)}, **self.added_tokens_encoder}

    def _tokenize(self, text):
        return list(text)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = Path(save_directory) / "letters.txt"
        path.write_text(self.letters, encoding="utf-8")
        return (str(path),)


def test_a_python_tokenizer_of_ones_own(tmp_path):
    tokenizer = Letters(letters="abc ?", unk_token="?", pad_token="<pad>")
    assert tokenizer("cab x<pad>")["input_ids"] == [2, 0, 1, 3, 4, 5]
    assert tokenizer.decode([2, 0, 1]) == "cab"
    tokenizer.save_pretrained(tmp_path)
    again = Letters.from_pretrained(tmp_path)
    assert again(["a", "bb"], padding=True)["input_ids"] == [[0, 5], [1, 1]]
    phyla.AutoTokenizer.register("letters", slow_tokenizer_class=Letters, exist_ok=True)
    assert type(phyla.AutoTokenizer.from_pretrained(tmp_path)) is Letters


@pytest.mark.parametrize(
    "name", ["GPT2TokenizerFast", "BertTokenizerFast", "T5TokenizerFast", "PreTrainedTokenizerFast@wordlevel"]
)
def test_training_a_new_vocabulary(load, tmp_path, name):
    tokenizer = load(name)
    texts = ["the quick brown fox jumps over the lazy dog", "the old river runs by the town"] * 20
    new = tokenizer.train_new_from_iterator(iter(texts), vocab_size=300, new_special_tokens=["<new>"])
    assert type(new) is type(tokenizer)
    assert len(new) <= 300 + 110
    assert new.tokenize("the river <new>")[-1] == "<new>"
    assert new.eos_token == tokenizer.eos_token
    assert new.unk_token == tokenizer.unk_token
    text = "the old dog runs"
    assert new.decode(new(text)["input_ids"], skip_special_tokens=True) == text
    new.save_pretrained(tmp_path)
    assert type(new).from_pretrained(tmp_path)(text)["input_ids"] == new(text)["input_ids"]


def test_tensors(load):
    tokenizer = load("BertTokenizerFast")
    batch = tokenizer(["a", "a b c"], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 5)
    assert batch.to("cpu") is batch
    assert tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) == ["a", "a b c"]
    padded = tokenizer.pad([{"input_ids": [5]}, {"input_ids": [5, 6, 7]}], return_tensors="np")
    assert padded["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    with pytest.raises(ValueError, match="padding=True"):
        tokenizer(["a", "a b c"], return_tensors="pt")


@pytest.mark.parametrize(
    "name",
    ["GPT2Tokenizer", "BertTokenizerFast", "LlamaTokenizer", "T5TokenizerFast", "MBart50TokenizerFast"],
)
def test_copies_and_pickles_are_independent(load, name):
    tokenizer = load(name)
    ids = tokenizer("the old river <x>")["input_ids"]
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301 - our own bytes
        assert type(twin) is type(tokenizer)
        assert twin("the old river <x>")["input_ids"] == ids
        twin.add_tokens(["<x>"])
        assert "<x>" in twin.get_vocab()
        assert "<x>" not in tokenizer.get_vocab()


def test_threads_may_share_a_tokenizer(load):
    tokenizer = load("BertTokenizerFast")

    def lengths(count: int) -> set[int]:
        options = {"truncation": True, "padding": "max_length", "max_length": 4 + count}
        return {
            len(row) for _ in range(50) for row in tokenizer(["river " * count] * 3, **options)["input_ids"]
        }

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lengths, range(1, 9))) == [{4 + count} for count in range(1, 9)]


def test_languages_of_a_translation_tokenizer(folder):
    tokenizer = phyla.MBart50TokenizerFast.from_pretrained(
        folder("MBart50TokenizerFast"), src_lang="de_DE", tgt_lang="fr_XX"
    )
    inputs = tokenizer("ein Fluss", text_target="une rivière")
    assert tokenizer.convert_ids_to_tokens(inputs["input_ids"])[0] == "de_DE"
    assert tokenizer.convert_ids_to_tokens(inputs["labels"])[0] == "fr_XX"
    tokenizer.src_lang = "cs_CZ"
    assert tokenizer.convert_ids_to_tokens(tokenizer("řeka")["input_ids"])[0] == "cs_CZ"
    with pytest.raises(TokenizerInputError, match="src_lang must be a language code, but is 'de_DF'"):
        phyla.MBart50TokenizerFast.from_pretrained(folder("MBart50TokenizerFast"), src_lang="de_DF")


def test_every_public_name_of_the_table_is_there():
    from phyla.preprocessing._names import NAMES
    from phyla.preprocessing.text.classes import TOKENIZERS

    assert set(TOKENIZERS) <= set(NAMES)
    for name in NAMES:
        assert getattr(phyla, name).__name__ == name or name == "SpecialTokensMixin"
