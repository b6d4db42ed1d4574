"""PEFT's methods, folders and merging: every method on several kinds of models, from tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import phyla
import phyla.adapters.peft as peft
from phyla.errors import AdapterError, MissingWeightsError, ShapeMismatchError

SMALL: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "GPT2": {},
    "Bert": {},
    "Mixtral": {"num_local_experts": 3, "num_key_value_heads": 2},
}
HEAD = {"Llama": "ForCausalLM", "GPT2": "LMHeadModel", "Bert": "ForMaskedLM", "Mixtral": "ForCausalLM"}
METHODS: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=4),
    "lora_all": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
    "rslora": lambda: peft.LoraConfig(r=4, use_rslora=True),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True),
    "pissa": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa"),
    "olora": lambda: peft.LoraConfig(r=2, init_lora_weights="olora"),
    "bias": lambda: peft.LoraConfig(r=2, bias="all"),
    "tokens_too": lambda: peft.LoraConfig(r=2, trainable_token_indices=[3, 5]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=3, target_r=2, total_step=10),
    "ia3": peft.IA3Config,
    "vera": lambda: peft.VeraConfig(r=4),
    "loha": lambda: peft.LoHaConfig(r=2),
    "lokr": lambda: peft.LoKrConfig(r=2),
    "lokr_both": lambda: peft.LoKrConfig(r=1, decompose_both=True, decompose_factor=4),
    "oft": lambda: peft.OFTConfig(oft_block_size=4),
    "oft_shared": lambda: peft.OFTConfig(oft_block_size=4, block_share=True, use_cayley_neumann=False),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2),
    "hra": lambda: peft.HRAConfig(r=2),
    "hra_at_once": lambda: peft.HRAConfig(r=2, apply_GS=True, init_weights=False),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=20, init_weights=True),
    "ln_tuning": peft.LNTuningConfig,
    "tokens": lambda: peft.TrainableTokensConfig(token_indices=[1, 4]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "p_tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
}
PROMPTS = ("prompt", "p_tuning", "prefix")
FRESH_CHANGES = (*PROMPTS, "hra_at_once")
FACTORED = ("lora", "lora_all", "rslora", "pissa", "olora")


def small(name: str = "Llama") -> Any:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(phyla, f"{name}Config")(**sizes, intermediate_size=32, **SMALL[name])
    return getattr(phyla, name + HEAD[name])(config).eval()


def shaken(model: Any, name: str = "a") -> None:
    """Every parameter of an adapter moved off its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.adapters.get(name).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


