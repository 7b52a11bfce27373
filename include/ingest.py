"""The steps of an ingest run: resolve a revision, load groups of its files, merge them, report.

Each step is one task. What passes between them is small and JSON: where the rows are, never the rows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from include.schema import StepReport, merge_counts
from include.sources.reader import Corpus, CorpusFile, NoRevisionYetError, group_files, read_metadata, resolve_corpus
from include.sources.recipe import SourceRecipe
from include.storage.staging import (
    IncomingLoad,
    forget_abandoned_loads,
    label_distribution,
    latest_loads,
    merge_load,
)
from include.storage.warehouse import Warehouse

log = logging.getLogger(__name__)

# A field with free text in the wrong column must not flood XCom: the rest is counted together.
MOST_UNMAPPED = 200


class NothingToLoadError(Exception):
    """There is no work for this run, and that is fine; the message says why."""


def resolve_revision(
    recipe: SourceRecipe,
    hub: str,
    warehouse: Warehouse,
    *,
    run_id: str,
    revision: str | None = None,
    not_after: datetime | None = None,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Choose the revision to stage and split its files into groups to load in parallel.

    Args:
        recipe: The corpus.
        hub: Where corpora are read from.
        warehouse: Holds what is staged now.
        run_id: Identity of the run; a run that is cleared makes a load of its own each time.
        revision: Pin a revision; None follows the branch.
        not_after: Take the newest revision that is not younger.
        force: Stage even what is staged already, or an older revision than that.

    Returns:
        At most 8 groups, each a JSON object that `load_group` takes.

    Raises:
        NothingToLoadError: If that revision is staged already, or a newer one is.
        SourceError: If the corpus cannot be read.
    """
    try:
        corpus = resolve_corpus(recipe, hub, revision=revision, not_after=not_after)
    except NoRevisionYetError as too_early:
        raise NothingToLoadError(str(too_early)) from too_early
    latest = latest_loads(warehouse, recipe.name).get(recipe.name)
    code_hash = normalising_code_hash(recipe)
    if latest and not force:
        if latest["revision"] == corpus.revision and latest["code_hash"] == code_hash:
            raise NothingToLoadError(f"{recipe.name}: revision {corpus.revision[:12]} is staged already")
        newest = latest["published_at"]
        if newest and corpus.published_at and datetime.fromisoformat(corpus.published_at) < newest:
            raise NothingToLoadError(
                f"{recipe.name}: revision {corpus.revision[:12]} of {corpus.published_at} is older than what is "
                f"staged ({latest['revision'][:12]} of {newest.isoformat()}); the Param `force` goes back in time"
            )
    forget_abandoned_loads(warehouse, recipe.name)
    load_id = f"{recipe.name}/{run_id}/{uuid4().hex[:8]}"
    groups = group_files(corpus.files)
    log.info("%s: revision %s, %d files in %d groups", recipe.name, corpus.revision, len(corpus.files), len(groups))
    return [
        {
            "load_id": load_id,
            "file_group": number,
            "code_hash": code_hash,
            "corpus": {**asdict(corpus), "files": [asdict(file) for file in files]},
        }
        for number, files in enumerate(groups)
    ]


def load_group(recipe: SourceRecipe, group: dict[str, Any], warehouse: Warehouse) -> dict[str, Any]:
    """Normalise one group of files and copy its rows beside the samples, all or nothing.

    Returns:
        A JSON object for `merge_groups`: the group's identity, its StepReport, and the labels no table knew.
    """
    corpus = _corpus(group["corpus"])
    report = StepReport(f"load {recipe.name}, group {group['file_group']}")
    unmapped: dict[str, dict[str, int]] = {}
    with warehouse.transaction() as connection:
        incoming = IncomingLoad(connection, group["load_id"], group["file_group"])
        for file in corpus.files:
            for batch in read_metadata(corpus, file, recipe):
                staged = recipe.stage(batch)
                incoming.append(staged.table)
                reasons = staged.table.column("reject_reason").drop_null().value_counts().to_pylist()
                rejected = {entry["values"]: entry["counts"] for entry in reasons}
                report.read += len(batch)
                report.written += len(batch) - sum(rejected.values())
                report.skipped = merge_counts(report.skipped, rejected)
                for name, labels in staged.unmapped.items():
                    unmapped[name] = _most_frequent(merge_counts(unmapped.get(name, {}), labels))
            log.info("%s: %d rows read up to %s", recipe.name, report.read, file.path)
    return {**group, "report": asdict(report.check()), "unmapped": unmapped}


