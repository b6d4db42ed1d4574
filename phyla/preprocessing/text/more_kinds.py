"""Kinds of tokenizers beyond the common ones, as `classes.KINDS` has them: Python class, Rust class."""

from .characters import (
    PythonBytes,
    PythonCodePoints,
    PythonLetters,
    PythonResidues,
    PythonRewrittenBytes,
    PythonSentinelBytes,
    PythonSpeechLetters,
)
from .ctc import PythonCtcLetters, PythonPhonemes, PythonWaves
from .fast_pieces import FastInfillPieces, FastOffsetPieces, FastSpokenLanguagePieces
from .fast_kinds import FastFromFile
from .fast_words import FastBasicWords, FastCleanedWords
from .pieces import PythonPieces
from .shifted_pieces import (
    PythonCodeLanguagePieces,
    PythonCutPieces,
    PythonInfillPieces,
    PythonMonolingualPieces,
    PythonSpokenLanguagePieces,
    PythonUnusedPieces,
)
from .translated_pieces import (
    CanonicalText,
    PythonCodedPieces,
    PythonOffsetPieces,
    PythonSpokenPieces,
    PythonSweptPieces,
    PythonTwoSidedPieces,
    PythonUpperPieces,
)
from .word_bpe import (
    PythonBareWords,
    PythonBasicWords,
    PythonChatWords,
    PythonCleanedWords,
    PythonComposedWords,
    PythonContinuedWords,
    PythonCountedWords,
    PythonEscapedWords,
    PythonSpokenBytes,
    PythonTranscribedWords,
    PythonTranslatedWords,
    PythonTweetWords,
)

MORE_KINDS: dict[str, tuple[type | None, type | None]] = {
    "own_pieces": (PythonPieces, None),
    "swept_pieces": (PythonSweptPieces, None),
    "canonical_pieces": (CanonicalText, None),
    "spoken_pieces": (PythonSpokenPieces, None),
    "offset_pieces": (PythonOffsetPieces, FastOffsetPieces),
    "coded_pieces": (PythonCodedPieces, None),
    "upper_pieces": (PythonUpperPieces, None),
    "two_sided_pieces": (PythonTwoSidedPieces, None),
    "cleaned_words": (PythonCleanedWords, FastCleanedWords),
    "basic_words": (PythonBasicWords, FastBasicWords),
    "bare_words": (PythonBareWords, None),
    "composed_words": (PythonComposedWords, None),
    "escaped_words": (PythonEscapedWords, None),
    "translated_words": (PythonTranslatedWords, None),
    "continued_words": (PythonContinuedWords, None),
    "counted_words": (PythonCountedWords, None),
    "tweet_words": (PythonTweetWords, None),
    "chat_words": (PythonChatWords, FastFromFile),
    "transcribed_words": (PythonTranscribedWords, None),
    "spoken_bytes": (PythonSpokenBytes, None),
    "bytes": (PythonBytes, None),
    "sentinel_bytes": (PythonSentinelBytes, None),
    "rewritten_bytes": (PythonRewrittenBytes, None),
    "code_points": (PythonCodePoints, None),
    "letters": (PythonLetters, None),
    "speech_letters": (PythonSpeechLetters, None),
    "residues": (PythonResidues, None),
    "ctc_letters": (PythonCtcLetters, None),
    "ctc_phonemes": (PythonPhonemes, None),
    "waves": (PythonWaves, None),
    "unused_pieces": (PythonUnusedPieces, None),
    "monolingual_pieces": (PythonMonolingualPieces, None),
    "code_language_pieces": (PythonCodeLanguagePieces, None),
    "spoken_language_pieces": (PythonSpokenLanguagePieces, FastSpokenLanguagePieces),
    "infill_pieces": (PythonInfillPieces, FastInfillPieces),
    "cut_pieces": (PythonCutPieces, None),
}
