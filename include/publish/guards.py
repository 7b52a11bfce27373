"""What must not be published: audio that its owners do not share, and a trial in the place of the dataset.

Checked when a run is planned, before any GPU works for it, and again before its release is promoted; that a release is
by another model, only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from include.modes import MODES
from include.publish.manifest import Manifest
from include.schema import BadInputError
from include.sources import RECIPES

if TYPE_CHECKING:
    from include.publish.targets import Target


class LicenceError(BadInputError):
    """A public target would get audio that must not be published again."""


class OverwriteError(BadInputError):
    """A trial would take the place of the dataset."""


@dataclass(frozen=True)
class Selection:
    """What of the staged samples a release is made of.

    Attributes:
        modes: Modes by name, in the registry's order.
        max_samples: Most samples of each source, the same ones every time; None: all.
        left_out: Sources that are not published.
    """

    modes: list[str]
    max_samples: int | None
    left_out: frozenset[str]

    @classmethod
    def of(cls, params: Mapping[str, Any], latest: Manifest | None) -> Selection:
        """Read a run's Params.

        Args:
            params: Of the run.
            latest: Manifest of the target's latest release; sources of it can be left out that have no recipe any more.

        Raises:
            BadInputError: If a source is to be left out that neither knows.
        """
        known = [*RECIPES, *(name for name in (latest.sources if latest else ()) if name not in RECIPES)]
        unknown = sorted(set(params["leave_out"]) - set(known))
        if unknown:
            raise BadInputError(f"leave_out names unknown sources {', '.join(unknown)}; there are {', '.join(known)}")
        modes = [mode for mode in MODES if mode in params["modes"]]
        return cls(modes, params["max_samples"], frozenset(params["leave_out"]))

    def takes(self, source: str) -> bool:
        """Whether a release holds this source once it is complete."""
        return source not in self.left_out

    @property
    def narrowed(self) -> str | None:
        """Why a release of this is only a trial, in words; None if it is not."""
        reasons = [f"with max_samples={self.max_samples}"] if self.max_samples is not None else []
        if missing := [mode for mode in MODES if mode not in self.modes]:
            reasons.append(f"without the modes {', '.join(missing)}")
        return " and ".join(reasons) or None


def check_licences(target: Target, sources: Iterable[str]) -> None:
    """Refuse sources whose audio must not be published again on a target that anybody can read.

    Raises:
        LicenceError: Naming them, their licences, and the ways out.
    """
    restricted = [RECIPES[name] for name in sources if not RECIPES[name].redistributable]
    if not restricted or not target.is_public():
        return
    named = ", ".join(f"{recipe.name} ({recipe.licence})" for recipe in restricted)
    names = ", ".join(f'"{recipe.name}"' for recipe in restricted)
    raise LicenceError(
        f"{target.uri} is public, and the audio of these sources must not be published again: {named}. "
        f"Publish to a private target, or without them: leave_out=[{names}] (SIFT_LEAVE_OUT for all runs)"
    )


def check_overwrite(
    target: Target, latest: Manifest | None, narrowed: str | None, model: object, *, default: str, force: bool
) -> None:
    """Refuse a trial in the place of a dataset: some samples, some modes, or another model than the target's.

    Args:
        target: Of the run.
        latest: Manifest of its latest release; None if it has none.
        narrowed: Why the new release is only a trial (`Selection.narrowed`); None if it is not.
        model: Name of the model that wrote it; None if it needed none, or none shall be compared.
        default: URI of the target that runs have by default: never one for trials.
        force: Let it pass.

    Raises:
        OverwriteError: Naming what is narrower or other, and the ways out.
    """
    if force:
        return
    ways = "Give it a target of its own (parameter target), run with publish=false, or with force=true"
    whole = f"release {latest.release_id}, which is whole" if latest is not None and latest.narrowed is None else None
    if narrowed and (whole or target.uri == default):
        raise OverwriteError(
            f"{target.uri}: a release {narrowed} would take the place of {whole or 'the dataset'}. {ways}"
        )
    before = latest.generator.get("model") if latest is not None else None
    if latest is not None and before and model and before != model:
        raise OverwriteError(
            f"{target.uri}: release {latest.release_id} was written by {before}, this one would be by {model}. {ways} "
            "once everything is generated"
        )
