"""Models that two processes hold together against the same models whole; shard_cases.py measures."""

import json
import re
import socket
import time

import pytest
import shard_cases
import torch.multiprocessing

import phyla
from phyla.errors import ArgumentError
from phyla.fast.division import find_parts
from phyla.fast.shard import shard

CLOSE = 1e-5
LONGEST = 240
RANKS = (0, 1)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What each of the processes found, by rank and case: one start for all of them."""
    folder = tmp_path_factory.mktemp("shard")
    shard_cases.tiny("gpt2").save_pretrained(folder / "first")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = torch.multiprocessing.start_processes(
        shard_cases.work, (len(RANKS), str(folder), port), len(RANKS), join=False, start_method="spawn"
    )
    until = time.monotonic() + LONGEST
    while not running.join(timeout=1):
        if time.monotonic() > until:
            for process in running.processes:
                process.kill()
            pytest.fail(f"the processes wait for each other, {LONGEST} seconds after their start")
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in RANKS]


@pytest.fixture(params=RANKS)
def case(request, measured):
    """The measurements of one rank in a case; its traceback where it broke."""

    def of(name):
        found = measured[request.param][name]
        assert "error" not in found, found["error"]
        return found

    return of


def test_processes_of_torchrun_find_each_other(case):
    assert case("start") == {"backend": "gloo", "size": 2}


@pytest.mark.parametrize("kind", shard_cases.FAMILIES)
def test_a_family_in_parts_is_the_family(case, kind):
    found = case(kind)
    assert found["logits"] < CLOSE
    assert found["gradients"] < 1e-5
    assert found["size"] == 2 and found["supported"]
    assert found["saved"] == [True, True], "the files differ from those of the whole model"
    whole = {"jamba": 0.65, "bert": 0.8}.get(kind, 0.55)  # state spaces, positions and transforms stay whole
    assert found["share"] < whole


@pytest.mark.parametrize("kind", [k for k in shard_cases.FAMILIES if k != "bert"])
def test_generation_in_parts_gives_the_same_tokens(case, kind):
    found = case(kind)
    for name in ("greedy", "beams", "sampled", "static", "drawn alike", "engine"):
        assert found.get(name, kind == "jamba"), name
    config = shard_cases.FAMILIES[kind]
    groups = 1 if "multi_query" in config else config.get("num_key_value_heads", 4)
    assert found["heads in pages"] == [max(1, groups // 2)]


@pytest.mark.parametrize("norm", ["RMSNorm", "LayerNorm"])
def test_norms_over_all_heads_count_those_of_all_ranks(case, norm):
    off, gradients, width = case("wide_norms")[norm]
    assert off < CLOSE and gradients < 1e-4
    assert width == 32


def test_masks_and_records_are_of_all_heads(case):
    found = case("recorded")
    names = ("gpt2 logits", "gpt2 attentions", "t5 logits", "t5 decoder_attentions", "t5 cross_attentions")
    assert all(found[name] < CLOSE for name in names), found


def test_adapters_see_the_whole(case):
    found = {k: v for k, v in case("adapters").items() if k != "seconds"}
    assert len(found) == 17
    wrong = {k: v for k, v in found.items() if not (v[0] < CLOSE and v[1] < 1e-5)}
    assert not wrong


def test_what_measures_weights_is_made_before(case):
    found = case("dora")
    assert found["early"] < CLOSE
    assert (
        re.match("AdapterError: the adapter must read or change whole weights", found["late"])
        and found["gone"]
    )
    assert re.match("ArgumentError: merge_adapter needs whole weights", found["merge"])


@pytest.mark.parametrize(
    ("plan", "count", "some"),
    [
        ("ours", 8, ["backbone.layers.1.attn.o", "row"]),
        ("public", 7, ["head.out", "column"]),
        ("single", 4, ["backbone.layers.0.attn.q", "column"]),
        ("table", 1, ["backbone.embed.tokens", "row"]),
        ("config", 7, ["backbone.layers.0.ffn.down", "row"]),
    ],
)
def test_plans_divide_what_they_name(case, plan, count, some):
    off, sites = case("plans")[plan]
    assert off < CLOSE
    assert len(sites) == count and some in sites


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", r"must divide backbone.layers.0.ffn as a whole .* backbone.layers.0.ffn.up: whole"),
        ("nobody", r"'layers\.\*\.ffn\.gaate', which is no site\. Did you mean 'layers\.\*\.ffn\.gate'"),
        ("style", r"must be one of \['colwise', .* but is 'columns'"),
        ("odd heads", r"backbone.layers.0.attn, which cannot be divided: 3 heads are no multiple of 2 ranks"),
        ("twice", r"is divided already"),
        ("clock", r"max_time ends a text by a clock"),
        ("resize", r"resize_token_embeddings needs whole weights"),
        ("unlike", r"must hold the same model .* backbone.embed.tokens.weight differs between ranks"),
    ],
)
def test_what_cannot_be_says_so(case, name, message):
    assert re.search(message, case("plans")[name])


def test_what_does_not_divide_stays_whole_and_is_told(case):
    found = case("plans")
    assert found["odd"] < CLOSE
    assert len(found["odd warning"]) == 1
    assert re.match(r"2 parts .* backbone.layers.0.attn: 3 heads", found["odd warning"][0])


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gpt_neox", "mixtral", "falcon"])
def test_a_rank_reads_its_part_of_the_file(case, kind):
    assert case("reading")[kind] < 0.56


def test_loading_says_what_does_not_go_together(case):
    found = case("reading")
    assert found["fresh alike"] and found["own alike"]
    assert "takes tp_plan or device_map" in found["both"]
    assert "packed weights cannot be divided" in found["packed"]
    assert "tp_size must divide the number of processes (2), but is 3" in found["three"]
    assert (found["mesh"], found["alone"]) == (2, 1)


def test_training_keeps_ranks_alike(case):
    found = case("training")
    assert found["alike"] and found["falling"] and found["twin"]
    assert 0 < found["bfloat16"] < 0.1
    due, norm, off = found["clipped"]
    assert norm == pytest.approx(due, rel=1e-5) and due > 0.5
    assert off < 1e-5


def test_the_forward_is_one_graph(case):
    found = case("compiled")
    assert found["logits"] < CLOSE and found["gradients"] < 1e-5


def test_one_process_needs_the_others(tmp_path):
    model = shard_cases.tiny("gpt2")
    with pytest.raises(ArgumentError, match="init_process_group first"):
        shard(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="start the program with torchrun"):
        phyla.AutoModelForCausalLM.from_pretrained(tmp_path, tp_plan="auto")
    assert model.supports_tp_plan and model.tp_size is None


def test_parts_say_why_they_stay_whole():
    model = shard_cases.tiny("jamba", hidden_size=96, num_attention_heads=6, num_key_value_heads=6)
    reasons = {p.path: p.obstacle for p in find_parts(model, 4) if p.obstacle}
    assert reasons == {"backbone.layers.1.attn": "6 heads are no multiple of 4 ranks"}
    uneven = shard_cases.tiny("qwen2", hidden_size=96, num_attention_heads=6, num_key_value_heads=3)
    groups = find_parts(uneven, 2)
    assert {p.obstacle for p in groups if p.columns == ("q", "k", "v")} == {
        "3 key/value heads and 2 ranks do not divide each other"
    }
    biased = find_parts(shard_cases.tiny("t5", num_heads=3), 2)
    assert all(p.obstacle for p in biased if p.columns == ("q", "k", "v"))
