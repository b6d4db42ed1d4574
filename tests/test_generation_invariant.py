"""`generate(..., batch_invariant=True)`: a row has the same bits in any batch; and drafts of one's own."""

import os
import random

import pytest
import torch
from test_generation_caches import tiny
from test_generation_engine import prompts
from test_generation_speculation import LETTERS, Words

import phyla
from phyla.errors import ArgumentError, GenerationError
from phyla.generation import (
    AssistantToTargetTranslator,
    AssistantVocabTranslatorCache,
    CandidateGenerator,
)

BATCHES = int(os.environ.get("PHYLA_BATCHES", "8"))
ASKED = {"return_dict_in_generate": True, "output_logits": True, "batch_invariant": True}


def batch_of(rows, side, fill=0):
    width = max(map(len, rows))
    ids = [[fill] * (width - len(r)) + r if side == "left" else r + [fill] * (width - len(r)) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) for r in rows]
    mask = mask if side == "left" else [m[::-1] for m in mask]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mamba", "t5"])
def test_rows_are_the_same_to_the_bit_in_any_batch(family):
    model, pool = tiny(family), prompts(6, seed=4, longest=30)
    alone = []
    for prompt in pool:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=7, **ASKED)
        plain = model.generate(torch.tensor([prompt]), max_new_tokens=7)
        assert torch.equal(out.sequences, plain)
        alone.append((out.sequences[0, -7:], torch.cat(out.logits)))
    choose = random.Random(1)
    for _ in range(BATCHES):
        numbers = [choose.randrange(6) for _ in range(choose.randint(1, 5))]
        ids, mask = batch_of([pool[n] for n in numbers], choose.choice(["left", "right"]))
        out = model.generate(ids, attention_mask=mask, max_new_tokens=7, **ASKED)
        logits = torch.stack(out.logits, 1)
        for row, number in enumerate(numbers):
            assert torch.equal(out.sequences[row, -7:], alone[number][0])
            assert torch.equal(logits[row], alone[number][1])


def test_what_comes_back_is_as_from_generate():
    model, pool = tiny("llama"), prompts(3, seed=7, longest=9)
    ids, mask = batch_of(pool, "right")
    more = [
        {"num_beams": 3, "num_return_sequences": 2},
        {"eos_token_id": 14, "pad_token_id": 1},
        {"prompt_lookup_num_tokens": 3},
        {"guidance_scale": 1.5},
        {"row_settings": [{"repetition_penalty": 1.5}, {}, {"min_new_tokens": 3}]},
        {"do_sample": True, "seed": [3, 4, 5]},
        {"do_sample": True, "seed": [3, 4, 5, 6, 7, 8], "num_return_sequences": 2},
    ]
    for way in more:
        asked = {"attention_mask": mask, "max_new_tokens": 6, **way}
        found = model.generate(ids, batch_invariant=True, **asked)
        assert torch.equal(found, model.generate(ids, **asked)), way
    asked = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": 14, "pad_token_id": 1}
    told = {"return_dict_in_generate": True, "output_scores": True, "repetition_penalty": 1.3}
    ours, want = (model.generate(ids, batch_invariant=b, **asked, **told) for b in (True, False))
    table = [
        model.compute_transition_scores(o.sequences, o.scores, normalize_logits=True) for o in (ours, want)
    ]
    going = ours.sequences[:, -table[0].shape[1] :] != 1
    torch.testing.assert_close(table[0][going], table[1][going], rtol=1e-4, atol=1e-4)
    assert not table[0][~going].any()  # where only padding may follow, it is certain
    beams = model.generate(ids, batch_invariant=True, num_beams=2, **asked, **told)
    want = model.generate(ids, num_beams=2, **asked, **told)
    torch.testing.assert_close(beams.sequences_scores, want.sequences_scores, rtol=1e-4, atol=1e-4)


def test_adapters_of_rows_and_what_it_lacks():
    model, pool = tiny("llama"), prompts(3, seed=7, longest=9)
    model.add_adapter("a", config="lora")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora" in name:
                p.add_(torch.randn_like(p) * 0.2)
    ids, mask = batch_of(pool, "left")
    asked = {"attention_mask": mask, "max_new_tokens": 5, "adapter_names": ["a", None, "a"]}
    assert torch.equal(model.generate(ids, batch_invariant=True, **asked), model.generate(ids, **asked))
    with pytest.raises(ArgumentError, match="adapter_names must have an entry"):
        model.generate(ids, batch_invariant=True, **{**asked, "adapter_names": ["a"]})
    with pytest.raises(GenerationError, match="streamer"):
        model.generate(ids, batch_invariant=True, max_new_tokens=2, streamer=object())
    model.set_active_adapters(None)
    for way in ({"penalty_alpha": 0.5, "top_k": 4}, {"dola_layers": "low"}):
        way |= {"attention_mask": mask, "max_new_tokens": 5, "return_dict_in_generate": True}
        way |= {"output_scores": True}
        want, found = (model.generate(ids, batch_invariant=alike, **way) for alike in (False, True))
        assert torch.equal(found.sequences, want.sequences)
        torch.testing.assert_close(found.scores, want.scores, rtol=1e-4, atol=1e-4)
    with pytest.raises(GenerationError, match="attentions"):
        model.generate(ids, batch_invariant=True, return_dict_in_generate=True, output_attentions=True)


