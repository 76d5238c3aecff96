"""What the files of a folder must be: names, sizes and checksums, written with them and compared before they are read.

Against accidents (a bad disk, a cut copy), not against malice: who can change a file can change the manifest.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """List all files of the folder, in sub-folders too, in `manifest.json` beside them."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": checksum}
        for path, checksum in zip(paths, _checksums(paths), strict=True)
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


def damage_by_manifest(folder: Path) -> str | None:
    """The first file that is not what the folder's manifest says, and why; None where all are.

    Files that the manifest does not list are nobody's concern.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is damaged"
    # Sizes first: a cut file is found without reading the others.
    for name, (size, _) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not the {size} that were written"
    checksums = _checksums([folder / name for name in expected])
    for (name, (_, written)), checksum in zip(expected.items(), checksums, strict=True):
        if checksum != written:
            return f"{name} is damaged: its checksum is not the one that was written"
    return None


def _checksums(paths: list[Path]) -> list[str]:
    """SHA-256 of each file; several at a time, about one gigabyte in a second each."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(_sha256, paths))


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
