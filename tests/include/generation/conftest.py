"""What the tests of generation share: prompts, and the real small model, converted once."""

import os
from collections.abc import Callable
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
def toy_shard(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Settings, int], dict[str, Any]]:
    """Stage a toy corpus of so many rows and plan `sift_ssp` for it, as one shard that `generate_shard` takes."""
    monkeypatch.setattr(ingest, "normalising_code_hash", lambda recipe, max_rows: "code")

    def make(settings: Settings, rows: int) -> dict[str, Any]:
        write_corpus(tmp_path, [toy_row(n) for n in range(rows)])
        groups = ingest.resolve_revision(TOY, str(tmp_path), warehouse, run_id="run")
        ingest.merge_groups(TOY, [ingest.load_group(TOY, group, warehouse) for group in groups], warehouse)
        hashes = current_mode_hashes(settings, ["sift_ssp"])
        sync_prompts(warehouse, ["toy"], hashes)
        scope = Scope(sources=["toy"], max_attempts=settings.max_attempts)
        (shard,) = plan_shards(warehouse, scope, hashes)["sift_ssp"]
        return {**shard, "model_revision": settings.model_revision}

    return make


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
