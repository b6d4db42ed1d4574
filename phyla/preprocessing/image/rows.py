"""The table of image processors: every public name is one row here (see `table.Row`)."""

from __future__ import annotations

from .rows_dense import DENSE
from .rows_language import LANGUAGE
from .rows_pictures import PICTURES
from .table import Row

ROWS: dict[str, Row] = {**PICTURES, **DENSE, **LANGUAGE}
