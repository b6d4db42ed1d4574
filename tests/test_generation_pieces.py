"""The public pieces of decoding for loops of one's own: scorers of beams, sources of candidates."""

import pytest
import torch
from tiny_model import TinyDecoder

import phyla
from phyla.errors import ArgumentError, GenerationError
from phyla.generation import DisjunctiveConstraint, GenerationConfig, PhrasalConstraint, generate
from phyla.generation._names import NAMES

MODEL = TinyDecoder()
PROMPT = torch.tensor([[4, 5, 6], [7, 8, 9]])


def searched(scorer, count, groups, steps, eos, penalty=0.0, constrained=False):
    """A loop of beams as one writes it oneself, around a scorer."""
    batch, start = PROMPT.shape
    size = count // groups
    ids = PROMPT.repeat_interleave(count, 0)
    totals = torch.full((batch, count), -1e9, dtype=torch.float64)
    totals[:, ::size] = 0
    origins = tuple(() for _ in range(batch * count))
    for _ in range(steps):
        with torch.no_grad():
            logits = MODEL(ids).logits
        chances = logits[:, -1].log_softmax(-1).view(batch, count, -1)
        picked = torch.zeros(batch, count, dtype=torch.long)
        tokens, sums = picked.clone(), totals.clone()
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            scores = chances[:, part].clone()
            for row in range(batch):
                for token in tokens[row, : group * size].tolist():
                    scores[row, :, token] -= penalty
            scores = scores + totals[:, part, None]
            words = scores.shape[-1]
            top = scores.flatten(1).topk(2 * size)
            rows = torch.arange(batch)[:, None] * count + torch.arange(count)[None, part]
            own = tuple(origins[i] for i in rows.flatten().tolist())
            more = (scores.flatten(0, 1),) if constrained else ()
            named = {} if constrained else {"group_index": group}
            found = scorer.process(
                ids[rows.flatten()], top.values, top.indices % words, top.indices // words, *more,
                pad_token_id=0, eos_token_id=eos, beam_indices=own, decoder_prompt_len=start, **named,
            )  # fmt: skip
            sums[:, part] = found["next_beam_scores"].view(batch, size)
            tokens[:, part] = found["next_beam_tokens"].view(batch, size)
            at = found["next_beam_indices"].view(batch, size)
            picked[:, part] = at % size + at // size * count + group * size
        totals = sums
        source = picked.flatten()
        origins = tuple((*origins[i], i) for i in source.tolist())
        ids = torch.cat([ids[source], tokens.flatten()[:, None]], 1)
        if scorer.is_done:
            break
    return scorer.finalize(
        ids, totals.flatten(), ids[:, -1], source, max_length=start + steps, pad_token_id=0,
        eos_token_id=eos, beam_indices=origins, decoder_prompt_len=start,
    )  # fmt: skip


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_loop_around_the_scorer_finds_what_generate_finds(early, groups):
    asked = {"num_beams": 4, "length_penalty": 0.7, "early_stopping": early, "eos_token_id": [3, 5, 11]}
    asked |= {"pad_token_id": 0, "max_new_tokens": 9, "num_return_sequences": 2}
    if groups > 1:
        asked |= {"num_beam_groups": 2, "diversity_penalty": 0.5}
    want = generate(MODEL, PROMPT, return_dict_in_generate=True, output_scores=True, **asked)
    scorer = phyla.BeamSearchScorer(2, 4, "cpu", 0.7, early, 2, groups, max_length=12)
    found = searched(scorer, 4, groups, 9, [3, 5, 11], penalty=0.5)
    torch.testing.assert_close(
        found["sequence_scores"], want.sequences_scores.to(found["sequence_scores"].dtype)
    )
    for mine, theirs in zip(found["sequences"].tolist(), want.sequences.tolist(), strict=True):
        ends = [i for i, token in enumerate(theirs[3:], 3) if token in (3, 5, 11)]
        text = theirs[: ends[0]] if ends else theirs
        assert mine[: len(text)] == text


