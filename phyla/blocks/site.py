"""Sites: the named places of a model that an adapter, a quantiser, a probe or a pruner may touch.

A site is an attribute `site` that is None until something is put there, so an empty one costs one `is None`.
`Linear` calls `site(x, y, linear)`; a branch calls `site(y, x, branch)` on its output before the residual
sum, and returns at once where `site.closes`; `mix_site(y, x, branch)` on the mixer's own output, before the
branch's norm of it; embeddings and layers call `site(x, ctx)` (those without one
`site(x)`); attention calls `kv_site(k, v, mask, x)`, x its input, before keys and values are used.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Site(NamedTuple):
    """One touchable place: dotted name, kind (`linear`, `branch`, `stream`, `keys-values`), module."""

    name: str
    kind: str
    module: nn.Module


def sites(model: nn.Module) -> Iterator[Site]:
    """Every site of a model in order of its modules; names are module paths such as `layers.0.attn.q`."""
    for path, module in model.named_modules():
        kind = getattr(module, "site_kind", None)
        if kind is None:
            continue
        if kind == "linear":
            yield Site(path, kind, module)
        else:
            yield Site(f"{path}.out" if path else "out", kind, module)
        if hasattr(module, "kv_site"):
            yield Site(f"{path}.kv", "keys-values", module)
