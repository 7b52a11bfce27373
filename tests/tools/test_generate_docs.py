"""The generated pages are those of this code."""

from __future__ import annotations

import os
import subprocess
import sys

from include.settings import PROJECT_ROOT


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.generate_docs", "--check"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