IDS = torch.arange(14).view(2, 7) % 11


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("method", METHODS)
def test_method(family: str, method: str, tmp_path: Path) -> None:
    model = small(family)
    base, state = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    model.add_adapter("a", config=METHODS[method](), set_active=True)
    if method not in FRESH_CHANGES:
        assert close(logits(model), base), "a fresh adapter changes nothing"
    shaken(model)
    changed = logits(model)
    assert changed.shape != base.shape or not close(changed, base)

    model.save_adapter(tmp_path, "a")
    model.load_adapter(tmp_path, load_as="b", set_active=True)
    assert close(logits(model), changed), "what was saved computes the same"

    model.set_active_adapters("a")
    model.train_adapter("a")
    model(IDS).logits.square().mean().backward()
    trained = {n: p for n, p in model.named_parameters() if p.grad is not None}
    own = dict(model.adapters.get("a").named_parameters())
    assert all(p.grad is not None for p in own.values() if p.requires_grad)
    frozen = {id(p) for p in model.backbone.parameters()} - {id(p) for p in own.values()}
    assert not [n for n, p in trained.items() if id(p) in frozen]
    model.eval()

    if method in PROMPTS:
        with pytest.raises(AdapterError, match="merged"):
            model.merge_adapter("a")
    else:
        model.merge_adapter("a")
        assert close(logits(model), changed), "merged is the same as active"
        model.reset_adapter()
    model.set_active_adapters(None)
    assert torch.equal(logits(model), base)
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in state.items()), "the base is back, bit for bit"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(sorted(set(METHODS) - set(PROMPTS))), min_size=1, max_size=3, unique=True))
def test_any_merges_come_out_again(methods: list[str]) -> None:
    model = small("GPT2")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for method in methods:
        model.add_adapter(method, config=METHODS[method]())
        shaken(model, method)
        model.merge_adapter(method)
    model.reset_adapter()
    after = model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in state.items())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda c, t: c.update(r=3), ShapeMismatchError, "lora_A.weight must have shape"),
        (lambda c, t: t.pop(next(iter(t))), MissingWeightsError, "lora_A.weight"),
        (
            lambda c, t: t.update({"base_model.model.no.where.lora_A.weight": torch.ones(1)}),
            AdapterError,
            "no.where",
        ),
        (lambda c, t: c.update(target_modules=["k_proj"]), AdapterError, "target_modules"),
        (lambda c, t: c.update(target_modules=["nothing"]), AdapterError, "nothing"),
        (lambda c, t: c.update(peft_type="XLORA"), AdapterError, "XLORA"),
        (lambda c, t: c.update(alora_invocation_tokens=[1]), AdapterError, "alora_invocation_tokens"),
        (lambda c, t: c.update(bias="some"), AdapterError, "bias must be"),
    ],
)
def test_a_failed_load_names_the_key_and_changes_nothing(
    change: Any, error: type[Exception], words: str, tmp_path: Path
) -> None:
    model = small()
    model.add_adapter("a", config=peft.LoraConfig(r=2))
    model.save_adapter(tmp_path, "a")
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    change(facts, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts))
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=words):
        model.load_adapter(tmp_path, load_as="b")
    assert model.adapters.names() == ["a"]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in before.items()}


def test_adapterhub_lora_is_written_for_peft(tmp_path: Path) -> None:
    model = small()
    model.add_adapter("a", config="lora[r=2,alpha=6]", set_active=True)
    shaken(model)
    due = logits(model)
    model.save_adapter(tmp_path, "a", format="peft")
    model.load_adapter(tmp_path, load_as="b", set_active=True)
    assert close(logits(model), due)
    with pytest.raises(AdapterError, match="format"):
        model.save_adapter(tmp_path, "b", format="adapterhub")


def pair(one: int = 2, other: int = 2) -> Any:
    model = small()
    for name, rank in (("a", one), ("b", other)):
        model.add_adapter(name, config=peft.LoraConfig(r=rank, lora_alpha=3))
        shaken(model, name)
    with torch.no_grad():
        for parameter in model.adapters.get("b").parameters():
            parameter.mul_(-1.5)
    return model


def delta(model: Any, name: str) -> torch.Tensor:
    return next(iter(model.adapters.get(name).parts)).part.delta()


@pytest.mark.parametrize("strategy", ["cat", "svd", "ties_svd", "magnitude_prune_svd", "dare_linear_svd"])
def test_combinations_of_products(strategy: str) -> None:
    model = pair(2, 3)
    model.average_adapter(
        "c", ["a", "b"], [0.7, -0.4], strategy, normalize_weights=False, svd_rank=5, density=1.0
    )  # fmt: skip
    parts = [0.7 * delta(model, "a"), -0.4 * delta(model, "b")]
    due = parts[0] + parts[1]
    if strategy == "ties_svd":
        signs = torch.where(delta(model, "a") + delta(model, "b") >= 0, 1, -1)
        agree = torch.stack([delta(model, n).sign() == signs for n in "ab"])
        total = (torch.stack(parts) * agree).sum(0) / agree.sum(0).clamp(min=1)
        u, s, vh = torch.linalg.svd(total)
        due = (u[:, :5] * s[:5]) @ vh[:5]
    assert torch.allclose(delta(model, "c"), due, atol=1e-5)


