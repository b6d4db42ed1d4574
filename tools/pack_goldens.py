"""Pack recorded goldens into tests/goldens: python tools/pack_goldens.py SOURCE MODEL_TYPE..."""

import argparse
from pathlib import Path

from phyla.testing.goldens import write_pack

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="folder with one folder of goldens for each model type")
    parser.add_argument("model_types", nargs="*", help="default: those packed already")
    arguments = parser.parse_args()
    model_types = arguments.model_types or sorted(
        p.name.removesuffix(".tar.xz") for p in TARGET.glob("*.tar.xz")
    )
    TARGET.mkdir(parents=True, exist_ok=True)
    for model_type in model_types:
        folder = arguments.source / model_type
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
        path = TARGET / f"{model_type}.tar.xz"
        write_pack(folder, path)
        print(f"{path.stat().st_size:>9,} bytes  {path.name}")


if __name__ == "__main__":
    main()
