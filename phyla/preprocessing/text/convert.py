"""Tokenizers from the files of other libraries: SentencePiece .model, tiktoken ranks, GGUF."""

from phyla.preprocessing.text.charsmap import charsmap_normalizer
from phyla.preprocessing.text.gguf_tokenizer import from_gguf
from phyla.preprocessing.text.sentencepiece_model import SentencePieceModel, bpe_merges, read_sentencepiece
from phyla.preprocessing.text.sentencepiece_tokenizer import from_sentencepiece, sentencepiece_core
from phyla.preprocessing.text.tiktoken_model import from_tiktoken, read_tiktoken

__all__ = [
    "SentencePieceModel",
    "bpe_merges",
    "charsmap_normalizer",
    "from_gguf",
    "from_sentencepiece",
    "from_tiktoken",
    "read_sentencepiece",
    "read_tiktoken",
    "sentencepiece_core",
]
