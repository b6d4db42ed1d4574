"""What `pytest -m gpu` runs, on a device that is only pretended; this file as a program prints a line a case.

Tensors say that they are on a CUDA device and compute on the CPU. An operation on tensors of both devices is
an error as it is there, and so is whatever waits for the device in what a graph would record. Numbers,
kernels and speed of a real device are not tested.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
COPIES = ("aten::copy_", "aten::_to_copy")
# What the CPU must know the result of.
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal")
recording = False


class Pretended(torch.Tensor):
    """A tensor of the device; `inner` holds its numbers. For torch's own code it is on "meta"."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Pretended":
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="meta",
        )  # fmt: skip
        made.inner = inner
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.inner.tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def numpy(self, *args: Any, **named: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with Device():
            return func(*args, **(kwargs or {}))


def inner(tree: Any) -> Any:
    return tree_map(lambda t: t.inner if isinstance(t, Pretended) else t, tree)


class Device(TorchDispatchMode):
    """Operations on the pretended device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func._schema.name
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = [t for t in tensors if isinstance(t, Pretended)]
        here = [t for t in tensors if not isinstance(t, Pretended) and t.dim()]
        indexed = (
            name.startswith(("aten::index.", "aten::index_put", "aten::_index_put")) or name == "aten::index"
        )
        if there and here and name not in COPIES and not (indexed and isinstance(args[0], Pretended)):
            shapes = [(type(t).__name__, tuple(t.shape)) for t in tensors]
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {shapes}")
        asked, target = kwargs.get("device"), bool(there)
        if asked is not None:
            kind = torch.device(asked).type
            # Torch's own code believes to be on "meta" where it makes a tensor beside one of the device.
            target = kind == "cuda" or (
                kind == "meta" and (target or name in ("aten::scalar_tensor", COPIES[1]))
            )
            kwargs["device"] = CPU if target or kind == "cpu" else asked
        if name == "aten::copy_":
            target = isinstance(args[0], Pretended)
        moves = name in COPIES and (len(there) < len(tensors) or not target)
        if recording and (name in WAITS or moves):
            raise RuntimeError(f"{func} waits for the device, or for the CPU, in a recording")
        args, kwargs = inner((args, kwargs))
        out = func(*args, **kwargs)
        return tree_map(lambda t: wrapped(t, there), out) if target else out


def wrapped(value: Any, there: list[Pretended]) -> Any:
    """What an operation gave, on the device: one of its arguments where it is that."""
    if not isinstance(value, torch.Tensor):
        return value
    same = [t for t in there if t.inner is value]
    return same[0] if same else Pretended(value)


def numbered(value: Any) -> Any:
    """The device with its number, without which torch would ask the driver for it."""
    is_cuda = (
        value == "cuda"
        if isinstance(value, str)
        else isinstance(value, torch.device) and value.type == "cuda"
    )
    return CUDA if is_cuda else value


class Calls(TorchFunctionMode):
    """Calls whose way to an operation would ask for a real device."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {k: numbered(v) for k, v in (kwargs or {}).items() if k != "pin_memory"}
        args = tuple(numbered(a) for a in args)
        moves = {torch.Tensor.cuda: CUDA, torch.Tensor.cpu: CPU}
        if func in moves:
            return args[0].to(moves[func])
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == CUDA:
            del kwargs["device"]
            return func(*args, **kwargs).to(CUDA)
        if func in (
            torch.Tensor.__getitem__,
            torch.Tensor.__setitem__,
        ):  # lists would become tensors on "meta"
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)
            return func(args[0], index, *args[2:])
        if func is torch.nn.functional.scaled_dot_product_attention:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            if len({t.device for t in tensors}) > 1:
                raise RuntimeError("Expected all tensors of an attention to be on the same device")
            out = func(*inner(args), **inner(kwargs))
            return Pretended(out) if tensors[0].is_cuda else out
        return func(*args, **kwargs)


class Generator(torch.Generator):
    """Draws for the device as for the CPU."""

    def __new__(cls, device: Any = None) -> "Generator":
        return super().__new__(cls)


class NoGrad(contextlib.ContextDecorator):
    """In place of the inference mode, which tensors like these do not know."""

    def __init__(self, mode: bool = True) -> None:
        self.mode = mode

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(self.before and not self.mode)

    def __exit__(self, *error: object) -> None:
        torch.set_grad_enabled(self.before)


