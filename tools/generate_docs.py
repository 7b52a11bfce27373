"""Write docs/SOURCES.md, docs/QUALITY.md and docs/DAGS.md from the code; CI checks that they are up to date."""

from __future__ import annotations

import os
import re
import tempfile
from typing import Annotated, Any

import typer
from cron_descriptor import Options, get_description

from include.quality.rules import RULES
from include.settings import PROFILES, PROJECT_ROOT, Settings
from include.sources import RECIPES
from include.sources.recipe import SourceRecipe

DOCS = PROJECT_ROOT / "docs"
HEAD = "<!-- Written by ./sift docs from {origin}; changes belong there. -->\n"


def sources_page() -> str:
    """Describe every corpus: where it is, what may be done with it, and what becomes of its columns."""
    lines = [
        HEAD.format(origin="include/sources/"),
        "# Sources\n",
        "Each corpus is one module of `include/sources/`. A DAG stages the newest revision of its branch; rows are "
        "what its card says, and a load that finds another number warns. A cap chooses whole row groups by hash, the "
        "same ones every time ([decision 0008](decisions/0008-caps.md)); the setting `SIFT_MAX_ROWS` overrides it.\n",
        "| source | repository | feeds | rows | cap | licence | audio may be published |",
        "|---|---|---|---:|---:|---|---|",
    ]
    for recipe in RECIPES.values():
        counts = f"{_count(recipe.expected_rows)} | {_count(recipe.max_rows)}"
        published = "yes" if recipe.redistributable else "no"
        lines.append(
            f"| [{recipe.name}](#{recipe.name}) | {_repository(recipe)} | {recipe.task} | {counts} | {recipe.licence} "
            f"| {published} |"
        )
    for recipe in RECIPES.values():
        lines += ["", f"## {recipe.name}", "", recipe.card.strip(), "", *_fields(recipe)]
    return "\n".join(lines) + "\n"


def _fields(recipe: SourceRecipe) -> list[str]:
    lines = ["| column of a sample | made from | how |", "|---|---|---|", f"| `sample_id` | `{recipe.key}` | the key |"]
    for canonical, field in recipe.fields.items():
        columns = ", ".join(f"`{column}`" for column in field.columns)
        rule = re.sub(r"what (.*) finds", r"what `\1` finds", field.rule).replace("|", "\\|")
        lines.append(f"| `{canonical}` | {columns} | {rule} |")
    notes = [f"Rejected: {fault.reason} (`{fault.column}`)." for fault in recipe.reject_if]
    notes += [
        f"The most frequent {column} must be `{label}`, or nothing is merged."
        for column, label in (recipe.largest_class or {}).items()
    ]
    notes.append(f"A load with more than {recipe.max_reject_share:.0%} unusable rows is refused.")
    if recipe.held_out_speakers:
        notes.append(f"Releases hold out the speakers {', '.join(recipe.held_out_speakers)}.")
    cite = ["", f"Cite: {recipe.citation}."] if recipe.citation else []
    return [*lines, "", " ".join(notes), *cite]


def _repository(recipe: SourceRecipe) -> str:
    config = f", `{recipe.config}`" if recipe.config != "default" else ""
    return f"[{recipe.repository}](https://huggingface.co/datasets/{recipe.repository}){config}"


def _count(rows: int | None) -> str:
    return f"{rows:,}" if rows else ""


def quality_page() -> str:
    """Describe every quality rule: what it stops, where, and how severe it is."""
    embedded = PROFILES["embedded"]["rule_severities"]
    lines = [
        HEAD.format(origin="include/quality/rules.py"),
        "# Quality rules\n",
        "Each answer is judged when it is written, and again when the rules have changed, without a GPU. `reject`: "
        "tried again with another seed, up to `SIFT_MAX_ATTEMPTS` times, then given up and counted; every text is kept "
        "in `generation.attempts` with the rule that it broke. `warn`: published, and counted in the quality report. "
        "`SIFT_RULE_SEVERITIES` changes the severity of a rule that is not hard. The embedded profile, with its small "
        "model, only counts what that model cannot do.\n",
        "| rule | what it stops | modes | severity | embedded |",
        "|---|---|---|---|---|",
    ]
    for name, rule in RULES.items():
        meaning = " ".join((rule.broken.__doc__ or "").split())
        modes = ", ".join(f"`{mode}`" for mode in rule.modes) if rule.modes else "all"
        severity = f"{rule.severity}, hard" if rule.hard else rule.severity
        lines.append(f"| `{name}` | {meaning} | {modes} | {severity} | {embedded.get(name, rule.severity)} |")
    return "\n".join(lines) + "\n"