class Oracle(CandidateGenerator):
    """Knows the right text up to a place, then guesses wrong."""

    def __init__(self, texts, wrong_from=5):
        self.texts, self.wrong_from, self.seen = texts, wrong_from, []

    def get_candidates(self, input_ids):
        known = [t for t in self.texts if t[: input_ids.shape[1]] == input_ids[0].tolist()]
        if not known:
            return input_ids, None
        text = known[0]
        fresh = text[input_ids.shape[1] : input_ids.shape[1] + 3]
        if input_ids.shape[1] >= self.wrong_from:
            fresh = [1] * len(fresh)
        return torch.cat([input_ids, torch.tensor([fresh], dtype=torch.long)], 1), None

    def update_candidate_strategy(self, input_ids, scores, num_matches):
        self.seen.append((input_ids.shape[1], tuple(scores.shape[:2]), num_matches))


def test_candidates_of_ones_own():
    model, pool = tiny("llama"), prompts(2, seed=9, longest=6)
    ids, mask = batch_of(pool, "left")
    asked = {"attention_mask": mask, "max_new_tokens": 8}
    want = model.generate(ids, **asked)
    texts = [row[len(row) - len(p) - 8 :].tolist() for row, p in zip(want, pool, strict=True)]
    oracle = Oracle(texts, wrong_from=9)
    assert torch.equal(model.generate(ids, candidate_generator=oracle, **asked), want)
    assert {matched for *_, matched in oracle.seen} >= {0, 3}
    assert all(rows == 1 and count <= 4 for _, (rows, count), _ in oracle.seen)
    pair = [Oracle(texts), Oracle(texts, 99)]
    assert torch.equal(model.generate(ids, candidate_generator=pair, **asked), want)
    assert len(pair[1].seen) < len(pair[0].seen)
    drawn = {"do_sample": True, "seed": [1, 2], **asked}
    assert torch.equal(model.generate(ids, candidate_generator=oracle, **drawn), model.generate(ids, **drawn))
    with phyla.Engine(model) as engine:
        told = engine.submit(pool[0], candidate_generator=Oracle(texts, 99), max_new_tokens=8)
        assert told.result().generated_tokens == texts[0][-8:]
        assert engine.steps < 8
    with pytest.raises(ArgumentError, match="candidate_generator must be"):
        model.generate(ids, candidate_generator=object(), **asked)
    with pytest.raises(GenerationError, match="goes with greedy"):
        model.generate(ids, candidate_generator=oracle, num_beams=2, **asked)


def test_a_class_of_ones_own_says_where_candidates_come_from():
    class Own(phyla.LlamaForCausalLM):
        def _get_candidate_generator(self, generation_config, input_ids, assistant_model, **others):
            self.asked = (generation_config.prompt_lookup_num_tokens, input_ids.shape)
            return Oracle([self.text], 99)

    plain, prompt = tiny("llama"), prompts(1, seed=9, longest=6)
    model = Own(plain.config)
    model.load_state_dict(plain.state_dict())
    want = plain.generate(torch.tensor(prompt), max_new_tokens=6)
    model.text = want[0].tolist()
    found = model.eval().generate(torch.tensor(prompt), max_new_tokens=6, prompt_lookup_num_tokens=4)
    assert torch.equal(found, want)
    assert model.asked == (4, (1, len(prompt[0])))


def test_translators_of_vocabularies():
    ours, theirs = Words("abcdef"), Words("fxbad")
    made = AssistantToTargetTranslator(ours, theirs, 8)
    ids = made.get_target_ids(torch.tensor([[0, 1]]), torch.tensor([[4, 5]]), torch.tensor([[0, 1, 2, 3, 1]]))
    assert ids.tolist() == [[4, 5, 1, 0, -1]]
    scores = made.get_target_logits(torch.arange(5.0)[None])
    never = -float("inf")
    assert scores.tolist() == [[3.0, 2.0, never, 4.0, never, 0.0, never, never]]
    assert AssistantVocabTranslatorCache.get_translator(ours, theirs, 8) is (
        AssistantVocabTranslatorCache.get_translator(ours, theirs, 8)
    )


@pytest.mark.parametrize("kind", ["AssistedCandidateGeneratorDifferentTokenizers", "Universal"])
def test_generators_with_another_vocabulary(kind):
    model, draft = tiny("llama", vocab_size=len(LETTERS)), tiny("gpt2", vocab_size=len(LETTERS))
    config = phyla.GenerationConfig(max_new_tokens=8, do_sample=kind == "Universal")
    ids = torch.tensor([[3, 4, 5, 6]])
    ours, theirs = Words(LETTERS), Words(LETTERS[::-1])
    if kind == "Universal":
        translator = AssistantVocabTranslatorCache.get_translator(ours, theirs, len(LETTERS))
        made = phyla.generation.UniversalSpeculativeDecodingGenerator(
            ids, draft, ours, theirs, config, {}, translator
        )
    else:
        made = getattr(phyla.generation, kind)(ids, draft, ours, theirs, config, {})
    assert isinstance(made, phyla.generation.AssistedCandidateGenerator)
    draft.generation_config.assistant_confidence_threshold = 0.0
    told, scores = made.get_candidates(ids)
    assert told[:, :4].tolist() == ids.tolist()
    assert told.shape[1] > 4
    if kind == "Universal":
        assert scores.shape == (1, told.shape[1] - 4, len(LETTERS))
    else:  # the letters that the draft writes by itself
        own = torch.tensor([[len(LETTERS) - 1 - i for i in ids[0].tolist()]])
        wrote = draft.generate(own, max_new_tokens=told.shape[1] - 4)[0, 4:]
        assert told[0, 4:].tolist() == [len(LETTERS) - 1 - i for i in wrote.tolist()]
    made.update_candidate_strategy(told, torch.zeros(1, 2, len(LETTERS)), 1)
    assert made.num_assistant_tokens >= 1
    want = model.generate(ids, max_new_tokens=6)
    if kind != "Universal":
        assert torch.equal(model.generate(ids, max_new_tokens=6, candidate_generator=made), want)
