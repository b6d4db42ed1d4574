"""Pack recorded processor goldens for the tests: one tests/goldens/processors/KIND.tar.xz for each kind.

usage: python tools/pack_processor_goldens.py FOLDER KIND...
FOLDER holds KIND/CLASS/CASE.json and, where there are arrays, .safetensors beside it. Files that
goldens share (`{"$file": PATH}`, beside FOLDER) are put into each of them; likes beside likes compress well.
"""

import base64
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "processors"


def complete(text: bytes, root: Path) -> bytes:
    """A golden's description with the files that it shares with others."""
    golden = json.loads(text)
    for name, content in (golden.get("files") or {}).items():
        if isinstance(content, dict) and set(content) == {"$file"}:
            data = (root / content["$file"]).read_bytes()
            try:
                golden["files"][name] = data.decode()
            except UnicodeDecodeError:
                golden["files"][name] = {"$base64": base64.b64encode(data).decode()}
    return json.dumps(golden).encode()


def pack(folder: Path, kind: str) -> Path:
    """Write all goldens of a kind into one archive, reproducibly."""
    TARGET.mkdir(parents=True, exist_ok=True)
    files = sorted(p for p in (folder / kind).rglob("*") if p.suffix in (".json", ".safetensors"))
    # Descriptions first: likes beside likes compress better.
    files.sort(key=lambda p: p.suffix)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in files:
            info = tarfile.TarInfo(path.relative_to(folder / kind).as_posix())
            data = path.read_bytes()
            if path.suffix == ".json" and b'"$file"' in data:
                data = complete(data, folder.parent)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    target = TARGET / f"{kind}.tar.xz"
    target.write_bytes(lzma.compress(raw.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return target


if __name__ == "__main__":
    for name in sys.argv[2:]:
        made = pack(Path(sys.argv[1]), name)
        print(f"{made}: {made.stat().st_size} bytes")
