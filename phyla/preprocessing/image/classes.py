"""The public image and video processor classes, made from the table of rows."""

from __future__ import annotations

import warnings
from typing import Any

from .base import BaseImageProcessor, TableProcessor
from .detection import Detection
from .fast import BaseImageProcessorFast, OnTensors
from .fast_rows import FAST_ROWS
from .instances import Instances, TaskInstances
from .kinds import (
    Groups,
    Headed,
    Lists,
    Pairs,
    PicturesAndVideos,
    Videos,
    WithDepth,
    WithMaps,
    WithTrimaps,
)
from .nested import Nested, SplitNested, Tiled
from .post import POST
from .rows import ROWS
from .several import MaskedVideos, Prompted, WithCodebook
from .spatial import ByArea, PatchGrid
from .streams import Streams

__all__ = ["BaseImageProcessor", "BaseImageProcessorFast"]

KINDS: dict[str, type[TableProcessor]] = {
    "plain": TableProcessor,
    "maps": WithMaps,
    "videos": Videos,
    "both": PicturesAndVideos,
    "depth": WithDepth,
    "trimaps": WithTrimaps,
    "lists": Lists,
    "groups": Groups,
    "pairs": Pairs,
    "headed": Headed,
    "detection": Detection,
    "instances": Instances,
    "task": TaskInstances,
    "nested": Nested,
    "split": SplitNested,
    "tiled": Tiled,
    "grid": PatchGrid,
    "area": ByArea,
    "prompted": Prompted,
    "codebook": WithCodebook,
    "masked": MaskedVideos,
    "stream": Streams,
}


class DeprecatedName:
    """A former name of an image processor; says so once it is made."""

    def __init__(self, *args: Any, **settings: Any):
        new = type(self).__mro__[2].__name__
        warnings.warn(
            f"{type(self).__name__} is the former name of {new}: use {new}", FutureWarning, stacklevel=2
        )
        super().__init__(*args, **settings)


def _make(name: str, bases: tuple[type, ...], **body: Any) -> type:
    return type(name, bases, {"__module__": __name__, **body})


_classes: dict[str, type] = {}
for _name, _row in ROWS.items():
    _doc = f"Image processor of the row {_name!r}: {', '.join(_row.steps)}."
    _cls = _make(
        _name,
        (KINDS[_row.kind], *(POST[group] for group in _row.post)),
        row=_row,
        model_input_names=list(_row.inputs),
        __doc__=_doc,
    )
    _classes[_name] = _cls
    if _row.alias:
        _classes[_row.alias] = _make(_row.alias, (DeprecatedName, _cls), __doc__=f"Former name of {_name}.")
for _name, _row in FAST_ROWS.items():
    _classes[_name] = _make(
        _name,
        (OnTensors, KINDS[_row.kind], *(POST[group] for group in _row.post)),
        row=_row,
        model_input_names=list(_row.inputs),
        __doc__=f"{_name.removesuffix('Fast')} on torch tensors.",
    )
globals().update(_classes)
