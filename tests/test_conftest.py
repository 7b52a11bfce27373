"""What a run of tests leaves in the temporary folder: nothing, or what somebody wants to look at and is told of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from include.settings import PROJECT_ROOT

WRITES = "def test_it(tmp_path):\n    (tmp_path / 'file').write_text('x')\n"


@pytest.mark.parametrize(
    ("code", "status", "kept"),
    [
        (WRITES, pytest.ExitCode.OK, False),
        (WRITES + "    assert False\n", pytest.ExitCode.TESTS_FAILED, True),
        ("def test_it(tmp_path):\n    assert False\n", pytest.ExitCode.TESTS_FAILED, False),
        ("", pytest.ExitCode.NO_TESTS_COLLECTED, False),
    ],
    ids=["passed", "failed", "failed without files", "no tests"],
)
def test_only_what_failed_tests_wrote_is_kept(tmp_path: Path, code: str, status: pytest.ExitCode, kept: bool) -> None:
    (tmp_path / "test_it.py").write_text(code)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path / "test_it.py")],
        env={**env, "TMPDIR": str(temporary)},
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    left = list(temporary.glob("sift-test-*"))
    assert len(left) == kept
    assert ("is kept in" in done.stdout) == kept and all(str(folder) in done.stdout for folder in left)
