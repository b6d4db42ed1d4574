"""Low-rank parts of projections that public files hold as one matrix (q|k|v, gate|up)."""

from typing import Any

import torch
from torch import Tensor

from phyla.adapters.dialect import Dialect
from phyla.adapters.lora import Low
from phyla.adapters.registry import Entry
from phyla.errors import AdapterError, MissingWeightsError

ORDER = "qkv"


def _mixed(line: Any) -> bool:
    """Whether the rows of the parts alternate, so that the file's blocks of rows are not our parts."""
    return getattr(line.op, "groups", 1) > 1


def add_missing(entry: Entry, dialect: Dialect, name: str) -> None:
    """Add parts at projections that the configuration does not name, but whose rows the file changes."""
    there = {place.path for place in entry.places}
    for place, part in list(entry.items()):
        if not isinstance(part, Low):
            continue
        line = dialect.fused(place)
        if line is None or (place.role != "ffn" and not _mixed(line)):
            continue
        for layer in dialect.where.layers:
            for other in layer.linears:
                if f"{other.path}.weight" in line.ours and other.path not in there:
                    there.add(other.path)
                    made = Low(part.config, other.module, part.pair)  # type: ignore[arg-type]
                    made.bias_behind = part.bias_behind
                    like = next(part.parameters())
                    entry.parts.append(made.to(like.device, like.dtype))
                    entry.places.append(other)


class RowGate(torch.nn.Module):
    """Gates of the file's blocks of rows, (..., in) -> (..., out): each of our rows has its block's."""

    def __init__(self, blocks: torch.nn.Linear, index: Tensor) -> None:
        super().__init__()
        self.blocks = blocks  # shared by the parts of one matrix
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)[..., self.index]


def _gate_rows(
    members: list[tuple[Any, Low]], line: Any, shapes: list[torch.Size], enabled: list[str], rest: dict
) -> None:
    weight, bias = rest["gate.weight"], rest["gate.bias"]
    blocks = torch.nn.Linear(weight.shape[1], weight.shape[0]).to(members[0][1].lora_B)
    blocks.load_state_dict({"weight": weight, "bias": bias})
    block = sum(s[0] for s in shapes) // 3
    number = torch.zeros(3 * block, 1)  # rows of blocks that are not adapted are zero: any gate will do
    for i, letter in enumerate(enabled):
        number[ORDER.index(letter) * block : (ORDER.index(letter) + 1) * block] = i
    rows = line.op.load([number], [torch.Size((s[0], 1)) for s in shapes])
    by_path = dict(zip((ours.rpartition(".")[0] for ours in line.ours), rows, strict=True))
    for place, part in members:
        part.gate = RowGate(blocks, by_path[place.path][:, 0].long())  # type: ignore[assignment]


def _expressible(path: str, config: Any, sizes: list[int]) -> None:
    """AdapterError for what public files have no words for where projections are one matrix."""
    if config.use_dora or config.vera_d is not None or hasattr(config, "n_up_projection"):
        raise AdapterError(
            f"{path} is one matrix in public files, which know no DoRA, VeRA or MTL-LoRA there"
        )
    if len(sizes) == 3 and len(set(sizes)) > 1:
        raise AdapterError(
            f"{path} is one matrix in public files, whose parts must be of one size, but are not"
        )


