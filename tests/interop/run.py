"""Who opens what a run leaves: makes the stores, asks every consumer in its own environment, and prints a table.

run.py OUT          environments lie beside this Python: .venv/interop, .venv/interop-312, .venv/interop-spatialdata
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CONSUMERS = {
    "with_zarr.py": "interop",
    "with_yaozarrs.py": "interop",
    "with_ngff_zarr.py": "interop",
    "with_ome_zarr.py": "interop",
    "with_xarray.py": "interop",
    "with_anndata.py": "interop",
    "with_spatialdata.py": "interop-spatialdata",
    "with_wsidata.py": "interop-spatialdata",
    "with_rasterio.py": "interop-312",
}
"""Script, and the environment it runs in."""
MISSING = {"interop-312": "; set PYTHON312 to a Python of 3.12 or later that starts"}
"""What else to say where an environment could not be made."""


def main(out: str) -> int:
    """The exit code: 0 where every consumer found what it should."""
    subprocess.run([sys.executable, HERE / "make_stores.py", out], check=True)
    lines = [answer(script, environment, out) for script, environment in CONSUMERS.items()]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    print()
    for line in lines:
        print("  ".join((line[0].ljust(widths[0]), line[1].ljust(widths[1]), line[2])))
    failed = sum(line[2] != "ok" for line in lines)
    print(f"\n{len(lines) - failed} of {len(lines)} consumers found everything where it is")
    return 1 if failed else 0


def answer(script: str, environment: str, out: str) -> tuple[str, str, str]:
    """(consumer, what was compared, "ok" or what is wrong)."""
    folder = Path(sys.prefix) / environment
    if not (folder / ".ready").exists():
        return script, "", f"not asked: {folder} could not be made{MISSING.get(environment, '')}"
    ended = subprocess.run([folder / "bin" / "python", HERE / script, out], capture_output=True, text=True, check=False)
    told = ended.stdout.strip().splitlines()
    if told and told[-1].count(" | ") == 2:
        consumer, compared, verdict = told[-1].split(" | ")
        return consumer, compared, verdict
    print(ended.stdout, ended.stderr, sep="", file=sys.stderr)
    reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    return script, "", f"failed: {reason}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
