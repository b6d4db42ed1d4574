"""Several texts side by side in one row of a call: who owns which tokens, and where each keeps its memory.

Projections and feed-forwards see one long row; a mixer with memory sees each text apart. Keys and values lie
in pages of a fixed number of positions (Kwon et al. 2023, arXiv:2309.06180, section 4), states in one slot a
text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from phyla.blocks.attention import Attention
from phyla.blocks.cache import Cache, CrossCache, KVCache, StateCache, _keepers
from phyla.blocks.context import Context
from phyla.blocks.position import Position, Rotary
from phyla.blocks.residual import Mixer
from phyla.errors import ArgumentError


@dataclass(eq=False)
class Text:
    """The memory of one text: its pages, in order, and for a decoder with an encoder the encoder's states.

    states: what recurrent mixers keep, by the number of their slot; crossed: keys of the encoder's states.
    """

    pages: list[int] = field(default_factory=list)
    memory: Tensor | None = None
    states: dict[int, StateCache] = field(default_factory=dict)
    crossed: dict[int, CrossCache] = field(default_factory=dict)


@dataclass(frozen=True)
class Segment:
    """Tokens begin .. end of the row are positions start, start + 1, ... of a text."""

    text: Text
    begin: int
    end: int
    start: int

    @property
    def length(self) -> int:
        return self.end - self.begin


GONE = -1  # in a text's list, a page that was given back: all of it lies before every window


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """The segments one behind the other in a row of their own."""
    placed, begin = [], 0
    for part in segments:
        placed.append(Segment(part.text, begin, begin + part.length, part.start))
        begin += part.length
    return placed


@dataclass(frozen=True)
class Layout:
    """Where the N tokens of a call stand, as whole numbers: of each its page, its slot there, its position in
    its text, and the row of `table` that lists its text's pages. tiles (T, 2): first token and count of runs
    of at most TILE tokens of one text.
    """

    pages: Tensor
    offsets: Tensor
    places: Tensor
    rows: Tensor
    table: Tensor
    tiles: Tensor


TILE = 8
ALIKE = 16  # the tokens of a row, and the rows of recurrent mixers, are a multiple of this
# (q, k, v, keys, values, layout, scale, window) -> (1, N, H * E), or None: see phyla/fast/flat.py.
FlatAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Layout, float, int | None], Tensor | None]
native: FlatAttention | None = None


class Pages:
    """Keys (pages, G, E, P) and values (pages, G, P, E) of one attention; P positions a page."""

    def __init__(self, owner: "FlatCache", mixer: Any, count: int, size: int) -> None:
        self.owner, self.count, self.size = owner, count, size
        self.window: int | None = getattr(mixer.mask, "window", None)
        self.whole = isinstance(mixer, Attention) and _is_plain(mixer)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def reserve(
        self, heads: int, width: int, like: Tensor, values: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """The tensors of all pages, made at the first use; `values`: width of values, if not that of keys."""
        if self.keys is None or self.values is None:
            # zeros where all of a page is read and what is not filled is weighed with nothing
            made = like.new_zeros if like.is_cuda else like.new_empty
            self.keys = made(self.count, heads, width, self.size)
            self.values = made(self.count, heads, self.size, values or width)
        return self.keys, self.values

    def write(self, k: Tensor, v: Tensor, pages: Tensor, offsets: Tensor) -> None:
        """Put keys and values (1, G, N, E) where the tokens' pages and offsets (N) say."""
        keys, values = self.reserve(k.shape[1], k.shape[3], k, v.shape[3])
        keys[pages, :, :, offsets] = k[0, :, : len(pages)].transpose(0, 1)
        values[pages, :, offsets] = v[0, :, : len(pages)].transpose(0, 1)

    def read(self, segment: Segment) -> tuple[Tensor, Tensor, int]:
        """Keys and values (1, G, K, E) that a segment may see, and the slot of the first."""
        assert self.keys is not None and self.values is not None
        end, first = segment.start + segment.length, 0
        if self.window is not None:
            first = max(0, segment.start - self.window + 1) // self.size
        pages = segment.text.pages[first : -(-end // self.size)]
        index = torch.tensor(pages, device=self.keys.device)
        keys = self.keys[index].permute(1, 0, 3, 2).flatten(1, 2)  # (G, pages * P, E)
        values = self.values[index].permute(1, 0, 2, 3).flatten(1, 2)
        end -= first * self.size
        return keys[None, :, :end].contiguous(), values[None, :, :end].contiguous(), first * self.size

    def look(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # (1, N, H * E)
        """As `attend`, by the native kernel, of queries and keys that are turned already."""
        keys, values = self.reserve(k.shape[1], k.shape[3], k)
        assert native is not None
        y = native(q, k, v, keys, values, self.owner.layout, scale, self.window)
        assert y is not None
        return y

    def attend(
        self, mixer: Attention, q: Tensor, k: Tensor, v: Tensor, x: Tensor, ctx: Context
    ) -> Tensor:  # (1, N, H * E)
        """What the queries of each text find in its keys; q (1, H, N, E), k and v (1, G, N, E)."""
        keys, values = self.reserve(k.shape[1], k.shape[3], k)
        if native is not None and _is_bare(mixer, ctx):
            y = native(q, k, v, keys, values, self.owner.layout, mixer.scale, self.window)
            if y is not None:
                return y
        self.write(k, v, self.owner.layout.pages, self.owner.layout.offsets)
        found = []
        for part in self.owner.segments:
            keys, values, first = self.read(part)
            here, apart = slice(part.begin, part.end), self.owner.apart(ctx, part, {})
            found.append(mixer.answer(q[:, :, here], keys, values, first, False, x[:, here], apart))
        return self.owner.filled(found)


class _PagedView:
    """The pages of one segment, as a mixer that runs on it alone sees its cache."""

    def __init__(self, pages: Pages, segment: Segment) -> None:
        self.pages, self.segment = pages, segment

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """As `KVCache.update`."""
        owner, part = self.pages.owner, self.segment
        here = slice(part.begin, part.end)
        self.pages.write(k, v, owner.layout.pages[here], owner.layout.offsets[here])
        return self.pages.read(part)


class _View:
    """The cache of a call for a part of the row: only the slots that are asked for."""

    flat = False
    length = 0

    def __init__(self, slots: dict[int, Any]) -> None:
        self.slots = slots


class States:
    """The slot of a recurrent mixer: each text keeps its own state."""

    keys = None


class Crossed:
    """The slot of a cross-attention: each text keeps keys and values of its encoder's states.

    keys: None where no text has an encoder, so that the branch is left out.
    """

    keys: Any = ()


class FlatCache(Cache):
    """The memory of all texts in a model: pages for keys and values, a slot a text for states.

    `place` says which tokens the next call has. Raises ArgumentError for mixers that keep memory of another
    kind.
    """

    flat = True

    def __init__(self, model: nn.Module, count: int, size: int) -> None:
        slots: list[Any] = []
        for module in model.modules():
            if not getattr(module, "paged", True):
                raise ArgumentError(f"{type(module).__name__} reads a text as a whole: use generate")
        for mixer in _keepers(model):
            kept = mixer.new_cache(1, 1)
            if kept is None:
                slots.append(None)
            elif type(kept) is KVCache and (
                isinstance(mixer, Attention) or getattr(mixer, "in_pages", False)
            ):
                slots.append(Pages(self, mixer, count, size))
            elif type(kept) is CrossCache and isinstance(mixer, Mixer):
                slots.append(Crossed())
            elif type(kept) is StateCache and isinstance(mixer, Mixer):
                slots.append(States())
            else:
                raise ArgumentError(
                    f"{type(mixer).__name__} keeps memory of its own kind ({type(kept).__name__}), which has "
                    "no pages: use generate"
                )
        if all(slot is None for slot in slots):
            raise ArgumentError(f"{type(model).__name__} keeps no memory between steps: use generate")
        super().__init__(slots, 1)
        self.count, self.size = count, size
        self.segments: Sequence[Segment] = ()
        self.groups: list[list[Segment]] = []
        self.memos: dict[Segment, dict] = {}
        self.fill = 0
        self.layout = _layout([], size, torch.device("cpu"))

    @property
    def length(self) -> int:
        """None of the row's tokens is cached: each text counts its own positions."""
        return 0

    @length.setter
    def length(self, value: int) -> None:
        """What a stack counts for one text means nothing here."""

    @property
    def has_states(self) -> bool:
        """Whether some memory cannot be shared or cut: it is no list of positions."""
        return any(isinstance(slot, States | Crossed) for slot in self.slots)

    @property
    def plain(self) -> bool:
        """Whether all mixers see the one row of all texts, but for what their queries find."""
        return all(slot is None or (isinstance(slot, Pages) and slot.whole) for slot in self.slots)

    @property
    def window(self) -> int | None:
        """How many positions back a token sees in the layer that sees most; None where one sees all."""
        windows = [slot.window for slot in self.slots if isinstance(slot, Pages)]
        return None if not windows or None in windows else max(w for w in windows if w is not None)

    def place(self, segments: Sequence[Segment], device: torch.device, fill: int = 0) -> None:
        """The next call's row is these segments, one behind the other; of one text, in order.

        fill: tokens behind them that are nobody's.
        """
        self.segments, self.fill = segments, fill
        self.layout = _layout(segments, self.size, device)
        self.groups = _groups(segments) if self.has_states else []
        self.memos = {part: {} for part in segments}
        for slot in self.slots:
            if isinstance(slot, Crossed):
                idle = all(part.text.memory is None and not part.text.crossed for part in segments)
                slot.keys = None if idle else ()

    def copy_page(self, source: int, target: int) -> None:
        """Write the content of one page into another, in all layers."""
        for slot in self.slots:
            if isinstance(slot, Pages) and slot.keys is not None and slot.values is not None:
                slot.keys[target], slot.values[target] = slot.keys[source], slot.values[source]

    def adopt(self, text: Text, cache: Cache, length: int) -> None:
        """Take over the `length` positions that a text's own cache of one row holds.

        Raises ArgumentError for a cache of other layers.
        """
        places = torch.arange(length)
        pages = torch.tensor(text.pages or [0])[(places // self.size).clamp(max=max(len(text.pages) - 1, 0))]
        for number, (slot, kept) in enumerate(zip(self.slots, cache.slots, strict=True)):
            if isinstance(slot, States):
                text.states[number] = kept
            elif isinstance(slot, Crossed):
                text.crossed[number] = kept
            elif isinstance(slot, Pages):
                keys, values = kept.read()
                first = length - keys.shape[2]
                here = (t[first:].to(keys.device) for t in (pages, places % self.size))
                slot.write(keys, values, *here)
            elif slot is not None or kept is not None:
                raise ArgumentError(f"layer {number} keeps memory of another kind: {type(kept).__name__}")

    def drop(self) -> None:
        """Give the memory of all pages back."""
        for slot in self.slots:
            if isinstance(slot, Pages):
                slot.keys = slot.values = None
        self.segments, self.groups, self.memos = (), [], {}

    def mix(self, mixer: Any, x: Tensor, ctx: Context) -> Tensor:
        """The mixer on every text of x (1, N, D)."""
        slot = self.slots[mixer.slot]
        if slot is None or (isinstance(slot, Pages) and slot.whole):
            return mixer.mix(x, ctx)
        if isinstance(slot, States):
            return self._recur(mixer, x, ctx)
        found = []
        for part in self.segments:
            crossed = isinstance(slot, Crossed)
            own = part.text.crossed.setdefault(mixer.slot, CrossCache()) if crossed else None
            view = own if crossed else _PagedView(slot, part)
            found.append(mixer.mix(x[:, part.begin : part.end], self.apart(ctx, part, {mixer.slot: view})))
        return self.filled(found)

    def filled(self, found: list[Tensor]) -> Tensor:
        """Results (1, n, D) of all segments in one row, zeros at tokens that are nobody's."""
        if self.fill:
            found = [*found, found[0].new_zeros(1, self.fill, found[0].shape[-1])]
        return torch.cat(found, 1)

    def apart(self, ctx: Context, part: Segment, slots: dict[int, Any]) -> Context:
        """The call as one text alone makes it, with `slots` as its cache."""
        memo = self.memos[part]
        if "stack-bias" in ctx.memo:
            memo["stack-bias"] = ctx.memo["stack-bias"]
        return replace(
            ctx, positions=ctx.positions[..., part.begin : part.end], length=part.length, start=part.start,
            cache=_View(slots), memory=part.text.memory, memory_mask=None, memo=memo,
        )  # fmt: skip

    def _recur(self, mixer: Any, x: Tensor, ctx: Context) -> Tensor:
        """A recurrent mixer: single new tokens of several texts as rows of one call, others one by one."""
        y = torch.zeros_like(x)
        for group in self.groups:
            kept = [part.text.states.setdefault(mixer.slot, StateCache()) for part in group]
            first = group[0]
            if first.length > 1 or not first.start:
                here = slice(first.begin, first.end)
                y[:, here] = mixer.mix(x[:, here], self.apart(ctx, first, {mixer.slot: kept[0]}))
                continue
            # Always as many rows, so that a row's arithmetic does not tell how many there are.
            over = -len(group) % ALIKE
            rows, index = StateCache(), [part.begin for part in group] + [first.begin] * over
            every = [*kept, *kept[:1] * over]
            rows.tensors = {n: torch.cat([k.tensors[n] for k in every]) for n in kept[0].tensors}
            apart = self.apart(ctx, first, {mixer.slot: rows})
            apart = replace(apart, positions=ctx.positions[:, index].mT, memo={})
            y[0, index[: len(group)]] = mixer.mix(x[0, index, None], apart)[: len(group), 0]
            for number, one in enumerate(kept):
                one.tensors = {n: t[number : number + 1] for n, t in rows.tensors.items()}
        return y


def _layout(segments: Sequence[Segment], size: int, device: torch.device) -> Layout:
    numbers: dict[int, int] = {}
    tokens: list[tuple[int, int, int, int]] = []
    tiles: list[tuple[int, int]] = []
    texts: list[Text] = []
    for part in segments:
        if id(part.text) not in numbers:
            numbers[id(part.text)] = len(texts)
            texts.append(part.text)
        row, pages = numbers[id(part.text)], part.text.pages or [0]
        for place in range(part.start, part.start + part.length):
            tokens.append((pages[min(place // size, len(pages) - 1)], place % size, place, row))
        tiles += [(at, min(TILE, part.end - at)) for at in range(part.begin, part.end, TILE)]
    longest = max((len(text.pages) for text in texts), default=0)
    table = [[max(p, 0) for p in text.pages] + [0] * (longest - len(text.pages)) for text in texts]
    columns = torch.tensor(tokens, dtype=torch.long).reshape(-1, 4).T.contiguous().to(device)
    listed = torch.tensor(table, dtype=torch.long).reshape(len(texts), longest).to(device)
    pages_of, offsets, places, rows = columns
    runs = torch.tensor(tiles, dtype=torch.long).reshape(-1, 2)
    return Layout(pages_of, offsets, places, rows, listed, runs)


def _is_bare(mixer: Attention, ctx: Context) -> bool:
    """Whether scores are products of queries and keys and nothing else."""
    return (
        ctx.implementation == "sdpa"
        and mixer.kv_site is None
        and (mixer.position is None or type(mixer.position).bias is Position.bias)
        and ctx.attentions is None
        and ctx.head_mask is None
    )


def _groups(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments as states need them: each text's in turn, single tokens of different texts at once."""
    groups: list[list[Segment]] = []
    single: list[Segment] = []
    for part in segments:
        lone = part.length == 1 and part.start > 0
        if any(other.text is part.text for other in single) or not lone:
            groups.append(single)
            single = []
        if lone:
            single.append(part)
        else:
            groups.append([part])
    return [group for group in [*groups, single] if group]


def _is_plain(mixer: Attention) -> bool:
    """Whether all texts may be projected and turned at once: no rule of their lengths, no way of its own."""
    position: Any = mixer.position
    if (
        type(mixer).mix is not Attention.mix
        or type(mixer)._project_and_turn is not Attention._project_and_turn
    ):
        return False
    return not (isinstance(position, Rotary) and position.table.depends_on_length)
