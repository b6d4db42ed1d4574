"""Adapters beyond one call: embeddings, sharing, threads, models from outside, other mechanisms."""

import copy
import pickle
import threading
from pathlib import Path

import pytest
import torch
from test_adapters import _model, _randomise, _run, _two
from torch import nn

import phyla.adapters as adapters
from phyla.adapters import AdapterModelInterface, AdapterSetup, Parallel, Stack
from phyla.errors import AdapterError


class Tokenizer:
    """As much of a tokenizer as token tables need."""

    def __init__(self, words: str) -> None:
        self.words = words.split()

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def test_embeddings_are_added_switched_and_come_back(tmp_path: Path) -> None:
    model, other = _model("bert"), _model("bert")
    own = model.get_input_embeddings().weight
    with torch.no_grad():
        before = _run(model, "bert")
    new = Tokenizer("a b c d " + " ".join(f"w{i}" for i in range(200)))
    model.add_embeddings("new", new, "default", Tokenizer("x c a"))
    table = model.get_input_embeddings().weight
    assert model.active_embeddings == "new" and model.config.vocab_size == len(new) == len(table)
    assert torch.equal(table[0], own[2]) and torch.equal(table[2], own[1])
    model.save_embeddings(tmp_path, "new")
    with torch.no_grad():
        wanted = _run(model, "bert")
    assert other.load_embeddings(tmp_path, "mine") is None
    with torch.no_grad():
        assert torch.equal(_run(other, "bert"), wanted)
    model.set_active_embeddings("default")
    with torch.no_grad():
        assert torch.equal(_run(model, "bert"), before)
    assert set(model.loaded_embeddings) == {"default", "new"}
    other.delete_embeddings("mine")
    assert other.active_embeddings == "default" and set(other.loaded_embeddings) == {"default"}
    for call in (
        lambda: model.add_embeddings("new", new),
        lambda: model.set_active_embeddings("none"),
        lambda: model.delete_embeddings("default"),
        lambda: model.add_embeddings("z", new, "default"),
        lambda: model.add_embeddings("../z", new),
    ):
        with pytest.raises(AdapterError):
            call()


def test_shared_parameters_are_one_until_unshared() -> None:
    model = _two("bert", "mtl_lora[r=2,n_up_projection=2]")
    model.share_parameters(["a", "b"])
    a, b = model.adapters.get("a").parts[0], model.adapters.get("b").parts[0]
    assert a.lora_A is b.lora_A and a.weights is b.weights and a.task_specific is not b.task_specific
    model.unshare_parameters(["a", "b"])
    b = model.adapters.get("b").parts[0]
    assert a.lora_A is not b.lora_A and torch.equal(a.lora_A, b.lora_A)
    other = _two("bert", "lora[r=2]")
    with pytest.raises(AdapterError, match="MTL-LoRA"):
        other.share_parameters("a,b")


def test_layers_and_parts_can_be_visited() -> None:
    model, seen = _two("bert", "seq_bn"), []
    model.add_adapter_fusion(["a", "b"])
    model.apply_to_adapter_layers(lambda index, part: seen.append(index))
    assert sorted(set(seen)) == [index for index, _ in model.iter_layers()]
    model.adapter_to("a", dtype=torch.float64)
    model.adapter_fusion_to(["a", "b"], dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in model.adapters.fusions.parameters())
    assert {p.dtype for p in model.adapters.get("a").parameters()} == {torch.float64}
    with pytest.raises(AdapterError):
        model.adapter_fusion_to("a,c")


def test_threads_have_setups_of_their_own() -> None:
    model, found, single = _two("bert", "lora[r=2]"), {}, {}
    with torch.no_grad():
        for name in ("a", "b"):
            model.set_active_adapters(name)
            single[name] = _run(model, "bert")

    def work(name: str) -> None:
        with torch.no_grad(), AdapterSetup(name):
            found[name] = [_run(model, "bert") for _ in range(8)]

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(y, single[name]) for name in found for y in found[name]) and len(found) == 2


def test_dropped_layers_do_without_adapters() -> None:
    model, left = _two("bert", "lora[r=2]"), _model("bert")
    left.add_adapter("a", config="lora[r=2,leave_out=[0]]")
    left.adapters.get("a").load_state_dict({
        k.replace("parts.", "parts."): v for k, v in zip(
            left.adapters.get("a").state_dict(),
            list(model.adapters.get("a").state_dict().values())[-len(left.adapters.get("a").state_dict()):],
            strict=True,
        )
    })  # fmt: skip
    model.set_active_adapters("a", skip_layers=[0])
    left.set_active_adapters("a")
    with torch.no_grad():
        assert torch.equal(_run(model, "bert"), _run(left, "bert"))
    model.train_adapter("a")
    model.set_active_adapters("a", skip_layers=[0])
    _run(model, "bert").sum().backward()
    grads = [
        (place.layer, p.grad) for place, part in model.adapters.get("a").items() for p in part.parameters()
    ]
    assert all((grad is None) == (layer == 0) for layer, grad in grads)


def test_models_with_adapters_are_pickled() -> None:
    model = _two("bert", "lora[r=2]")
    model.set_active_adapters(Parallel("a", "b"))
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    with torch.no_grad():
        assert torch.equal(_run(again, "bert"), _run(model, "bert"))