@pytest.mark.parametrize(
    "strategy", ["task_arithmetic", "ties", "magnitude_prune", "dare_linear", "dare_ties"]
)
def test_combinations_of_factors(strategy: str) -> None:
    model = pair()
    with pytest.raises(AdapterError, match="one rank"):
        pair(2, 3).average_adapter("c", ["a", "b"], None, strategy, density=0.5)
    if strategy != "task_arithmetic":
        with pytest.raises(AdapterError, match="density"):
            model.average_adapter("c", ["a", "b"], None, strategy)
    model.average_adapter("c", {"a": 1.0, "b": -0.5}, None, strategy, normalize_weights=False, density=1.0)
    entries = {n: next(iter(model.adapters.get(n).parts)).part for n in "abc"}
    roots = [1.5**0.5, 0.75**0.5]
    a, b, made = entries["a"].lora_A, entries["b"].lora_A, entries["c"]
    if strategy in ("task_arithmetic", "magnitude_prune", "dare_linear"):
        assert torch.allclose(made.lora_A, roots[0] * a - roots[1] * b, atol=1e-6)
    assert made.scaling == 1.0


def test_taking_an_adapter_off_again() -> None:
    model = pair()
    model.average_adapter("c", ["a"], [-1.0], "svd", normalize_weights=False)
    assert torch.allclose(delta(model, "c"), -delta(model, "a"), atol=1e-6)


def test_scripts_for_peft(tmp_path: Path) -> None:
    base = small()
    due = logits(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, modules_to_save=["lm_head"]))
    trained, every = model.get_nb_trainable_parameters()
    assert 0 < trained < every / 2
    shaken(base, "default")
    changed = logits(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(small(), tmp_path)
    assert close(logits(again), changed)
    assert again.get_nb_trainable_parameters()[0] == 0
    merged = again.merge_and_unload()
    assert close(logits(merged), changed) and not merged.has_adapters()
    assert not close(changed, due)


def test_loraplus_groups() -> None:
    model = peft.get_peft_model(small(), peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    groups = peft.loraplus_groups(model, lr=1e-3, ratio=4.0)
    rates = {g["lr"]: len(g["params"]) for g in groups}
    assert rates == {1e-3: 2, 4e-3: 2, 1e-6: 2}


def test_adalora_gives_ranks_up(tmp_path: Path) -> None:
    base = small()
    config = peft.AdaLoraConfig(init_r=4, target_r=2, total_step=6, tinit=1, tfinal=2)
    model = peft.get_peft_model(base, config)
    shaken(base, "default")
    optimizer = torch.optim.SGD([p for p in base.parameters() if p.requires_grad], lr=0.01)
    for step in range(1, 7):
        loss = model(IDS).logits.square().mean() + peft.orthogonality_loss(base)
        loss.backward()
        optimizer.step()
        peft.update_and_allocate(base, step)
        optimizer.zero_grad()
    kept = [sum(v) for v in config.rank_pattern.values()]
    assert sum(kept) == 2 * len(kept)
    if min(kept):  # a module without any direction has no file
        due = logits(base)
        base.save_adapter(tmp_path, "default")
        base.load_adapter(tmp_path, load_as="b", set_active=True)
        assert close(logits(base), due)


def test_rows_of_a_batch_have_adapters_of_their_own() -> None:
    model = pair()
    singles = []
    for name, row in zip("ab", IDS, strict=True):
        model.set_active_adapters(name)
        singles.append(model(row[None]).logits)
    mixed = model(IDS, adapter_names=["a", "b"]).logits
    assert close(mixed, torch.cat(singles))


def test_overlays_compile() -> None:
    model = small("Mixtral")
    model.add_adapter(
        "a", config=peft.LoraConfig(r=2, target_modules=["w1", "w2", "q_proj"]), set_active=True
    )
    shaken(model)
    due = logits(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert close(compiled(IDS).logits, due)