def read_fused(
    path: str, members: list[tuple[Any, Low]], tensors: dict[str, Tensor], dialect: Dialect, entry: Entry
) -> None:
    """Fill the parts of one fused matrix from its file tensors."""
    line = dialect.fused(members[0][0])
    assert line is not None
    if "lora_B" not in tensors:
        raise MissingWeightsError(f"the adapter file has no tensor {path}.lora_B")
    config = members[0][1].config
    sizes: dict[Any, Any] = {}
    for layer in dialect.where.layers:
        sizes |= {p.path: p.module.out_features for p in layer.linears if f"{p.path}.weight" in line.ours}
    paths = [ours.rpartition(".")[0] for ours in line.ours]
    total = sum(sizes[p] for p in paths)
    low, high = tensors.get("lora_A"), tensors["lora_B"]
    _expressible(path, config, [sizes[p] for p in paths])
    role = members[0][0].role
    enabled = [m for m in ORDER if m in config.attn_matrices] if role != "ffn" else []
    if (role != "ffn" and len(enabled) < 3) or (
        role != "ffn" and low is not None and low.shape[0] > high.shape[1]
    ):
        rank, block = high.shape[1], total // 3
        columns = rank * len(enabled) if low is not None else 1
        start = high.new_zeros(total, columns) if low is not None else high.new_ones(total, 1)
        for i, letter in enumerate(enabled):
            at = ORDER.index(letter) * block
            into = slice(i * rank, (i + 1) * rank) if low is not None else slice(0, 1)
            start[at : at + block, into] = high[i * block : (i + 1) * block]
        high = start
    shapes = [torch.Size((sizes[p], high.shape[1])) for p in paths]
    whole = high.T if getattr(line.op, "transpose", False) else high
    rows = dict(zip(paths, line.op.load([whole], shapes), strict=True))
    rest = {k: v for k, v in tensors.items() if k not in ("lora_A", "lora_B")}
    for place, part in members:
        b, a = rows[place.path].contiguous(), low
        if a is not None and role != "ffn" and not _mixed(line):
            index = enabled.index(place.part) if len(enabled) else 0
            if a.shape[0] == b.shape[1] and len(enabled) * tensors["lora_B"].shape[1] == a.shape[0]:
                step = tensors["lora_B"].shape[1]
                keep = slice(index * step, (index + 1) * step)
                a, b = a[keep], b[:, keep]
        if "gate.weight" in rest and _mixed(line):
            gates = {}
        elif "gate.weight" in rest and role != "ffn":
            leaves = ("gate.weight", "gate.bias")
            if place.part in enabled:
                at = enabled.index(place.part)
                gates = {k: rest[k][at : at + 1] for k in leaves}
            else:  # its rows change nothing
                gates = {k: part.state_dict()[k] for k in leaves}
        else:
            gates = {}
        values = {"lora_B": b} if a is None else {"lora_A": a, "lora_B": b}
        if "gate.weight" in rest and _mixed(line):
            part.gate = None
        part.from_file({**values, **{k: v for k, v in rest.items() if k in part.state_dict()}, **gates})
    if "gate.weight" in rest and _mixed(line):
        _gate_rows(members, line, shapes, enabled, rest)


def write_fused(path: str, members: list[tuple[Any, Low]], dialect: Dialect) -> dict[str, Tensor]:
    """The file tensors of one fused matrix."""
    line = dialect.fused(members[0][0])
    assert line is not None
    parts: dict[str, Low] = {place.path: part for place, part in members}
    order = [ours.rpartition(".")[0] for ours in line.ours]
    config, role = members[0][1].config, members[0][0].role
    present = [parts[p] for p in order if p in parts]
    _expressible(
        path,
        config,
        [p.module.out_features for x in dialect.where.layers for p in x.linears if p.path in order],
    )
    rest = {k: v for k, v in present[0].to_file().items() if k not in ("lora_A", "lora_B")}
    if role == "ffn" or _mixed(line):
        if len(present) < len(order):
            raise AdapterError(
                f"{path} is one matrix in public files: an adapter on a part of it cannot be saved there"
            )
        rows = [p.lora_B for p in present]
        whole = line.op.save([r.detach() for r in rows])[0]
        high = whole.T if getattr(line.op, "transpose", False) else whole
        if config.composition_mode != "scale" and any(
            not torch.equal(p.lora_A, present[0].lora_A) for p in present
        ):
            raise AdapterError(
                f"{path} is one matrix in public files: its parts must share lora_A, but do not"
            )
        if role != "ffn":
            letters = [ORDER.index(m) for m in ORDER if m in config.attn_matrices]
            block = high.shape[0] // 3
            rank = config.r
            pieces = []
            for i, at in enumerate(letters):
                columns = (
                    slice(i * rank, (i + 1) * rank) if config.composition_mode != "scale" else slice(0, 1)
                )
                pieces.append(high[at * block : (at + 1) * block, columns])
            high = torch.cat(pieces)
        found = {"lora_B": high.contiguous()}
        if config.composition_mode != "scale":
            found["lora_A"] = present[0].lora_A.detach()
        if isinstance(present[0].gate, RowGate):
            rest = {k: v for k, v in rest.items() if not k.startswith("gate.")}
            rest |= {f"gate.{k}": v for k, v in present[0].gate.blocks.state_dict().items()}
        elif role != "ffn":
            named = [p for place, p in members if place.part in config.attn_matrices]
            named.sort(key=lambda p: next(ORDER.index(place.part) for place, q in members if q is p))
            for leaf in ("gate.weight", "gate.bias"):
                if leaf in rest:
                    rest[leaf] = torch.cat([p.state_dict()[leaf] for p in named])
        return found | rest
    found = {"lora_B": torch.cat([p.lora_B.detach() for p in present])}
    if config.composition_mode != "scale":
        found["lora_A"] = torch.cat([p.lora_A.detach() for p in present])
    for leaf in ("gate.weight", "gate.bias"):
        if leaf in rest:
            rest[leaf] = torch.cat([p.state_dict()[leaf] for p in present])
    return found | rest