def pretend() -> None:
    """Let torch speak of a device. Before anything else is imported: decorators keep what they find."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.inference_mode, torch.Generator = NoGrad, Generator  # type: ignore[misc, assignment]
    answers = {
        "_lazy_init": None, "synchronize": None, "is_available": True, "device_count": 1,
        "current_device": 0, "device_of": contextlib.nullcontext(),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer: answer)


@contextlib.contextmanager
def device() -> Iterator[None]:
    with Calls(), Device():
        yield


def record(step: Callable[[], None]) -> Callable[[], None]:
    """In place of a recorder of graphs: the step, which must not wait."""

    def replay() -> None:
        global recording
        recording = True
        try:
            step()
        finally:
            recording = False

    step()
    replay()
    return replay


def main() -> None:
    pretend()
    import test_gpu as real

    from phyla.generation import captured

    captured.RECORDERS["cuda"], captured.is_watched = record, lambda: False  # type: ignore[assignment]
    cases: dict[str, Callable[[], None]] = {"mixed devices": mixed_devices, "waiting": waiting} | {
        f"{model_type} {name}": lambda m=model_type, n=name: real.test_the_device_computes_alike(m, n)
        for model_type, name in real.CASES
        if model_type in FAMILIES
    }
    for name in ("LlamaForCausalLM", "T5ForConditionalGeneration", "MambaForCausalLM"):
        cases[f"greedy {name}"] = lambda n=name: real.test_greedy_tokens_are_those_of_the_cpu(n)
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"):
        for dtype in (torch.float32, torch.bfloat16):
            cases[f"recorded {name} {dtype}"] = lambda n=name, d=dtype: (
                real.test_recorded_steps_give_the_tokens_of_plain_ones(n, d)
            )
    cases["recorded engine"] = real.test_recorded_steps_of_the_engine
    for label, settings in STRATEGIES.items():
        cases[label] = lambda s=settings: strategy(real, s)
    for label, run in cases.items():
        try:
            with device():
                run()
            print(f"ok {label}", flush=True)
        except Exception:
            print(f"FAILED {label}: {traceback.format_exc(limit=-6)}", flush=True)


def mixed_devices() -> None:
    try:
        torch.ones(2, device="cuda") + torch.ones(2)
    except RuntimeError:
        return
    raise AssertionError("tensors of two devices must not be added")


def waiting() -> None:
    try:
        record(lambda: torch.ones(2, device="cuda").sum().item())
    except RuntimeError:
        return
    raise AssertionError("a recording must not wait")


def strategy(real: Any, settings: dict[str, Any]) -> None:
    """Tokens on the device are those of the CPU."""
    more = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, "disable_compile": True, **settings}
    model, inputs = real.load("llama", "LlamaForCausalLM")
    ids = inputs["input_ids"]
    wanted = model.generate(ids, **more)
    found = model.to("cuda").generate(ids.cuda(), **more)
    assert found.is_cuda
    assert torch.equal(found.cpu(), wanted)


# One of each kind of call.
FAMILIES = (
    "llama", "gpt2", "bert", "xmod", "t5", "bart", "whisper", "mamba", "recurrent_gemma", "mixtral", "vit",
    "swin", "clip", "llava", "speecht5", "longformer", "xlnet", "reformer", "udop", "layoutlmv3", "vit_mae",
)  # fmt: skip
STRATEGIES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained beams": {"num_beams": 4, "force_words_ids": [[5, 6]]},
    "contrastive search": {"penalty_alpha": 0.5, "top_k": 3},
    "layers in contrast": {"dola_layers": "low"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "early exit": {"assistant_early_exit": 1},
    "guidance": {"guidance_scale": 1.5},
    "seeds": {"do_sample": True, "seed": [1, 2], "top_k": 5, "top_p": 0.9},
    "processors": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "bad_words_ids": [[3], [4, 5]],
                   "suppress_tokens": [7], "sequence_bias": [[[9], 1.0]], "presence_penalty": 0.1},
    "prefixes": {"prefix_allowed_tokens_fn": lambda row, ids: list(range(3, 20))},
    "static cache": {"cache_implementation": "static"},
    "quantised cache": {"cache_implementation": "quantized"},
    "chunks": {"prefill_chunk_size": 4},
}  # fmt: skip

if __name__ == "__main__":
    main()
