"""The secrets of a deployment: which there are, what each is for, and the file `.env` that holds them.

`docker-compose.yaml` says which service knows which of them. They are no settings of `include/settings.py`: the
processes of Airflow see them inside connections only.
"""

from __future__ import annotations

import base64
import os
import secrets
import string
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from dotenv import dotenv_values
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_ALPHABET = string.ascii_letters + string.digits
_SAFE = frozenset(_ALPHABET + "-_=")
PROFILES = {0: "cpu-generate", 1: "gpu", 2: "gpu-2", 4: "gpu-4", 8: "gpu-8"}
"""The compose file's profile for a number of GPUs."""
_READABLE_BY_OTHERS = 0o077


def new_password(length: int = 32) -> str:
    """Return letters and digits only (6 bits each): safe in URLs, in compose files, in shells."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_fernet_key() -> str:
    """Return 32 random bytes in the base64 of URLs, as `cryptography.fernet` wants them."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True)
class MadeBy:
    """How a missing secret is made."""

    make: Callable[[], str]


Password = Annotated[SecretStr, MadeBy(new_password)]
# 64 bytes: what HS512, with which Airflow signs its tokens, asks for.
SigningKey = Annotated[SecretStr, MadeBy(lambda: new_password(64))]


class InitSecrets(BaseSettings):
    """What `./sift prepare` is told, besides libpq's own variables for the superuser."""

    model_config = SettingsConfigDict(env_file=None, extra="ignore", frozen=True, hide_input_in_errors=True)

    airflow_db_password: Password = Field(description="PostgreSQL user airflow: Airflow's metadata")
    celery_db_password: Password = Field(description="PostgreSQL user celery: results that workers report")
    warehouse_ingest_password: Password = Field(description="PostgreSQL user sift_ingest: writes staging")
    warehouse_generate_password: Password = Field(description="PostgreSQL user sift_generate: writes responses")
    warehouse_publish_password: Password = Field(description="PostgreSQL user sift_publish: writes releases")
    warehouse_console_password: Password = Field(description="PostgreSQL user sift_console: reads, for the console")
    admin_password: Password = Field(description="User admin of the web UI")

    @field_validator("*")
    @classmethod
    def _safe_in_urls(cls, value: object) -> object:
        if isinstance(value, SecretStr) and not (
            value.get_secret_value() and _SAFE.issuperset(value.get_secret_value())
        ):
            raise ValueError("may hold letters, digits, '-', '_' and '=' only, because it stands in URLs")
        return value

    @property
    def warehouse_passwords(self) -> dict[str, str]:
        """The password of each role of the warehouse."""
        return {
            "sift_ingest": self.warehouse_ingest_password.get_secret_value(),
            "sift_generate": self.warehouse_generate_password.get_secret_value(),
            "sift_publish": self.warehouse_publish_password.get_secret_value(),
            "sift_console": self.warehouse_console_password.get_secret_value(),
        }


class Secrets(InitSecrets):
    """All secrets of a deployment; `repr` shows none."""

    postgres_password: Password = Field(description="PostgreSQL's superuser; only the service init uses it")
    redis_password: Password = Field(description="Redis, the queue between the scheduler and the workers")
    fernet_key: Annotated[SecretStr, MadeBy(new_fernet_key)] = Field(
        description="Encrypts the connections and variables that are kept in Airflow's metadata"
    )
    api_secret_key: SigningKey = Field(description="Signs logins of the web UI; only the API server knows it")
    jwt_secret: SigningKey = Field(description="Signs the tokens of users and of tasks")
    s3_access_key: Annotated[SecretStr, MadeBy(lambda: new_password(20))] = Field(
        description="Key id of the S3 server in the profile s3"
    )
    s3_secret_key: Password = Field(description="Secret key of the S3 server in the profile s3")


@dataclass
class Written:
    """What `write_secrets` did.

    Attributes:
        names: The variables that were added, in order.
        closed: Whether the file could be read by others until now.
    """

    names: list[str] = field(default_factory=list)
    closed: bool = False


def write_secrets(path: Path, gpus: int | None = None) -> Written:
    """Add the missing secrets, and the number of GPUs, to a file of variables that only its owner can read.

    Lines that are there stay as they are; the file is replaced in one step. A variable that is there without a value
    is missing: what is added at the end wins.

    Args:
        path: The file, `.env`; made if absent. A link stays a link.
        gpus: GPUs that generate: 0, 1, 2, 4 or 8; None takes what the file says, else those of this machine.

    Raises:
        ValueError: If there is no profile for that many GPUs, the file says another number, holds a secret with
            characters that do not survive URLs and shells, or has no folder to lie in.
    """
    path = path.resolve()
    if not path.parent.is_dir():
        raise ValueError(f"--file {path}: there is no folder {path.parent}")
    text = path.read_bytes().decode() if path.exists() else ""
    present = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value}
    refused = [name for name in map(str.upper, Secrets.model_fields) if not _SAFE.issuperset(present.get(name) or "")]
    if refused:
        raise ValueError(
            f"{path}: {', '.join(refused)} may hold letters, digits, '-', '_' and '=' only, because URLs and shells "
            "read them; choose another value (README, Past one machine, says how a password is changed)"
        )
    missing = [
        (name.upper(), info.description, next(part for part in info.metadata if isinstance(part, MadeBy)).make())
        for name, info in Secrets.model_fields.items()
        if name.upper() not in present
    ]
    gpus = _agreed_gpus(present, gpus)
    for name, description, value in (
        ("SIFT_GPUS", "GPUs that generate", str(gpus)),
        ("COMPOSE_PROFILES", "Which workers docker compose starts; add s3 for an S3 server", PROFILES.get(gpus, "")),
    ):
        if name not in present:
            if not value:
                raise ValueError(f"{path} has no COMPOSE_PROFILES, and there is no profile for {gpus} GPUs; see README")
            missing.append((name, description, value))
    written = Written([name for name, _, _ in missing])
    written.closed = path.exists() and bool(path.stat().st_mode & _READABLE_BY_OTHERS)
    if missing:
        start = "" if not text or text.endswith("\n") else "\n"
        added = "".join(f"# {description}.\n{name}={value}\n" for name, description, value in missing)
        _replace(path, f"{text}{start}\n# Made by ./sift secrets. Keep a copy in a safe place.\n{added}")
    elif written.closed:
        path.chmod(0o600)
    return written


def _agreed_gpus(present: Mapping[str, str], asked: int | None) -> int:
    """The number that is asked for, that the file says (by itself, or by the profiles it chose), or this machine's."""
    if asked is not None and asked not in PROFILES:
        numbers = ", ".join(map(str, PROFILES))
        raise ValueError(f"--gpus {asked}: docker-compose.yaml has profiles for {numbers} GPUs")
    chosen = {profile.strip() for profile in present.get("COMPOSE_PROFILES", "").split(",")}
    by_profile = [str(number) for number, profile in PROFILES.items() if profile in chosen]
    in_file = present.get("SIFT_GPUS") or (by_profile[-1] if by_profile else None)
    if in_file is None:
        here = len([*Path("/dev").glob("nvidia[0-9]*")])
        return asked if asked is not None else max(number for number in PROFILES if number <= here)
    if asked is not None and str(asked) != in_file:
        name = next(name for name in ("SIFT_GPUS", "COMPOSE_PROFILES") if name in present)
        said = f"{name}={present[name]}"
        raise ValueError(f"--gpus {asked}: the file says {said}; change SIFT_GPUS and COMPOSE_PROFILES there")
    return int(in_file)


def _replace(path: Path, text: str) -> None:
    """Write a file that nobody else may read, whole or not at all."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