def dags_page(dags: dict[str, Any]) -> str:
    """Describe every DAG: when it runs, its tasks and its parameters."""
    from airflow.sdk import AssetOrTimeSchedule

    ingest = [dag for name, dag in sorted(dags.items()) if name.startswith("ingest_")]
    lines = [
        HEAD.format(origin="dags/"),
        "# DAGs\n",
        "DAGs are made paused, but for the one that cleans up. The schedules are in UTC; the demo runs without them.\n",
        f"## ingest_&lt;source&gt;\n\n{_shifted(ingest[0].doc_md.partition('---')[0])}",
        "| DAG | title | schedule | tells |",
        "|---|---|---|---|",
    ]
    for dag in ingest:
        (asset,) = dag.get_task("merge").outlets
        lines.append(
            f"| `{dag.dag_id}` | {dag.dag_display_name} | {_when(dag.timetable.expression)} | `{asset.name}` |"
        )
    lines += ["", *_wiring(ingest[0]), *_parameters(ingest[0])]
    for dag in (dag for name, dag in sorted(dags.items()) if not name.startswith("ingest_")):
        woken = isinstance(dag.timetable, AssetOrTimeSchedule)
        when = _when(Settings().daily_at if woken else dag.timetable.expression)
        runs = f"when any of the assets `staged/<source>` is updated, and daily: {when}" if woken else f"daily: {when}"
        lines += [f"## {dag.dag_id}\n", _shifted(dag.doc_md), f"Runs {runs}.\n"]
        lines += [*_wiring(dag), *_parameters(dag)]
    return "\n".join(lines).rstrip() + "\n"


def _when(cron: str) -> str:
    return get_description(cron, Options(verbose=False, use_24hour_time_format=True))


def _wiring(dag: Any) -> list[str]:
    """A picture of the tasks; GitHub and many editors draw Mermaid."""
    lines = ["```mermaid", "flowchart LR"]
    for task in dag.topological_sort():
        name = _node(task.task_id)
        mapped = "[[{}]]" if type(task).__name__ == "DecoratedMappedOperator" else "[{}]"
        pool = f"<br/>pool {task.pool}" if task.pool != "default_pool" else ""
        label = f'"{task.task_id}{pool}"'
        lines.append(f"    {name}{mapped.format(label)}")
        lines += [f"    {name} --> {_node(after)}" for after in sorted(task.downstream_task_ids)]
    mapped = ["Double frames are mapped tasks: one instance per group of files, or per shard.", ""]
    return [*lines, "```", "", *(mapped if any("[[" in line for line in lines) else [])]


def _node(task_id: str) -> str:
    return task_id.replace(".", "_")


def _parameters(dag: Any) -> list[str]:
    if not dag.params:
        return []
    lines = ["| parameter | default | meaning |", "|---|---|---|"]
    for name in dag.params:
        param = dag.params.get_param(name)
        listed = ("all" if param.value else "none") if isinstance(param.value, list) else None
        default = listed or ("empty" if param.value is None else param.value)
        lines.append(f"| `{name}` | {default} | {param.description} |")
    return [*lines, ""]


def _shifted(doc: str) -> str:
    return doc.strip() + "\n"


def load_dags() -> dict[str, Any]:
    """All DAGs by id, as they are with the default settings and an empty Airflow home."""
    for name in [name for name in os.environ if name.startswith(("SIFT_", "AIRFLOW"))]:
        del os.environ[name]
    Settings.model_config["env_file"] = None
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home
        os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(dag_folder=str(PROJECT_ROOT / "dags"))
    if bag.import_errors:
        raise SystemExit(f"sift: DAG files cannot be imported: {bag.import_errors}")
    return dict(bag.dags)


def main(check: Annotated[bool, typer.Option(help="Write nothing; fail if a page is out of date")] = False) -> None:
    """Write the generated pages, or check them."""
    stale = []
    pages = {
        DOCS / "SOURCES.md": sources_page(),
        DOCS / "QUALITY.md": quality_page(),
        DOCS / "DAGS.md": dags_page(load_dags()),
    }
    for path, text in pages.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.relative_to(PROJECT_ROOT).as_posix())
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        raise SystemExit(f"sift: {', '.join(stale)} are out of date; run ./sift docs and commit them")
    print("up to date" if not stale else f"wrote {', '.join(stale)}")


if __name__ == "__main__":
    typer.run(main)
