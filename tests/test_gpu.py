"""On a CUDA device every family gives the numbers of the CPU (`pytest -m gpu`; not in the ordinary run)."""

import tempfile
from pathlib import Path

import pytest
import torch

import phyla
from phyla.registry import table
from phyla.testing.goldens import read_names, read_pack

GOLDENS = Path(__file__).with_name("goldens")
CASES = [
    (row.model_type, name)
    for row in table().values()
    for name, task in row.classes.items()
    if task in ("base-model", "causal-lm", "seq2seq-lm")
    and (GOLDENS / f"{row.model_type}.tar.xz").exists()
    and name in read_names(GOLDENS / f"{row.model_type}.tar.xz")
]


def load(model_type: str, name: str, **options):
    golden = next(g for g in read_pack(GOLDENS / f"{model_type}.tar.xz") if g.name == name)
    with tempfile.TemporaryDirectory() as folder:
        golden.write_checkpoint(Path(folder))
        return getattr(phyla, name).from_pretrained(folder, **options), golden.inputs()


@pytest.mark.gpu
@pytest.mark.parametrize(("model_type", "name"), CASES, ids=["/".join(case) for case in CASES])
@torch.no_grad()
def test_the_device_computes_alike(model_type: str, name: str) -> None:
    model, inputs = load(model_type, name)
    if model_type == "vit_mae":  # which patches are hidden is drawn, and devices draw other numbers
        patches = (model.config.image_size // model.config.patch_size) ** 2
        inputs["noise"] = torch.rand(len(inputs["pixel_values"]), patches)
    wanted = model(**inputs)[0]
    model, _ = load(model_type, name, device_map="cuda")
    moved = {k: v.cuda() if torch.is_tensor(v) else v for k, v in inputs.items()}
    found = model(**moved)[0].cpu()
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration", "MambaForCausalLM"])
def test_greedy_tokens_are_those_of_the_cpu(name: str) -> None:
    model_type = name.partition("For")[0].lower()
    model, inputs = load(model_type, name)
    ids = inputs["input_ids"]
    options = {"max_new_tokens": 6, **({"decoder_start_token_id": 0} if model_type == "t5" else {})}
    wanted = model.generate(ids, **options)
    found = model.to("cuda").generate(ids.cuda(), **options)
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "OPTForCausalLM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_steps_give_the_tokens_of_plain_ones(name: str, dtype: torch.dtype) -> None:
    from phyla.generation import captured

    model_type = name.partition("For")[0].partition("LM")[0].lower()
    model, inputs = load(model_type, name, device_map="cuda", torch_dtype=dtype)
    ids = inputs["input_ids"].cuda()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # padding in front
    asked = {"attention_mask": mask, "max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0,
             "output_logits": True, "return_dict_in_generate": True}  # fmt: skip
    plain = model.generate(ids, disable_compile=True, **asked)
    assert not captured._kept.get(model)
    found = model.generate(ids, **asked)
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 5e-2}
    for ours, theirs in zip(found.logits[:4], plain.logits[:4], strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    for _ in range(2):  # the second call runs the step that the first has recorded
        asked |= {"return_dict_in_generate": False, "output_logits": False}
        again = model.generate(ids, **asked)
        assert captured._kept[model]
        if dtype == torch.float32:
            assert torch.equal(again, plain.sequences)


@pytest.mark.gpu
def test_attention_of_the_package_flash_attn() -> None:
    pytest.importorskip("flash_attn")
    config = phyla.LlamaConfig(vocab_size=64, hidden_size=128, num_hidden_layers=2, num_attention_heads=2)
    model = phyla.LlamaForCausalLM(config, device="cuda", dtype=torch.bfloat16).eval()
    ids = torch.arange(20, device="cuda")[None] + 5
    wanted = model(ids).logits
    config._attn_implementation = "flash_attention_2"
    other = phyla.LlamaForCausalLM(config, device="cuda", dtype=torch.bfloat16).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(ids).logits, wanted, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
def test_recorded_steps_of_the_engine() -> None:
    config = phyla.LlamaConfig(
        vocab_size=256, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = phyla.LlamaForCausalLM(config, device="cuda").eval()
    prompts = [list(range(5, 8 + 7 * i)) for i in range(5)]
    asked = {"max_new_tokens": 24, "eos_token_id": None, "pad_token_id": 0}
    with phyla.Engine(model, page_size=16, max_memory=1 << 24) as engine:
        found = [output.generated_tokens for output in engine.generate(prompts, **asked)]
        assert engine.recorded is not None
        assert engine.recorded.made
    for ids, tokens in zip(prompts, found, strict=True):
        alone = model.generate(torch.tensor([ids], device="cuda"), disable_compile=True, **asked)
        assert tokens == alone[0, len(ids) :].tolist()
