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
from .chinese_kinds import FastMarkedWords, PythonChineseWords, PythonMarkedWords
from .ctc import PythonCtcLetters, PythonPhonemes, PythonWaves
from .entities import PythonEntityByteLevel, PythonEntityPieces
from .fast_kinds import FastFromFile
from .fast_pieces import FastInfillPieces, FastOffsetPieces, FastSpokenLanguagePieces
from .fast_words import FastBasicWords, FastCleanedWords
from .glyphs import PythonGlyphPieces
from .japanese_kinds import PythonByteBackedWords, PythonJapaneseWords
from .linear_tables import PythonLinearTables
from .marked_kinds import (
    FastBoxedByteLevel,
    FastBoxedPieces,
    FastBoxedSentinelPieces,
    FastBoxedWordPiece,
    FastPathByteLevel,
    PythonBoxedByteLevel,
    PythonBoxedSentinelPieces,
    PythonBoxedShiftedPieces,
    PythonBoxedWordPiece,
    PythonPathByteLevel,
)
from .music_kinds import PythonNotes, PythonSongs
from .page_kinds import FastPages
from .pieces import PythonPieces
from .prefixed_words import PythonPrefixedWords
from .shifted_pieces import (
    PythonCodeLanguagePieces,
    PythonCutPieces,
    PythonInfillPieces,
    PythonMonolingualPieces,
    PythonSpokenLanguagePieces,
    PythonUnusedPieces,
)
from .table_pieces import PythonTablePieces
from .transcript_kinds import FastTranscripts, PythonTranscripts
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
    PythonWholeWords,
)
from .word_piece_kinds import (
    FastCandidatePieces,
    FastPassagePieces,
    FastQuestionPieces,
    FastSegmentedPieces,
    PythonCandidatePieces,
    PythonCasedTokens,
    PythonPassagePieces,
    PythonQuestionPieces,
    PythonSegmentedPieces,
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
    "cased_tokens": (PythonCasedTokens, None),
    "passage_pieces": (PythonPassagePieces, FastPassagePieces),
    "candidate_pieces": (PythonCandidatePieces, FastCandidatePieces),
    "question_pieces": (PythonQuestionPieces, FastQuestionPieces),
    "segmented_pieces": (PythonSegmentedPieces, FastSegmentedPieces),
    "boxed_word_piece": (PythonBoxedWordPiece, FastBoxedWordPiece),
    "boxed_byte_level": (PythonBoxedByteLevel, FastBoxedByteLevel),
    "boxed_shifted_pieces": (PythonBoxedShiftedPieces, FastBoxedPieces),
    "boxed_sentinel_pieces": (PythonBoxedSentinelPieces, FastBoxedSentinelPieces),
    "path_byte_level": (PythonPathByteLevel, FastPathByteLevel),
    "transcripts": (PythonTranscripts, FastTranscripts),
    "table_pieces": (PythonTablePieces, None),
    "linear_tables": (PythonLinearTables, None),
    "pages": (None, FastPages),
    "marked_words": (PythonMarkedWords, FastMarkedWords),
    "chinese_words": (PythonChineseWords, None),
    "entity_byte_level": (PythonEntityByteLevel, None),
    "entity_pieces": (PythonEntityPieces, None),
    "glyph_pieces": (PythonGlyphPieces, None),
    "songs": (PythonSongs, None),
    "notes": (PythonNotes, None),
    "japanese_words": (PythonJapaneseWords, None),
    "byte_backed_words": (PythonByteBackedWords, None),
    "prefixed_words": (PythonPrefixedWords, None),
    "whole_words": (PythonWholeWords, None),
}
