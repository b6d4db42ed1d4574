"""The public joint processor classes, made from the tables of rows."""

from .base import ProcessorMixin
from .boxes import Phrases, Points, Queries, TasksAndClasses
from .ctc import SpokenWithModel
from .expansion import (
    Fixed,
    Judged,
    PannedCrops,
    PooledTiles,
    SizedCrops,
    TaggedTiles,
    Tiles,
    Uniform,
    WithFrames,
)
from .grids import BrokenRows, MergedGrid, Pages, TimedGrid, Written
from .interleaved import Interleaved
from .layout import Markup, Page
from .nested import CrossAttended, Resampled, SplitRows, SplitRowsAndFrames
from .pairs import (
    Drawn,
    Generative,
    Grounding,
    Pair,
    Prompted,
    Reading,
    Recognition,
    SoundAndPictures,
    TextOnly,
    Transcribing,
    Universal,
)
from .phrases import Located
from .prefix import Prefixed, Queried, Retrieval
from .rows import ROWS
from .rows_woven import WOVEN
from .sounds import Heard, Played, Voiced
from .speech import Composing, Converted, Either, Spoken
from .stream import Patched

__all__ = ["ProcessorMixin"]

KINDS: dict[str, type[ProcessorMixin]] = {
    "pair": Pair,
    "text": TextOnly,
    "generative": Generative,
    "reading": Reading,
    "transcribing": Transcribing,
    "grounding": Grounding,
    "prompted": Prompted,
    "drawn": Drawn,
    "recognition": Recognition,
    "universal": Universal,
    "sound_and_pictures": SoundAndPictures,
    "spoken": Spoken,
    "either": Either,
    "converted": Converted,
    "composing": Composing,
    "spoken_with_model": SpokenWithModel,
    "heard": Heard,
    "played": Played,
    "voiced": Voiced,
    "uniform": Uniform,
    "with_frames": WithFrames,
    "tiles": Tiles,
    "pooled_tiles": PooledTiles,
    "sized_crops": SizedCrops,
    "tagged_tiles": TaggedTiles,
    "fixed": Fixed,
    "panned": PannedCrops,
    "judged": Judged,
    "merged_grid": MergedGrid,
    "timed_grid": TimedGrid,
    "broken_rows": BrokenRows,
    "written": Written,
    "pages": Pages,
    "resampled": Resampled,
    "split_rows": SplitRows,
    "split_frames": SplitRowsAndFrames,
    "cross_attended": CrossAttended,
    "prefixed": Prefixed,
    "retrieval": Retrieval,
    "queried": Queried,
    "queries": Queries,
    "phrases": Phrases,
    "classes": TasksAndClasses,
    "points": Points,
    "page": Page,
    "markup": Markup,
    "located": Located,
    "interleaved": Interleaved,
    "patched": Patched,
}

for _name, _row in {**ROWS, **WOVEN}.items():
    _kind = KINDS[_row.kind]
    globals()[_name] = type(
        _name,
        (_kind,),
        {
            "__module__": __name__,
            "__doc__": _kind.__doc__,
            "row": _row,
            "attributes": list(_row.parts),
            **{f"{part}_class": public for part, public in _row.parts.items()},
        },
    )
