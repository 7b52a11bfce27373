"""What must not be published is refused, by name and with the ways out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from include.generate import plan_run
from include.modes import MODES
from include.publish.guards import LicenceError, OverwriteError, Selection, check_licences, check_overwrite
from include.publish.manifest import Manifest
from include.publish.merge import merge_release
from include.publish.targets.local import LocalTarget
from include.schema import BadInputError
from include.settings import Settings
from include.sources import RECIPES
from include.storage.warehouse import Warehouse
from tests.include.publish.steps import EVERYTHING, generate, stage

FREE = [name for name, recipe in RECIPES.items() if recipe.redistributable]
RESTRICTED = [name for name, recipe in RECIPES.items() if not recipe.redistributable]


class OpenTarget(LocalTarget):
    """A folder that anybody can read, say over the web."""

    def is_public(self) -> bool:
        return True


@pytest.fixture
def public(tmp_path: Path) -> OpenTarget:
    return OpenTarget("https://example.org/releases", tmp_path / "public")


def manifest(**values: Any) -> Manifest:
    fields: dict[str, Any] = {
        "release_id": "r1",
        "created_at": "2026-11-01T12:00:00Z",
        "writer_version": 1,
        "sources": {},
        "generator": {"model": "SmolLM3-3B"},
        "modes": dict.fromkeys(MODES, "hash"),
        "verdicts": {},
        "quality": {},
        "gates": (),
    }
    return Manifest.model_validate({**fields, **values})


def test_every_recipe_states_its_licence_and_whether_its_audio_may_be_published() -> None:
    assert all(recipe.licence.strip() and isinstance(recipe.redistributable, bool) for recipe in RECIPES.values())
    assert FREE and RESTRICTED


@pytest.mark.parametrize("name", RESTRICTED)
def test_a_public_target_refuses_audio_that_must_not_be_published(public: OpenTarget, name: str) -> None:
    with pytest.raises(LicenceError) as refused:
        check_licences(public, [*FREE, name])
    message = str(refused.value)
    assert public.uri in message and f"{name} ({RECIPES[name].licence})" in message
    assert "private target" in message and f'leave_out=["{name}"]' in message
    assert not any(f"{free} (" in message for free in FREE)


def test_what_is_free_goes_anywhere_and_all_goes_to_a_private_target(public: OpenTarget, tmp_path: Path) -> None:
    check_licences(public, FREE)
    check_licences(LocalTarget("local", tmp_path), list(RECIPES))


def test_a_run_is_refused_when_it_is_planned_and_again_before_promotion(
    warehouse: Warehouse, make_settings: Any, public: OpenTarget
) -> None:
    settings: Settings = make_settings()
    stage(warehouse, settings, "meld", "ravdess")
    assert not RECIPES["meld"].redistributable and RECIPES["ravdess"].redistributable
    with pytest.raises(LicenceError, match="meld"):
        plan_run(warehouse, settings, EVERYTHING, public)
    generate(warehouse, settings)
    with pytest.raises(LicenceError, match="meld"):
        merge_release(warehouse, settings, EVERYTHING, public)
    with pytest.raises(LicenceError, match="meld"):  # force is for trials
        merge_release(warehouse, settings, {**EVERYTHING, "force": True}, public)
    assert not public.staging.exists()
    without = {**EVERYTHING, "leave_out": ["meld"]}
    plan_run(warehouse, settings, without, public)
    merged = merge_release(warehouse, settings, without, public)
    assert merged and list(merged["rows"]) == ["ravdess"]


def refused(latest: Manifest | None, uri: str = "/other", force: bool = False, **new: Any) -> str:
    """The message of the refusal; "" when the release may be made."""
    fields = {"modes": list(MODES), "max_samples": None, "leave_out": [], "model": "SmolLM3-3B", **new}
    model = fields.pop("model")
    target = LocalTarget(uri, Path("/nowhere"))
    try:
        check_overwrite(target, latest, Selection.of(fields, latest).narrowed, model, default="local", force=force)
    except OverwriteError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"max_samples": 5}, "a release with max_samples=5 would take the place of release r1, which is whole"),
        ({"modes": ["sit_ssp"]}, "a release without the modes sift_s, sift_ssp would take the place of release r1"),
        (
            {"max_samples": 5, "modes": ["sift_s", "sift_ssp"]},
            "a release with max_samples=5 and without the modes sit_ssp",
        ),
        ({"model": "other"}, "release r1 was written by SmolLM3-3B, this one would be by other"),
    ],
)
def test_a_trial_does_not_take_the_place_of_a_dataset(new: dict[str, Any], message: str) -> None:
    said = refused(manifest(), **new)
    assert message in said
    assert "target of its own" in said and "publish=false" in said and "force=true" in said
    assert refused(manifest(), force=True, **new) == ""


def test_a_trial_goes_to_a_target_of_its_own_but_never_to_everybodys() -> None:
    assert refused(None, max_samples=5) == ""
    assert refused(manifest(narrowed="with max_samples=9"), max_samples=5) == ""
    assert refused(manifest(narrowed="without the modes sift_ssp, sit_ssp"), modes=["sit_ssp"]) == ""
    assert refused(manifest(narrowed="with max_samples=9")) == ""
    assert "would take the place of the dataset" in refused(None, uri="local", max_samples=5)
    assert refused(manifest(), uri="local") == refused(None, uri="local") == ""
    assert refused(manifest(generator={})) == refused(manifest(), model=None) == ""  # no model wrote any row


def test_both_refusals_are_bad_input_which_no_task_tries_again() -> None:
    assert issubclass(LicenceError, BadInputError) and issubclass(OverwriteError, BadInputError)
