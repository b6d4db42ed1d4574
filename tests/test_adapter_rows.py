"""Rows of one batch with adapters of their own: in calls, in training and in every way of generating."""

import copy
import functools

import pytest
import torch
from test_adapters import _golden, _model, _randomise, _run, _two

import phyla
from phyla.adapters import Fuse, MultiTask, Parallel, Stack
from phyla.errors import AdapterError

GENERATORS = {
    "llama": "LlamaForCausalLM",
    "bloom": "BloomForCausalLM",
    "bart": "BartForConditionalGeneration",
}
WAYS = (
    {}, {"use_cache": False}, {"num_beams": 2, "num_return_sequences": 2},
    {"do_sample": True, "seed": [3, 4]},
)  # fmt: skip
METHODS = (
    "seq_bn[reduction_factor=4]|lora[r=2]", "prefix_tuning_flat[prefix_length=3]", "noreft[r=2]",
    "prompt_tuning[prompt_length=3]",
)  # fmt: skip


def _mixed(model, family: str, names: list) -> tuple[torch.Tensor, torch.Tensor]:
    """(what a call with these adapters gives, what the single adapters give for these rows)."""
    single = {}
    for name in set(names):
        model.set_active_adapters(name)
        single[name] = _run(model, family)
    model.set_active_adapters(None)
    wanted = torch.stack([single[name][row] for row, name in enumerate(names)])
    return _run(model, family, adapter_names=names), wanted


def test_rows_take_compositions_and_ranks_of_their_own() -> None:
    model = _model("bert")
    for seed, config in enumerate(("lora[r=2]", "lora[r=5,alpha=3]", "seq_bn", "adapter_plus", "ia3")):
        model.add_adapter("abcde"[seed], config=config)
        _randomise(model, "abcde"[seed], seed)
    model.add_adapter_fusion(["c", "d"])
    with torch.no_grad():
        for names in (["a", "b"], ["b", None], [Stack("a", "c"), "e"], ["c", "d"], ["d", None], ["e", "a"]):
            found, wanted = _mixed(model, "bert", names)
            assert torch.allclose(found, wanted, atol=1e-5), names
    assert model.active_adapters is None
    for wrong in (["a"], ["a", "x"], "ab", [Parallel("a", "b"), "a"]):
        with pytest.raises(AdapterError):
            _run(model, "bert", adapter_names=wrong)
    with pytest.raises(AdapterError):
        model.set_active_adapters(Fuse("a", "e"))


@pytest.mark.parametrize("family", ["bert", "t5", "deberta", "bloom"])
def test_prefixes_of_several_lengths_share_a_batch(family: str) -> None:
    model = _model(family)
    for name, length in (("a", 2), ("b", 5)):
        model.add_adapter(name, config=f"prefix_tuning_flat[prefix_length={length}]")
        _randomise(model, name, length)
    with torch.no_grad():
        for names in (["a", "b"], ["b", None], [None, "a"]):
            found, wanted = _mixed(model, family, names)
            real = _golden(family).inputs().get("attention_mask", torch.ones(1, 1))[..., None].bool()
            if family == "deberta":  # what its padding becomes is nobody's concern
                found, wanted = found * real, wanted * real
            assert torch.allclose(found, wanted, atol=1e-4), names


@pytest.mark.parametrize(
    "method", ["lora[r=2]", "seq_bn", "noreft[r=2]", "prefix_tuning_flat[prefix_length=2]"]
)
def test_rows_train_what_single_runs_train(method: str) -> None:
    model = _two("bert", method)
    inputs, grads = _golden("bert").inputs(), []
    model.train_adapter("a")
    for parameter in model.adapters.parameters():
        parameter.requires_grad_(True)
    model.eval()
    for mixed in (True, False):
        model.zero_grad()
        if mixed:
            model(**inputs, adapter_names=["b", "a"]).last_hidden_state.pow(2).sum().backward()
        else:
            for row, name in enumerate("ba"):
                model.set_active_adapters(name)
                one = {k: v[row : row + 1] for k, v in inputs.items()}
                model(**one).last_hidden_state.pow(2).sum().backward()
        grads.append([None if p.grad is None else p.grad.clone() for p in model.adapters.parameters()])
    assert any(g is not None for g in grads[0])
    for found, wanted in zip(*grads, strict=True):
        assert (found is None) == (wanted is None)
        assert found is None or torch.allclose(found, wanted, atol=1e-3, rtol=1e-3)


@functools.cache
def _generator(family: str):
    torch.manual_seed(0)
    cls = getattr(phyla, GENERATORS[family])
    config = cls.config_class.from_dict(_golden(family).facts["config"])
    if config.is_encoder_decoder:
        config.decoder_start_token_id = 2
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", GENERATORS)
def test_generation_by_rows_copies_and_tasks(family: str, method: str) -> None:
    model = copy.deepcopy(_generator(family))
    for seed, name in enumerate("ab"):
        model.add_adapter(name, config=method)
        _randomise(model, name, seed)
    ids = torch.tensor([[3, 7, 9, 4, 8], [3, 3, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    plain = None
    for way in WAYS:
        call = {"attention_mask": mask, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": 1, **way}
        count, single = way.get("num_return_sequences", 1), {}
        for name in ("a", "b", None):
            model.set_active_adapters(name)
            single[name] = model.generate(ids, **call)
        if not way:
            plain = single
        elif "use_cache" in way:  # the cache changes nothing
            assert plain is not None and all(torch.equal(plain[n], single[n]) for n in single)
        found = model.generate(ids, adapter_names=["b", "__base__"], **call)
        assert torch.equal(found, torch.cat([single["b"][:count], single[None][count:]]))
        model.set_active_adapters(Parallel("a", "b"))
        assert torch.equal(model.generate(ids, **call), torch.cat([single["a"], single["b"]]))
        model.set_active_adapters(MultiTask("a", "b"))
        found = model.generate(ids, task_ids=[1, 0], **call)
        assert torch.equal(found, torch.cat([single["b"][:count], single["a"][count:]]))
    assert not hasattr(model, "prompt_lead")


def test_a_prompt_begins_as_a_text() -> None:
    model, table = _model("bert"), None
    with pytest.raises(AdapterError, match="tokenizer"):
        model.add_adapter("a", config="prompt_tuning[prompt_init=from_string,prompt_init_text='hello world']")
    import phyla.adapters.prompt as prompt

    old = prompt._tokens
    prompt._tokens = lambda text, places: [5, 6, 7]
    try:
        model.add_adapter(
            "a", config="prompt_tuning[prompt_length=4,prompt_init=from_string,prompt_init_text=x]"
        )
    finally:
        prompt._tokens = old
    (part,) = model.adapters.get("a").parts
    table = model.get_input_embeddings().weight
    assert torch.equal(part.prompt_embedding.weight, table[torch.tensor([5, 6, 7, 5])])
