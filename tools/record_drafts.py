"""Record what the drafts of the reference propose that read the model's states.

    REFERENCE_PYTHON tools/record_drafts.py

The interpreter has Transformers 5.23; PYTHONPATH names this repository. The models are those of
tests/test_generation_mtp.py: each case gets the tokens, and of each step the length of the text, the
candidates and their scores, in tests/goldens/generation_drafts.json.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation import candidate_generator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from test_generation_mtp import RECORDED, write_case  # noqa: E402

SOURCES = (
    "MTPCandidateGenerator", "DFlashTokenCandidateGenerator", "SinglePositionMultiTokenCandidateGenerator",
)  # fmt: skip


def listen(name: str, steps: list[Any]) -> None:
    """Let a source of candidates note what it says."""
    source = getattr(candidate_generator, name)
    whole = source.get_candidates

    def noted(self: Any, ids: torch.Tensor, **named: Any) -> Any:
        told, scores = whole(self, ids, **named)
        if scores is not None:
            near = [[round(x, 5) for x in row] for row in scores[0].log_softmax(-1).tolist()]
            steps.append([ids.shape[1], told[0, ids.shape[1] :].tolist(), near])
        return told, scores

    source.get_candidates = noted


def repair() -> None:
    """Two faults of 5.23: a draft of Gemma 4 cannot be built, and it reads a key of a rejected candidate."""
    config = transformers.Gemma4TextConfig
    modes: Any = config.kv_sharing_modes.fget
    config.kv_sharing_modes = property(
        lambda c: (
            ["reuse"] * c.num_hidden_layers if c.num_kv_shared_layers == c.num_hidden_layers else modes(c)
        )
    )
    source = candidate_generator.SinglePositionMultiTokenCandidateGenerator
    whole = source.get_candidates

    def without_rejected(self: Any, ids: torch.Tensor, **named: Any) -> Any:
        out = named["model_outputs"]
        if out is not None and not self.is_main_model_prefill:
            wrong = out.hidden_states[-1].shape[1] - 1 - int(named["n_last_matches"])
            out.shared_kv_states = {
                kind: tuple(t[:, :, : t.shape[2] - wrong] for t in kept)
                for kind, kept in out.shared_kv_states.items()
            }
        return whole(self, ids, **named)

    source.get_candidates = without_rejected


def main() -> None:
    repair()
    steps: list[Any] = []
    for name in SOURCES:
        listen(name, steps)
    found = {}
    for name, case in RECORDED.items():
        with tempfile.TemporaryDirectory() as folder:
            paths = write_case(Path(folder), case)
            cls = getattr(transformers, case["cls"])
            # the class ignores, and so knows as heads, the layers of the published sizes alone
            later = range(3, 3 + case.get("depths", 0))
            cls._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{i}\..*" for i in later] or None
            model = cls.from_pretrained(paths["model"], dtype=torch.float32).eval()
            more = dict(case["asked"])
            if "draft" in paths:
                draft = getattr(transformers, case["draft"])
                more["assistant_model"] = draft.from_pretrained(paths["draft"], dtype=torch.float32).eval()
                if "asked" in case and not case["asked"]:
                    more["assistant_model"].generation_config.num_assistant_tokens = 3
            steps.clear()
            ids = torch.tensor([case["prompt"]])
            tokens = model.generate(ids, do_sample=False, max_new_tokens=case["new"], **more)
            found[name] = {"tokens": tokens[0].tolist(), "steps": list(steps)}
    target = ROOT / "tests" / "goldens" / "generation_drafts.json"
    target.write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
