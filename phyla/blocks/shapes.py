"""Shapes in signatures, checked in the test run (PHYLA_CHECK_SHAPES=1).

The letters are those of phyla/blocks/__init__.py.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Rows = Float[Tensor, "*rows D"]
Stream = Float[Tensor, "B S D"]
NewStream = Float[Tensor, "B S D2"]
Vector = Float[Tensor, "B D2"]
Ids = Int[Tensor, "B S"]
Queries = Float[Tensor, "B H S E"]
Keys = Float[Tensor, "B G K E"]
NewKeys = Float[Tensor, "B G S E"]
Values = Float[Tensor, "B G K E2"]
Answers = Float[Tensor, "B H S E2"]
Bias = Float[Tensor, "#B #H #S K"]
Mask = Bool[Tensor, "#B #H #S K"] | Float[Tensor, "#B #H #S K"]
Pixels = Float[Tensor, "B C Y X"]
Patches = Float[Tensor, "B P D"]
Steps = Float[Tensor, "B S *state"]
State = Float[Tensor, "B *state"]
