"""How a benchmark says what it measured: a table, and `.sift/bench/<name>.json` beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def report(name: str, figures: Mapping[str, float], reach: Mapping[str, str] | None = None) -> None:
    """Print figures beside what they are to reach, and write them as a flat JSON object."""
    width = max(map(len, figures))
    print(f"{'figure':<{width}}{'value':>16}  reach")
    for key, value in figures.items():
        digits = 0 if value == int(value) or abs(value) >= 100 else 1 if abs(value) >= 1 else 4
        shown = f"{value:,.{digits}f}"
        print(f"{key:<{width}}{shown:>16}  {(reach or {}).get(key, '')}".rstrip())
    folder = Path(os.environ.get("SIFT_HOME", ROOT / ".sift")) / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(dict(figures), indent=2) + "\n")
