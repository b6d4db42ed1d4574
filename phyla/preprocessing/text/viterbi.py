"""The best segmentation of a text by a unigram model, with SentencePiece's single-precision sums, which
decide ties.
"""

from array import array

from .sentencepiece_model import PieceType, SentencePieceModel

_UNKNOWN_PENALTY = 10.0  # below the lowest score of all, as in SentencePiece
_USER_DEFINED_LOSS = 0.1


class UnigramPieces:
    """A unigram SentencePiece model as a function from normalised text to pieces."""

    def __init__(self, model: SentencePieceModel, byte_fallback: bool | None = None):
        rows = list(zip(model.pieces, model.scores, model.types, strict=True))
        normal = [score for _, score, kind in rows if kind == PieceType.NORMAL]
        best = max(normal, default=0.0)
        self.unknown = min(normal, default=0.0) - _UNKNOWN_PENALTY
        self.byte_fallback = model.trainer.byte_fallback if byte_fallback is None else byte_fallback
        self.scores: dict[str, float] = {}
        for piece, score, kind in rows:
            if kind == PieceType.NORMAL:
                self.scores.setdefault(piece, score)
            elif kind == PieceType.USER_DEFINED:
                self.scores[piece] = len(piece.encode()) * best - _USER_DEFINED_LOSS
        self.starts = {piece[:end] for piece in self.scores for end in range(1, len(piece) + 1)}

    def __call__(self, text: str) -> list[str]:
        """The pieces of a normalised text; a stretch of unknown characters is one piece (or its bytes)."""
        size = len(text)
        came_from = [-1] * (size + 1)
        total = array(
            "f", bytes(4 * (size + 2))
        )  # storing here rounds to single precision; the last is for scratch
        for start in range(size):
            here, single, end = total[start], False, start + 1
            while end <= size and text[start:end] in self.starts:
                score = self.scores.get(text[start:end])
                if score is not None:
                    single = single or end == start + 1
                    total[-1] = score + here
                    if came_from[end] < 0 or total[-1] > total[end]:
                        total[end] = total[-1]
                        came_from[end] = start
                end += 1
            if not single and (came_from[start + 1] < 0 or self.unknown + here > total[start + 1]):
                total[start + 1] = self.unknown + here
                came_from[start + 1] = start
        cuts, end = [], size
        while end > 0:
            cuts.append((came_from[end], end))
            end = came_from[end]
        return self._named(text, reversed(cuts))

    def _named(self, text: str, cuts) -> list[str]:
        pieces, after_unknown = [], False
        for start, end in cuts:
            piece = text[start:end]
            known = piece in self.scores
            if known:
                pieces.append(piece)
            elif self.byte_fallback:
                pieces += [f"<0x{byte:02X}>" for byte in piece.encode()]
            elif after_unknown:
                pieces[-1] += piece
            else:
                pieces.append(piece)
            after_unknown = not known
        return pieces
