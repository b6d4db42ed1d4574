"""The public feature extractor classes, made from the table of rows."""

from .beats import Beats
from .log_mel import Chunked, Clip, Fused, Patches
from .markup import MarkupFeatures
from .music import Chroma, Chunks, Hops, Vocoder
from .rows import OTHER, ROWS
from .sequence import SequenceFeatureExtractor
from .speech import CepstralBanks, FixedBanks, KaldiBanks, StridedBanks, Waves, WavesOrMels
from .table import TableExtractor

__all__ = ["SequenceFeatureExtractor"]

KINDS: dict[str, type[TableExtractor]] = {
    "wave": Waves,
    "target": WavesOrMels,
    "kaldi": KaldiBanks,
    "cepstra": CepstralBanks,
    "strided": StridedBanks,
    "fixed": FixedBanks,
    "chunk": Chunked,
    "clip": Clip,
    "fused": Fused,
    "patches": Patches,
    "hops": Hops,
    "chunks": Chunks,
    "vocoder": Vocoder,
    "chroma": Chroma,
    "beats": Beats,
}

for _name, _row in ROWS.items():
    globals()[_name] = type(
        _name,
        (KINDS[_row.kind],),
        {
            "__module__": __name__,
            "__doc__": f"Feature extractor of the row {_name!r}.",
            "row": _row,
            "model_input_names": list(_row.inputs),
            "UNSAVED": _row.unsaved,
        },
    )
for _name, _kind in OTHER.items():
    _base = {"markup": MarkupFeatures}[_kind]
    globals()[_name] = type(_name, (_base,), {"__module__": __name__, "__doc__": _base.__doc__})
