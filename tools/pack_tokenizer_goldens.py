"""Pack recorded tokenizers into the tests: python tools/pack_tokenizer_goldens.py FOLDER [CLASS ...]

FOLDER holds a folder with golden.json for each class (`goldens_tokenizers/public`); without CLASS all
that phyla
has are packed.
"""

import io
import sys
import tarfile
from pathlib import Path

import phyla

TARGET = Path(__file__).parent.parent / "tests" / "goldens" / "tokenizers"


def pack(folder: Path) -> Path:
    """One class as NAME.tar.xz, with nothing of the machine in it."""
    path = TARGET / f"{folder.name}.tar.xz"
    with tarfile.open(path, "w:xz", preset=9) as packed:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            data = file.read_bytes()
            entry = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return path


def main() -> None:
    """Pack the classes that are asked for."""
    root, names = Path(sys.argv[1]), set(sys.argv[2:])
    for folder in sorted(root.iterdir()):
        known = hasattr(phyla, folder.name.split("@")[0])
        if (folder / "golden.json").is_file() and known and (not names or folder.name in names):
            path = pack(folder)
            print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
