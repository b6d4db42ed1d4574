"""Word tokenizers on Rust."""

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors

from . import backends
from .fast_kinds import TableFast
from .word_end import END_OF_WORD


def _word_bpe(owner, settings: dict) -> Tokenizer:
    model, _ = backends.bpe(settings, owner, unk=str(settings["unk_token"]), suffix=END_OF_WORD)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return backend


class FastCleanedWords(TableFast):
    """Lower-cased words as BERT cuts them."""

    do_lower_case = True

    def _build_backend(self, settings: dict) -> Tokenizer:
        backend = _word_bpe(self, settings)
        unknown = str(settings["unk_token"])
        if backend.token_to_id(unknown) is not None:
            backend.add_special_tokens([unknown])
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        return backend


class FastBasicWords(TableFast):
    """Words as BERT cuts them, with capitals and accents; `<s> A </s> B </s>`."""

    def _load(self, settings: dict, given: dict) -> None:
        if settings.get("tokenizer_file") is None or settings.get("from_slow"):
            for name, value in self.row.python.items():  # what the Python class would bring along
                if settings.get(name) is None:
                    settings[name] = value

    def _build_backend(self, settings: dict) -> Tokenizer:
        backend = _word_bpe(self, settings)
        backend.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        vocab = backend.get_vocab()
        sep, cls = str(settings["sep_token"]), str(settings["cls_token"])
        unknown = vocab.get(str(settings["unk_token"]), 0)
        backend.post_processor = processors.BertProcessing(
            (sep, vocab.get(sep, unknown)), (cls, vocab.get(cls, unknown))
        )
        return backend
