"""Watermarks and their detectors, against the reference's findings on the same texts."""

import pytest
import torch
from test_generation_strategies import DIGITS, recorded

import phyla
from phyla.errors import ArgumentError
from phyla.testing.seeded import seeded_weight

MARKS = recorded()["marks"]
TEXTS = torch.tensor(MARKS["texts"])
CONFIG = phyla.AutoConfig.for_model("llama", vocab_size=61, bos_token_id=1, eos_token_id=2)


@pytest.mark.parametrize("case", MARKS["green"], ids=lambda c: f"{c['settings']}-{c['once']}")
def test_green_lists_are_found(case):
    mark = phyla.WatermarkingConfig(**case["settings"])
    detector = phyla.WatermarkDetector(CONFIG, "cpu", mark, max_cache_size=4)
    out = vars(detector(TEXTS, return_dict=True))
    want = case["out"]
    if case["once"]:  # the reference counts n-grams by identity, so that none repeats there
        again = phyla.WatermarkDetector(CONFIG, "cpu", mark.to_dict(), ignore_repeated_ngrams=True)
        assert (again(TEXTS, return_dict=True).num_tokens_scored <= out["num_tokens_scored"]).all()
    for name, value in out.items():
        assert value.tolist() == pytest.approx(want[name], **DIGITS), name


def test_marked_text_is_told_from_other_text():
    torch.manual_seed(0)
    model = phyla.LlamaForCausalLM(
        phyla.LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                          num_attention_heads=2, bos_token_id=1, eos_token_id=None)
    ).eval()  # fmt: skip
    mark = phyla.WatermarkingConfig(bias=4.0)
    ids = torch.tensor([[5, 6], [7, 8]])
    asked = {"max_new_tokens": 60, "do_sample": True, "top_k": 0, "seed": 1}
    detector = phyla.WatermarkDetector(model.config, "cpu", mark)
    assert detector(model.generate(ids, watermarking_config=mark, **asked)).all()
    assert detector(model.generate(ids, watermarking_config=mark.to_dict(), num_beams=2, **asked)).all()
    assert not detector(model.generate(ids, **asked)).any()
    with pytest.raises(ArgumentError, match="must have more than 1 tokens"):
        detector(torch.tensor([[4]]))


def synth():
    return phyla.SynthIDTextWatermarkLogitsProcessor(
        ngram_len=3, keys=[654, 400, 836, 123], context_history_size=16, sampling_table_size=2**10,
        sampling_table_seed=3, device="cpu",
    )  # fmt: skip


def test_flips_and_masks_are_the_references():
    want, processor = MARKS["synth"], synth()
    assert processor.compute_g_values(TEXTS).tolist() == want["flips"]
    assert processor.compute_context_repetition_mask(TEXTS % 4).tolist() == want["new"]
    assert processor.compute_eos_token_mask(TEXTS, 20).tolist() == want["real"]
    assert processor.expected_mean_g_value(61) == pytest.approx(want["mean"])


def test_the_trained_detector(tmp_path):
    processor = synth()
    model = phyla.BayesianDetectorModel(phyla.BayesianDetectorConfig(watermarking_depth=4))
    state = {k: torch.from_numpy(seeded_weight(k, v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict({**state, "prior": torch.tensor([0.4])})
    model.config.set_detector_information("some/model", {"ngram_len": 3})
    model.save_pretrained(tmp_path)
    model = phyla.BayesianDetectorModel.from_pretrained(tmp_path)
    assert model.config.model_name == "some/model"
    flips, mask = processor.compute_g_values(TEXTS), processor.compute_context_repetition_mask(TEXTS)
    out = model(flips, mask, labels=torch.tensor([1.0, 0.0, 1.0]), return_dict=True)
    assert out.posterior_probabilities.tolist() == pytest.approx(MARKS["bayes"]["chances"], **DIGITS)
    assert float(out.loss.detach()) == pytest.approx(MARKS["bayes"]["loss"], **DIGITS)

    class Words:
        eos_token_id = 999

    detector = phyla.SynthIDTextWatermarkDetector(model, processor, Words())
    assert detector(TEXTS)[0].tolist() == pytest.approx(MARKS["bayes"]["chances"], **DIGITS)


def test_synthid_follows_beams_and_drafts():
    torch.manual_seed(0)
    model = phyla.LlamaForCausalLM(
        phyla.LlamaConfig(vocab_size=61, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                          num_attention_heads=2, bos_token_id=1, eos_token_id=None)
    ).eval()  # fmt: skip
    ids = torch.tensor([[5, 6, 7, 5, 6]])
    mark = phyla.SynthIDTextWatermarkingConfig(ngram_len=3, keys=[1, 2, 3])
    asked = {"max_new_tokens": 12, "watermarking_config": mark}
    want = model.generate(ids, **asked)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **asked), want)
    assert model.generate(ids, num_beams=3, **asked).shape == (1, 17)