def merge_groups(recipe: SourceRecipe, loads: Sequence[dict[str, Any]], warehouse: Warehouse) -> dict[str, Any]:
    """Merge the loaded groups into the samples, in one transaction.

    Returns:
        The row of `staging.loads`, as JSON, with the unmapped labels.

    Raises:
        MergeRefusedError: If rows got lost, none came, or too many were rejected.
    """
    first = loads[0]
    fields = {name for load in loads for name in load["unmapped"]}
    unmapped = {
        name: _most_frequent(merge_counts(*(load["unmapped"].get(name, {}) for load in loads)))
        for name in sorted(fields)
    }
    load = merge_load(
        warehouse,
        load_id=first["load_id"],
        source=recipe.name,
        revision=first["corpus"]["revision"],
        published_at=first["corpus"]["published_at"],
        code_hash=first["code_hash"],
        rows_by_group={load["file_group"]: load["report"]["read"] for load in loads},
        unmapped=unmapped,
        max_reject_share=recipe.max_reject_share,
    )
    wanted = ("load_id", "source", "revision", "read", "staged", "unchanged", "changed", "moved", "retired", "rejected")
    merged = {**{name: load[name] for name in wanted}, "unmapped": unmapped}
    StepReport(
        f"merge {recipe.name}",
        read=merged["read"],
        written=merged["staged"] + merged["unchanged"] + merged["changed"],
        skipped=merged["rejected"],
    ).check()
    return merged


def has_changes(load: dict[str, Any]) -> bool:
    """Whether a merged load changed anything that a release shows."""
    return any(load[name] for name in ("staged", "changed", "moved", "retired"))


def describe_load(load: dict[str, Any], warehouse: Warehouse) -> str:
    """Write the report of a merged load: what came in, what was rejected, labels, and what no table knew."""
    source = load["source"]
    lines = [
        f"{source}: revision {load['revision'][:12]}",
        "  {read} rows read = {staged} new + {changed} changed + {unchanged} unchanged ({moved} of them moved) "
        "+ {rejected_rows} rejected; {retired} retired".format(**load, rejected_rows=sum(load["rejected"].values())),
        *(f"  rejected: {rows} x {reason}" for reason, rows in load["rejected"].items()),
    ]
    for column, labels in label_distribution(warehouse, [source]).get(source, {}).items():
        shown = ", ".join(f"{label} {rows}" for label, rows in list(labels.items())[:12])
        lines.append(f"  {column}: {shown}" + (f" and {len(labels) - 12} more" if len(labels) > 12 else ""))
    for column, labels in load["unmapped"].items():
        shown = ", ".join(f"{label!r} {rows}" for label, rows in labels.items())
        lines.append(f"  WARNING {column}: no table knows {shown}; these rows have no {column}")
    return "\n".join(lines)


def normalising_code_hash(recipe: SourceRecipe) -> str:
    """Identity of the code that turns this corpus's rows into samples."""
    here = Path(__file__).parent
    files = [*sorted((here / "normalize").glob("*.py")), here / "schema.py"]
    files += [here / "sources" / f"{name}.py" for name in ("reader", "recipe", recipe.name)]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _corpus(fields: dict[str, Any]) -> Corpus:
    return Corpus(**{**fields, "files": tuple(CorpusFile(**file) for file in fields["files"])})


def _most_frequent(counts: dict[str, int]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    kept = {label[:100]: rows for label, rows in ordered[:MOST_UNMAPPED]}
    rest = sum(rows for _, rows in ordered[MOST_UNMAPPED:])
    return {**kept, "(others)": kept.get("(others)", 0) + rest} if rest else kept
