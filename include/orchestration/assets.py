"""The assets that connect the DAGs: `staged/<source>`, updated when a merge changed something."""

from __future__ import annotations

from airflow.sdk import Asset

from include.sources import RECIPES

STAGED: dict[str, Asset] = {
    name: Asset(name=f"staged/{name}", uri=f"x-staging://samples/{name}", group="staged") for name in RECIPES
}
"""One asset per source. Events are hints: a consumer takes all pending work, whichever source woke it."""

RELEASE = Asset(name="release/dataset", uri="x-release://dataset", group="release")
"""The published dataset."""