def test_a_loop_around_the_constrained_scorer_finds_what_generate_finds():
    made = [PhrasalConstraint([5, 9]), DisjunctiveConstraint([[2], [7, 1]])]
    asked = {"num_beams": 4, "eos_token_id": 3, "pad_token_id": 0, "max_new_tokens": 8}
    want = generate(MODEL, PROMPT, constraints=made, **asked)
    scorer = phyla.ConstrainedBeamSearchScorer(2, 4, made, "cpu")
    found = searched(scorer, 4, 1, 8, 3, constrained=True)["sequences"]
    for row, text in enumerate(found[:, 3:].tolist()):
        text = text[: text.index(3)] if 3 in text else text
        assert scorer.check_completes_constraints(text)
        assert any(text[i : i + 2] == [5, 9] for i in range(8))
        assert want[row, 3 : 3 + len(text)].tolist() == text


def test_hypotheses_keep_the_best():
    best = phyla.generation.BeamHypotheses(2, 1.0, False)
    for total, length in ((-4.0, 2), (-1.0, 1), (-9.0, 3)):
        best.add(torch.arange(length), total)
    assert sorted(beam[0] for beam in best.beams) == [-2.0, -1.0]
    assert best.worst_score == -2.0
    assert best.is_done(-8.0, 4) and not best.is_done(-7.0, 4)
    with pytest.raises(ArgumentError, match="max_length"):
        phyla.generation.BeamHypotheses(2, 1.0, "never")


@pytest.mark.parametrize("kind", ["lookup", "model", "exit"])
def test_a_loop_around_candidates_gives_the_greedy_text(kind):
    if kind == "lookup":
        model, ids = MODEL, torch.tensor([[4, 5, 6, 4, 5]])
        made = phyla.generation.PromptLookupCandidateGenerator(None, 3, 2, max_length=25)
    else:
        torch.manual_seed(0)
        model = phyla.LlamaForCausalLM(
            phyla.LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                              num_attention_heads=2)
        ).eval()  # fmt: skip
        ids = torch.tensor([[4, 5, 6, 4, 5]])
        config = GenerationConfig(max_length=25, assistant_early_exit=1)
        name = {"model": "Assisted", "exit": "EarlyExit"}[kind]
        made = getattr(phyla.generation, f"{name}CandidateGenerator")(ids, model, config, {})
    want = generate(model, ids, max_length=25, do_sample=False)
    while ids.shape[1] < 25:
        grown, _ = made.get_candidates(ids)
        drafted = grown[:, ids.shape[1] :]
        with torch.no_grad():
            scores = model(grown).logits[:, -drafted.shape[1] - 1 :]
        best = scores.argmax(-1)
        right = int((best[:, :-1] == drafted).long().cumprod(1).sum())
        made.update_candidate_strategy(ids, scores, right)
        ids = torch.cat([ids, best[:, : right + 1]], 1)
    assert torch.equal(ids[:, :25], want)


def test_forced_ids_stand_at_their_places():
    out = generate(MODEL, PROMPT, forced_decoder_ids=[[3, 7], [4, None], [5, 2]], max_new_tokens=4)
    assert out[:, 3].tolist() == [7, 7] and out[:, 5].tolist() == [2, 2]
    same = generate(MODEL, PROMPT, forced_decoder_ids=[[3, 7], [5, 2]], max_new_tokens=4, num_beams=2)
    assert same[:, 3].tolist() == [7, 7] and same[:, 5].tolist() == [2, 2]


def test_every_public_name_is_there():
    for name in NAMES:
        assert getattr(phyla.generation, name).__name__
    from phyla.generation import MaxLengthCriteria, StoppingCriteriaList, validate_stopping_criteria

    made = validate_stopping_criteria(StoppingCriteriaList(), 7)
    assert made.max_length == 7
    with pytest.raises(GenerationError, match="max_length"):
        validate_stopping_criteria(StoppingCriteriaList([MaxLengthCriteria(5)]), 7)


def test_a_model_of_ones_own_gets_generate():
    class Own(phyla.GenerationMixin, TinyDecoder):
        pass

    assert torch.equal(Own().generate(PROMPT, max_new_tokens=4), generate(MODEL, PROMPT, max_new_tokens=4))


def test_one_process_is_in_step_with_itself():
    assert generate(MODEL, PROMPT, max_new_tokens=2, synced_gpus=True).shape == (2, 5)
