"""The file `.env`: what is missing is added, what is there stays, and nobody else reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from dotenv import dotenv_values
from pydantic import ValidationError

from include.deployment.secrets import Secrets, write_secrets
from include.settings import PROJECT_ROOT

NAMES = {name.upper() for name in Secrets.model_fields}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_file_has_every_secret_and_is_the_owners(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    written = write_secrets(path, 2)
    values = dotenv_values(path)
    assert set(values) == set(written.names) == NAMES | {"SIFT_GPUS", "COMPOSE_PROFILES"}
    assert mode(path) == 0o600 and not written.closed
    assert values["SIFT_GPUS"] == "2" and values["COMPOSE_PROFILES"] == "gpu-2"
    assert len({values[name] for name in NAMES}) == len(NAMES)
    assert all(len(values[name] or "") >= 20 for name in NAMES)
    Fernet(values["FERNET_KEY"] or "")
    assert [file.name for file in tmp_path.iterdir()] == [".env"]


def test_values_survive_urls_compose_files_and_shells(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    write_secrets(path, 0)
    shown = subprocess.run(["sh", "-ac", f". {path} && env"], capture_output=True, text=True, check=True)
    exported = shown.stdout.splitlines()
    for name, value in dotenv_values(path).items():
        assert value and not set(value) & set("$@/%#:?&'\"\\ ")
        assert f"{name}={value}" in exported
    assert not shown.stderr


def test_what_is_there_stays_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    mine = "# mine\r\nSIFT_TARGET=s3://bucket/x # where\n\nREDIS_PASSWORD='chosen'\n"
    mine += "export FERNET_KEY=kept\nJWT_SECRET=\nlast=1"
    path.write_bytes(mine.encode())
    path.chmod(0o644)
    written = write_secrets(path, 4)
    assert written.closed and mode(path) == 0o600
    text = path.read_bytes()
    assert text.startswith(mine.encode() + b"\n")
    assert {"JWT_SECRET", "ADMIN_PASSWORD"} <= set(written.names)
    assert not {"REDIS_PASSWORD", "FERNET_KEY", "SIFT_TARGET"} & set(written.names)
    values = dotenv_values(path)
    assert values["REDIS_PASSWORD"] == "chosen" and values["JWT_SECRET"]
    assert write_secrets(path).names == [] and write_secrets(path, 4).names == []
    assert path.read_bytes() == text


def test_a_complete_file_that_others_can_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    write_secrets(path, 1)
    path.chmod(0o640)
    written = write_secrets(path)
    assert written.closed and not written.names and mode(path) == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(tmp_path / "elsewhere")
    write_secrets(tmp_path / ".env", 1)
    assert (tmp_path / ".env").is_symlink() and dotenv_values(tmp_path / "elsewhere")["ADMIN_PASSWORD"]


def test_numbers_of_gpus_without_a_profile_are_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    with pytest.raises(ValueError, match="0, 1, 2, 4, 8"):
        write_secrets(path, 3)
    assert not path.exists()
    write_secrets(path, 2)
    with pytest.raises(ValueError, match="SIFT_GPUS=2"):
        write_secrets(path, 4)
    path.write_text("SIFT_GPUS=3\n")
    with pytest.raises(ValueError, match="COMPOSE_PROFILES"):
        write_secrets(path)


@pytest.mark.parametrize("value", ["'it is # mine'", "p@ss", "a$b", "ü"])
def test_a_secret_that_would_not_survive_is_refused_by_name(tmp_path: Path, value: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"POSTGRES_PASSWORD={value}\n")
    with pytest.raises(ValueError, match="POSTGRES_PASSWORD may hold letters") as caught:
        write_secrets(path, 1)
    assert value.strip("'") not in str(caught.value)
    assert path.read_text() == f"POSTGRES_PASSWORD={value}\n"


@pytest.mark.parametrize(
    ("profiles", "gpus"), [("gpu-2,s3", "2"), ("s3, gpu-8", "8"), ("cpu-generate", "0"), ("cpu-generate,gpu", "1")]
)
def test_the_number_of_gpus_follows_the_profiles_in_the_file(tmp_path: Path, profiles: str, gpus: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"COMPOSE_PROFILES={profiles}\n")
    write_secrets(path)
    assert dotenv_values(path)["SIFT_GPUS"] == gpus
    path.write_text(f"COMPOSE_PROFILES={profiles}\n")
    with pytest.raises(ValueError, match=f"COMPOSE_PROFILES={profiles}"):
        write_secrets(path, 4)


def test_secrets_show_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_secrets(tmp_path / ".env", 1)
    for name, value in dotenv_values(tmp_path / ".env").items():
        monkeypatch.setenv(name, value or "")
    shown = repr(Secrets())
    assert shown.count("**") >= len(NAMES)
    monkeypatch.setenv("ADMIN_PASSWORD", "with a $")
    with pytest.raises(ValidationError, match="admin_password") as caught:
        Secrets()
    assert "with a $" not in str(caught.value)


def test_the_command_names_what_it_wrote_and_shows_no_value(tmp_path: Path) -> None:
    path = tmp_path / "env"
    command = [sys.executable, "-m", "include.cli", "secrets", "--gpus", "8", "--file", str(path)]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT_ROOT).stdout for _ in range(2)
    )
    for name, value in dotenv_values(path).items():
        assert name in first
        if name in NAMES:
            assert value and value not in first + second
    assert "lacks nothing" in second and "grep ^ADMIN_PASSWORD=" in second


def test_every_secret_is_explained_in_the_example() -> None:
    text = (PROJECT_ROOT / ".env.example").read_text()
    for name in sorted(NAMES):
        assert f"# {name}=\n" in text, name
