"""Models with flexible heads: the bare class of a family, and any number of heads behind it."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from phyla.adapters.api import AdapterSetup
from phyla.adapters.composition import BatchSplit, Rows, copies
from phyla.adapters.head_setup import heads_of, names_in
from phyla.adapters.heads.language import CausalLMHead
from phyla.adapters.heads.managing import HeadMethods
from phyla.adapters.heads.module import (
    MODEL_HEAD_MAP,
    Flexible,
    FlexibleHeads,
    cut,
    row_kind,
    total,
)
from phyla.adapters.heads.output import MultiHeadOutput
from phyla.adapters.interpret import Facts, Flow, Method
from phyla.adapters.interpret import run as run_setup
from phyla.adapters.invertible import EmbedSite
from phyla.adapters.prompt import PromptSite
from phyla.checkpoints.names import NameMap
from phyla.errors import AdapterError, ArgumentError, ConfigError
from phyla.family import Family
from phyla.heads.base import Call
from phyla.heads.classify import last_token
from phyla.model import PreTrainedModel
from phyla.registry import Row, model_class, row, table

HEAD_ARGUMENTS = (
    "head", "labels", "start_positions", "end_positions", "word_starts", "labels_arcs", "labels_rels",
    "return_dict", "logits_to_keep", "num_items_in_batch", "head_arguments",
)  # fmt: skip
LABELS = ("labels", "start_positions", "labels_arcs")
ROW_HEADS = ("classification", "multilabel_classification", "multiple_choice", "image_classification")


class FlexibleModel(HeadMethods, PreTrainedModel):
    """A bare model with flexible heads; the classes of the families are made by `adapter_class`."""

    base_forward: ClassVar[Callable[..., Any]]
    base_names: ClassVar[tuple[str, ...]]
    flexible: FlexibleHeads

    def _assemble(self, config: Any) -> None:
        super()._assemble(config)
        with torch.device("meta"):
            self.flexible = FlexibleHeads(self.head_spec, config, self.width)  # type: ignore[arg-type]
        self.flexible.tie(self.backbone)

    def more_names(self) -> dict[str, NameMap]:
        """The name maps of what stands beside backbone and head."""
        return {"flexible": self.flexible.own_names()}

    @classmethod
    def from_pretrained(cls, source: Any, **options: Any) -> Any:
        """Load a checkpoint of any class of the family; the head of `XForTask` becomes the head `default`."""
        loaded = super().from_pretrained(source, **options)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._settle()
        return loaded

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Run `forward`; arguments that heads of one's own take are handed to them."""
        own = {
            name
            for head in self.flexible.custom.values()
            for name in inspect.signature(head.forward).parameters
        }
        theirs = {
            k: named.pop(k) for k in [*named] if k in own and k not in HEAD_ARGUMENTS and k not in _INPUTS
        }
        if theirs:
            named["head_arguments"] = theirs
        return super().__call__(*args, **named)

    def answer(self, named: dict[str, Any], given: dict[str, Any]) -> Any:
        """The heads' output for the inputs `named`, or the bare model's where none is active."""
        heads = self._used(given.pop("head", None))
        return_dict = given.pop("return_dict", None)
        if not heads:
            asked = [name for name in LABELS if given.get(name) is not None]
            if asked:
                raise AdapterError(
                    f"{asked[0]} were given, but no head is active: set active_head, or pass head=NAME"
                )
            return self._bare(named, return_dict)
        self._complete(named, given, [self.flexible.kept[name] for name in names_in(heads)])
        out = type(self).base_forward(self, **named, return_dict=True)
        wanted = bool(self.config.return_dict if return_dict is None else return_dict)
        return self._through(heads, out, named, given, wanted)

    def _bare(self, named: dict[str, Any], return_dict: bool | None) -> Any:
        if not self.is_encoder_decoder or self.flexible.scale is None:
            return type(self).base_forward(self, **named, return_dict=return_dict)
        out = self._scaled(type(self).base_forward(self, **named, return_dict=True))
        return out if (self.config.return_dict if return_dict is None else return_dict) else out.to_tuple()

    def _scaled(self, out: Any) -> Any:
        """Public files of tied T5 were made with the states scaled, before every head that reads them all."""
        return type(out)(**{**_fields(out), "last_hidden_state": out.last_hidden_state * self.flexible.scale})

    def _used(self, asked: Any) -> Any:
        """The heads of this call: those that it names, the setup's around it, or the active ones."""
        if asked is not None:
            return asked
        setup = self._setup()
        if isinstance(setup, Rows):
            index: Any = setup.numbers
            names = [heads_of(child) for child in setup.children]
            if all(isinstance(name, str) and name in self.flexible.kept for name in names):
                return Rows(*(names[child] for child in index))
        around = None if torch.compiler.is_compiling() else AdapterSetup.current.get()
        if around is not None and around[1] is not None:
            return around[1]
        if around is not None and names_in(heads_of(around[0])):
            found = heads_of(around[0])
            if all(name in self.flexible.kept for name in names_in(found)):
                return found
        return self.flexible.active

    def _setup(self) -> Any:
        """The setup of adapters that this call runs with."""
        adapters: Any = self._modules.get("adapters")
        return None if adapters is None else adapters.setup

    def _complete(self, named: dict[str, Any], given: dict[str, Any], heads: list[Any]) -> None:
        """Fold choices into rows, and make the decoder's inputs where they are not given."""
        ids = named.get("input_ids")
        if isinstance(ids, Tensor) and ids.dim() == 3:
            front = ids.shape[:2]
            given["choices"] = front[1]
            for name, value in named.items():
                if isinstance(value, Tensor) and value.dim() > 2 and value.shape[:2] == front:
                    named[name] = value.flatten(0, 1)
        labelled = any(given.get(name) is not None for name in LABELS)
        if labelled and "use_cache" in self.base_names:
            named.setdefault("use_cache", False)
        if not self.is_encoder_decoder or not hasattr(self, "start_ids"):
            return
        if named.get("decoder_input_ids") is None and named.get("decoder_inputs_embeds") is None:
            targets = given.get("labels") if any(isinstance(h, CausalLMHead) for h in heads) else None
            source = targets if targets is not None else named.get("input_ids")
            if source is not None:
                named["decoder_input_ids"] = self.start_ids(source)

    def _through(self, heads: Any, out: Any, named: dict, given: dict, return_dict: bool) -> Any:
        x = getattr(out, "last_hidden_state", None)
        if x is None:
            raise AdapterError(f"{type(self).__name__} has no states that a head could read")
        if x.dim() == 2:
            raise AdapterError(
                f"{type(self).__name__} gives the vectors of all images in one line, where no head can tell "
                "them apart"
            )
        if (
            x.dim() == 4
        ):  # a map (B, D, Y, X) or channels beside each other (B, C, S, D): places are positions
            beside = x.shape[-1] == self.width and "pixel_values" not in self.base_names
            flat = x.flatten(1, 2) if beside else x.flatten(2).transpose(1, 2)
            out = type(out)(**{**_fields(out), "last_hidden_state": flat})
        facts = self._facts(out, named, given)
        facts["cls_output"] = self._row(out, named, facts, heads)
        if self.is_encoder_decoder and self.flexible.scale is not None:
            out = self._scaled(out)
        rows, names = x.shape[0], names_in(heads)
        if isinstance(heads, Rows):
            result = self._by_row(heads, out, facts, rows)
            return result if return_dict else result.to_tuple()
        if isinstance(heads, BatchSplit):
            if sum(heads.batch_sizes) != rows:
                raise AdapterError(
                    f"the batch sizes {heads.batch_sizes} of the heads must sum to the rows, which are {rows}"
                )
            sizes: list[int] | None = heads.batch_sizes
        else:
            sizes = self._parallel(names, rows)
        if sizes is None and len(names) == 1:
            return self._one(names[0], out, facts, return_dict)
        made, start = [], 0
        for name, size in zip(names, sizes or [rows] * len(names), strict=True):
            part, part_facts = out, facts
            if sizes is not None:
                at = slice(start, start + size)
                part, part_facts = cut(out, rows, at), {k: cut(v, rows, at) for k, v in facts.items()}
                start += size
            made.append(self._one(name, part, part_facts, True))
        loss = None if sizes is None else total([getattr(m, "loss", None) for m in made])
        result = MultiHeadOutput(head_outputs=made, loss=loss)
        return result if return_dict else result.to_tuple()

    def _by_row(self, heads: Rows, out: Any, facts: dict[str, Any], rows: int) -> MultiHeadOutput:
        """One output for each row, of the head of the row's adapter; the losses of the heads add up."""
        index: Any = heads.numbers  # of each row's head
        times, found, losses = rows // len(index), {}, []
        for number, name in enumerate(heads.children):
            group = [row for row, child in enumerate(index) if child == number]
            at = torch.tensor([row * times + i for row in group for i in range(times)], device=self.device)
            part = self._one(name, cut(out, rows, at), {k: cut(v, rows, at) for k, v in facts.items()}, True)
            losses.append(part.loss)
            part = type(part)(**{**_fields(part), "loss": None})
            found.update({row: cut(part, len(group), slice(j, j + 1)) for j, row in enumerate(group)})
        return MultiHeadOutput(head_outputs=[found[row] for row in sorted(found)], loss=total(losses))

    def _parallel(self, names: list[str], rows: int) -> list[int] | None:
        """Rows of each head where the inputs were copied for Parallel, else None."""
        count = copies(self._setup())
        if count <= 1:
            return None
        if len(names) != count:
            raise AdapterError(
                f"{count} adapters in Parallel need {count} active heads, but these are active: {names}"
            )
        return [rows // count] * count

    def _one(self, name: str, out: Any, facts: dict[str, Any], return_dict: bool) -> Any:
        head = self.flexible.kept[name]
        if head.config.get("head_type") not in ROW_HEADS and self.flexible.spec.kind in ("first", "end"):
            facts = {**facts, "cls_output": None}
        return head(out, return_dict=return_dict, **{k: v for k, v in facts.items() if v is not None})

    def _facts(self, out: Any, named: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        """What heads get beside the states."""
        facts: dict[str, Any] = {k: v for k, v in given.items() if v is not None and k != "head_arguments"}
        facts |= given.get("head_arguments") or {}
        ahead = "decoder_" if self.is_encoder_decoder else ""
        facts["attention_mask"] = named.get(f"{ahead}attention_mask")
        facts["pooled_output"] = getattr(out, "pooler_output", None)
        for site in self._embed_sites():
            if isinstance(site, PromptSite):
                if self.is_encoder_decoder:
                    continue  # its heads read the decoder, which is no longer than its inputs
                added = next(p.prompt_embedding.num_embeddings for f in site.parts.values() for p in f)
                facts |= {"prompt_tokens_length": added, "prompt_skip": site.skip}
            else:
                facts["invertible_adapter"] = Undo(site)
        if not self.is_encoder_decoder and self.flexible.scale is not None:
            facts["scale"] = self.flexible.scale
        if self.flexible.softcap is not None:
            facts["softcap"] = self.flexible.softcap
        return facts

    def _embed_sites(self) -> list[Any]:
        adapters = self._modules.get("adapters")
        if adapters is None:
            return []
        sites = [getattr(p.module, p.slot) for p in adapters.filled if p.kind in ("embed", "lift")]  # type: ignore
        kinds = (PromptSite, EmbedSite)
        return [site for site in sites if isinstance(site, kinds) and not getattr(site, "inverse", False)]

    def _row(self, out: Any, named: dict, facts: dict, heads: Any) -> Tensor | None:
        """(B, D): what rows are classified by; None for the first state."""
        kind, x = self.flexible.spec.kind, out.last_hidden_state
        if kind == "first":
            return None
        if kind == "pool":
            return out.pooler_output.flatten(1)
        if kind == "mean":
            return x[:, 1:].mean(1)
        if kind in ("all", "map"):
            return x.mean(1)
        used = [self.flexible.kept[name].config.get("head_type") for name in names_in(heads)]
        if kind == "end" and not any(t in ROW_HEADS for t in used):
            return None
        ahead = "decoder_" if self.is_encoder_decoder and kind == "last" else ""
        added, skip = facts.get("prompt_tokens_length") or 0, facts.get("prompt_skip") or 0
        length, rows = x.shape[1] - added, torch.arange(x.shape[0], device=x.device)
        ids = named.get(f"{ahead}input_ids")
        if kind == "end" and ids is not None and ids.shape[1] != length:
            raise ArgumentError(
                f"a row is classified by its end token, so decoder_input_ids must be as long as input_ids "
                f"({ids.shape[1]}), but have {length} positions"
            )
        if kind == "end":
            return _at_end(x, ids, self.config.eos_token_id)
        mask, fits = named.get(f"{ahead}attention_mask"), (x.shape[0], length)
        ids = None if ids is None or ids.shape != fits else ids
        mask = None if mask is None or mask.shape != fits else mask
        at = last_token(Call(self.config, ids, mask), x[:, :length])
        return x[rows, torch.where(at >= skip, at + added, at)]


def _at_end(x: Tensor, ids: Tensor | None, end: int | None) -> Tensor:
    """(B, D): the states of the last end tokens."""
    if ids is None or end is None:
        raise ArgumentError("a row is classified by its end token: pass input_ids")
    ends = ids == end
    if not torch.compiler.is_compiling():
        count = ends.sum(1)
        if count.min() != count.max() or not count.min():
            raise ArgumentError(
                f"every row must hold the same number of end tokens ({end}), but they hold {count.tolist()}"
            )
    last = ends.shape[1] - 1 - ends.flip(1).int().argmax(1)
    return x[torch.arange(x.shape[0], device=x.device), last]


class Undo(Method):
    """What the invertible adapters at an embedding did, undone: (x) -> x."""

    def __init__(self, site: EmbedSite) -> None:
        self.site = site

    def __call__(self, x: Tensor, rev: bool = True) -> Tensor:
        (y,) = run_setup(self.site.setup, (x,), (), self, self.site.facts, rev)
        assert y is not None
        return y

    def leaf(self, name: str, flow: Flow, fixed: Flow) -> Flow:
        x = flow[0]
        for part in reversed(self.site.parts.get(name, ())):
            x = part(x, True)
        return (x,)

    def fuse(self, block: Any, flow: Flow, fixed: Flow, facts: Facts) -> Flow:
        return run_setup(block.children[0], flow, fixed, self, facts, True)


def _fields(out: Any) -> dict[str, Any]:
    return {name: getattr(out, name) for name in type(out).__dataclass_fields__}


_INPUTS = frozenset({"input_ids", "attention_mask", "outputs", "cls_output", "self", "given", "kwargs"})


@functools.cache
def adapter_class(model_type: str) -> type[FlexibleModel]:
    """`XAdapterModel` of a family."""
    entry = row(model_type)
    if "base-model" not in entry.classes.values():
        raise ConfigError(f"family {model_type!r} has no bare model that heads could be added to")
    base = model_class(model_type, "base-model")
    if "family" not in vars(base):
        raise ConfigError(
            f"{base.__name__} was registered from outside; flexible heads need a family made by phyla.family"
        )
    return _make(entry, base)


def class_name(entry: Row) -> str:
    """The public name of a family's class with flexible heads."""
    return f"{entry.config.removesuffix('Config')}AdapterModel"


def _make(entry: Row, base: Any) -> type[FlexibleModel]:
    family: Family = base.family
    spec = Flexible(
        output=base.head_spec.output, pool=base.head_spec.pool, prefix=base.head_spec.prefix,
        build=base.head_spec.build, table=base.head_spec.table, changes=base.head_spec.changes,
        names=base.head_spec.names, base=base.head_spec, heads=family.heads,
        kind=row_kind(base.head_spec, family.heads, entry.modality),
    )  # fmt: skip
    skeleton = base.__bases__[0]
    names = tuple(inspect.signature(skeleton.forward).parameters)[1:]

    def forward(self: FlexibleModel, *args: Any, **named: Any) -> Any:
        named.update(zip(names, args, strict=False))
        given = {k: named.pop(k) for k in HEAD_ARGUMENTS if k in named}
        return self.answer(named, given)

    taken = list(inspect.signature(skeleton.forward).parameters.values())
    more = [n for n in HEAD_ARGUMENTS if n not in names]
    keyword = inspect.Parameter.KEYWORD_ONLY
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*taken, *(inspect.Parameter(n, keyword, default=None) for n in more)]
    )
    forward.__doc__ = (
        f"{skeleton.forward.__doc__}\n\n        head: a name or several, in place of the active ones."
    )
    body = {
        "family": family, "head_spec": spec, "config_class": base.config_class, "forward": forward,
        "base_forward": skeleton.forward, "base_names": names, "__module__": "phyla.adapters",
        "__doc__": f"{entry.model_type} with flexible heads.",
    }  # fmt: skip
    if hasattr(skeleton, "start_ids"):
        body["prepare_decoder_input_ids_from_labels"] = skeleton.start_ids
    return type(class_name(entry), (FlexibleModel, skeleton), body)


def class_named(name: str) -> type[FlexibleModel] | None:
    """The class of that public name, or None."""
    for entry in table().values():
        if class_name(entry) == name and "base-model" in entry.classes.values():
            return adapter_class(entry.model_type)
    return None


def kinds_for(model: FlexibleModel) -> list[str]:
    """The kinds of heads that have a meaning on a model."""
    fields: Mapping[str, Any] = model.head_spec.output.__dataclass_fields__
    if "last_hidden_state" not in fields:
        return []
    reads = type(model).main_input_name == "input_ids"
    found = ["classification", "multilabel_classification", "tagging", "question_answering"]
    if type(model).main_input_name == "pixel_values":
        found.append("image_classification")
    if model.is_encoder_decoder:
        found.append("seq2seq_lm")
    elif reads:
        found += ["multiple_choice", "dependency_parsing", "masked_lm", "causal_lm"]
    return [kind for kind in MODEL_HEAD_MAP if kind in found]
