"""What the tests of generation share: prompts, and the real small model, converted once."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from include import ingest
from include.generation.runner import current_mode_hashes, plan_shards, sync_prompts
from include.generation.transformers_engine import TransformersEngine
from include.local.model import ensure_small_model
from include.modes import MODES
from include.schema import Prompt
from include.settings import PROJECT_ROOT, Settings
from include.storage.generation import Scope
from include.storage.warehouse import Warehouse
from tests.include.generation.byte_tokenizer import save_byte_tokenizer
from tests.include.sources.corpus_files import TOY, toy_row, write_corpus


@pytest.fixture
def make_prompt() -> Callable[..., Prompt]:
    """Make a prompt of a mode, with the mode's own system prompt."""

    def make(mode: str = "sift_s", user_message: str = "i got the job", seed: int = 1, sample: str = "1") -> Prompt:
        return Prompt(
            source="ravdess",
            sample_id=f"ravdess/{sample}",
            mode=mode,
            prompt_hash="0" * 64,
            system_prompt=MODES[mode].system_prompt,
            user_message=user_message,
            attempt=1,
            seed=seed,
        )

    return make


@pytest.fixture
def stage_toy(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Sequence[dict[str, Any]]], None]:
    """Stage the toy corpus with these rows (again)."""
    monkeypatch.setattr(ingest, "normalising_code_hash", lambda recipe, max_rows: "code")

    def stage(rows: Sequence[dict[str, Any]]) -> None:
        write_corpus(tmp_path, list(rows))
        groups = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="run")
        ingest.merge_groups(TOY, [ingest.load_group(TOY, group, warehouse) for group in groups], warehouse)

    return stage


@pytest.fixture
def toy_corpus(stage_toy: Callable[..., None]) -> None:
    """Twelve clips of the toy corpus, staged in the test's warehouse."""
    stage_toy([toy_row(number) for number in range(12)])


@pytest.fixture
def toy_shard(warehouse: Warehouse, stage_toy: Callable[..., None]) -> Callable[[Settings, int], dict[str, Any]]:
    """Stage a toy corpus of so many rows and plan `sift_ssp` for it, as one shard that `generate_shard` takes."""

    def make(settings: Settings, rows: int) -> dict[str, Any]:
        stage_toy([toy_row(n) for n in range(rows)])
        hashes = current_mode_hashes(settings, ["sift_ssp"])
        sync_prompts(warehouse, ["toy"], hashes)
        scope = Scope(sources=["toy"], max_attempts=settings.max_attempts)
        (shard,) = plan_shards(warehouse, scope, hashes)["sift_ssp"]
        return {**shard, "model_revision": settings.model_revision}

    return make


@pytest.fixture(scope="session")
def make_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make a model's folder that has a tokenizer alone: a token per byte, and this chat template."""
    return lambda template: save_byte_tokenizer(tmp_path_factory.mktemp("model"), template)


@pytest.fixture(scope="session")
def small_model_dir() -> Path:
    """Folder of the real small model; kept between runs, for converting it takes half a minute."""
    return ensure_small_model(Path(os.environ.get("SIFT_TEST_MODELS") or PROJECT_ROOT / ".sift" / "models"))


@pytest.fixture(scope="session")
def small_engine(small_model_dir: Path) -> TransformersEngine:
    """The engine with the real small model, loaded once."""
    engine = TransformersEngine(Settings(profile="embedded", model_name=str(small_model_dir)))
    engine.load()
    return engine