@pytest.mark.parametrize(
    "method", ["lora[r=2]", "seq_bn", "prefix_tuning_flat[prefix_length=2]", "loreft[r=2]"]
)
def test_active_adapters_compile_to_one_graph_and_export(method: str) -> None:
    model = _two("llama", method)
    model.set_active_adapters("a")
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        wanted = model(ids, use_cache=False).last_hidden_state
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(ids, use_cache=False).last_hidden_state, wanted, atol=1e-5)
        exported = torch.export.export(model, (ids,), {"use_cache": False}).module()
        assert torch.allclose(exported(ids, use_cache=False).last_hidden_state, wanted, atol=1e-5)


MECHANISMS = ("seq_bn", "lora[r=2]", "ia3", "prefix_tuning_flat[prefix_length=2]", "noreft[r=2]")


@pytest.mark.parametrize("method", MECHANISMS)
def test_copies_pickles_checkpointing_and_half_precision(method: str) -> None:
    model = _two("llama", method)
    model.set_active_adapters("a")
    with torch.no_grad():
        wanted = _run(model, "llama")
        assert torch.equal(_run(copy.deepcopy(model), "llama"), wanted)
        half = copy.deepcopy(model).bfloat16()
        assert torch.allclose(_run(half, "llama").float(), wanted, atol=0.3, rtol=0.3)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(_run(model, "llama").float(), wanted, atol=0.3, rtol=0.3)
    grads = []
    model.train_adapter("a")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        _run(model, "llama").pow(2).sum().backward()
        grads.append([p.grad.clone() for p in model.adapters.parameters() if p.grad is not None])
    assert grads[0] and all(torch.allclose(a, b, atol=1e-3, rtol=1e-3) for a, b in zip(*grads, strict=True))


class Attention(nn.Module):
    def __init__(self, joint: bool) -> None:
        super().__init__()
        if joint:
            self.qkv = nn.Linear(16, 48)
        else:
            self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out, self.joint = nn.Linear(16, 16), joint

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1) if self.joint else (self.q(x), self.k(x), self.v(x))
        return self.out(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)


class Outer(nn.Module):
    """A user's own model, which knows nothing of phyla."""

    def __init__(self, joint: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            block = nn.Module()
            block.norm_1, block.attn, block.norm_2 = nn.LayerNorm(16), Attention(joint), nn.LayerNorm(16)
            block.up, block.down = nn.Linear(16, 32), nn.Linear(32, 16)
            block.forward = None
            self.blocks.append(Block(block))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    def __init__(self, parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.named_children():
            setattr(self, name, part)

    def forward(self, x):
        x = x + self.attn(self.norm_1(x))
        return x + self.down(torch.relu(self.up(self.norm_2(x))))


def _outer(joint: bool = False) -> Outer:
    torch.manual_seed(0)
    names = {"attn_qkv_proj": "qkv"} if joint else {f"attn_{p}_proj": p for p in "qkv"}
    model = Outer(joint).eval()
    adapters.init(model, interface=AdapterModelInterface(
        ["bottleneck", "lora", "reft", "invertible"], "embed", "blocks", "attn", None, "out", "up", "down",
        layer_pre_self_attn="norm_1", layer_pre_ffn="norm_2", **names,
    ))  # fmt: skip
    return model


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
    "method", ["seq_bn", "double_seq_bn_inv", "par_bn", "lora[r=2,intermediate_lora=true]", "ia3", "loreft"]
)
def test_models_from_outside(method: str, joint: bool, tmp_path: Path) -> None:
    model, ids = _outer(joint), torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        plain = model(ids)
        for seed, name in enumerate("ab"):
            model.add_adapter(name, config=method)
            _randomise(model, name, seed)
        model.set_active_adapters("a")
        single = model(ids)
        assert not torch.allclose(single, plain)
        model.save_adapter(tmp_path, "a")
        other = _outer(joint)
        other.load_adapter(tmp_path, set_active=True)
        assert torch.equal(other(ids), single) and (tmp_path / "adapter_interface.json").exists()
        assert torch.equal(copy.deepcopy(model)(ids), single)
        mixed = model(ids, adapter_names=["a", None])
        assert torch.allclose(mixed, torch.stack([single[0], plain[1]]), atol=1e-6)
        if "lora" in method:
            with pytest.raises(AdapterError, match="wide"):
                model.set_active_adapters(Stack("a", "b"))
        else:
            model.set_active_adapters(Stack("a", "b"))
            assert not torch.allclose(model(ids), single)
        model.set_active_adapters(Parallel("a", "b"))
        assert torch.allclose(model(ids)[:2], single, atol=1e-6)
        if method.startswith(("lora", "ia3")):
            model.merge_adapter("a")
            assert torch.allclose(model(ids), single, atol=1e-5)
            model.reset_adapter()
        model.set_active_adapters(None)
        assert torch.equal(model(ids), plain)
    model.train_adapter("a")
    model(ids).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("adapters."))
    assert "lora" in model.adapter_summary() or "bottleneck" in model.adapter_summary() or "reft" in method


def test_interfaces_say_what_they_cannot() -> None:
    model = _outer()
    for config in ("prefix_tuning", "prompt_tuning", "adapter_plus"):
        with pytest.raises(AdapterError):
            model.add_adapter("a", config=config)
    with pytest.raises(AdapterError, match="interface"):
        adapters.init(nn.Linear(2, 2))
    with pytest.raises(AdapterError, match="qkv"):
        AdapterModelInterface(["lora"], "e", "l", "a", None, "o", "i", "d")
    assert adapters.init(_model("bert")) is None
