"""`./sift demo`: the main job, once, through the real Airflow, with its progress shown."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from include.local.airflow import AirflowApi
from include.local.stack import OPEN, StackState, start_stack, stop_stack
from include.modes import MODES
from include.settings import EMBEDDED_MODEL, Settings
from include.sources import RECIPES
from include.storage.generation import count_verdicts, coverage, list_progress
from include.storage.staging import latest_loads, list_unmapped
from include.storage.warehouse import Warehouse

GENERATE = "generate_and_publish"
_ACTIVE = ("queued", "running")
_COLOURS = {"success": "green", "failed": "red", "running": "cyan", "skipped": "dim", "up_for_retry": "yellow"}
PARSE_TIMEOUT_S = 120


class DemoFailedError(RuntimeError):
    """A run of the demo did not succeed; the message says which and why."""


@dataclass
class _Watch:
    """What the demo waits for, as last seen."""

    ingests: dict[str, str]  # dag_id -> run_id
    since: datetime
    runs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    progress: list[dict[str, Any]] = field(default_factory=list)


def run_demo(
    settings: Settings, console: Console, *, sources: Sequence[str] | None, keep: bool, port: int | None
) -> None:
    """Ingest, generate and publish; then show what came out.

    Args:
        settings: Of the embedded stack.
        console: Where the progress is shown.
        sources: Sources to ingest; None takes all that the corpora's folder holds and a recipe knows.
        keep: Leave Airflow running.
        port: Of the web UI.

    Raises:
        ValueError: If a source is unknown, or the folder holds none.
        DemoFailedError: If a run did not succeed, or no release came out.
    """
    started = time.monotonic()
    chosen = _choose_sources(settings, sources)
    console.print(f"Corpora: {', '.join(chosen)}, from {settings.hub}", soft_wrap=True)
    succeeded = False
    # The model is converted (once) in a process of its own while Airflow starts.
    with ThreadPoolExecutor(1) as beside, _interruptible():
        model = beside.submit(_prepare_model, settings)
        with console.status("Starting") as status:
            state = start_stack(settings, port=port, attached=not keep, on_progress=status.update)
        console.print(f"Airflow is up at [link={state.url}]{state.url}[/link] after {time.monotonic() - started:.0f} s")
        try:
            with console.status("Preparing the model"):
                model.result()
            watch = _run(settings, console, state, chosen)
            _summarise(settings, console, state, chosen, watch, time.monotonic() - started)
            succeeded = True
        finally:
            if not (keep and succeeded):
                with console.status("Stopping Airflow and PostgreSQL"):
                    stop_stack(settings.home)
    if keep:
        console.print(f"Airflow stays up at [link={state.url}]{state.url}[/link]; stop it with ./sift down")
        console.print(f"{OPEN}. DAGs have no schedules until ./sift down and ./sift up", soft_wrap=True)


def _prepare_model(settings: Settings) -> None:
    if settings.engine == "transformers" and settings.model_name == EMBEDDED_MODEL:
        from include.local.model import ensure_small_model

        ensure_small_model(settings.models_dir)


def coverage_table(warehouse: Warehouse, settings: Settings) -> Table:
    """Show staged, accepted, pending and given-up prompts by source and mode."""
    table = Table("source", "mode", title="Coverage", title_justify="left")
    for column in ("staged", "accepted", "pending", "given up"):
        table.add_column(column, justify="right")
    generated = [name for name, recipe in RECIPES.items() if recipe.task == "sift"]
    for row in coverage(warehouse, generated, list(MODES), settings.max_attempts):
        counts = (row["staged"], row["accepted"], row["pending"], row["given_up"])
        table.add_row(row["source"], row["mode"], *map(str, counts))
    return table


def staged_table(warehouse: Warehouse) -> Table:
    """Show the newest load of each source."""
    table = Table("source", "task", title="Staged", title_justify="left")
    for column in ("read", "usable", "rejected"):
        table.add_column(column, justify="right")
    table.add_column("why rejected")
    for source, load in latest_loads(warehouse).items():
        rejected = sum(load["rejected"].values())
        reasons = ", ".join(f"{reason} {rows}" for reason, rows in load["rejected"].items())
        task = RECIPES[source].task if source in RECIPES else "gone"
        table.add_row(source, task, str(load["read"]), str(load["read"] - rejected), str(rejected), reasons)
    return table


def unmapped_table(warehouse: Warehouse) -> Table | str:
    """Show published values that no rule knows; a sentence if there are none."""
    table = Table("source", "column", "published", "rows", title="Labels that no rule knows", title_justify="left")
    for row in list_unmapped(warehouse):
        table.add_row(row["source"], row["field"], repr(row["raw_value"]), str(row["count"]))
    return table if table.row_count else "Every label was known to a rule."


def _choose_sources(settings: Settings, wanted: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(wanted or ()) - set(RECIPES))
    if unknown:
        raise ValueError(f"unknown sources {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    hub = Path(settings.hub)
    there = [name for name, recipe in RECIPES.items() if (hub / recipe.repository).is_dir()]
    missing = sorted(set(wanted or ()) - set(there))
    if missing:
        raise ValueError(
            f"{settings.hub} does not hold {', '.join(missing)}; it holds {', '.join(there) or 'no corpus'}"
        )
    if not there:
        raise ValueError(f"{settings.hub} holds no corpus that a recipe knows (<organisation>/<name> folders)")
    return [name for name in there if wanted is None or name in wanted]


def _run(settings: Settings, console: Console, state: StackState, sources: Sequence[str]) -> _Watch:
    api, warehouse = AirflowApi(state.url), Warehouse(state.conninfo)
    _wait_for_dags(api, [GENERATE, *(f"ingest_{source}" for source in sources)])
    since = datetime.now(UTC)
    api.unpause(GENERATE)
    for source in sources:
        api.unpause(f"ingest_{source}")
    watch = _Watch({f"ingest_{source}": api.trigger(f"ingest_{source}") for source in sources}, since)
    asked, active = False, True
    lines: dict[tuple[str, str], str] = {}
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            # An event is there before its ingest ends, and makes a run when it goes. So the end is an empty queue after
            # one look that found all ended, and before another one: in any other order a run could be missed.
            was_active, waiting = active, api.queued_events(GENERATE)
            _look(api, warehouse, watch)
            live.update(_screen(watch))
            if not console.is_terminal:
                _print_changes(console, watch, lines)
            active = any(run["state"] in _ACTIVE for run in watch.runs.values())
            if not (was_active or waiting or active):
                generated = any(dag_id == GENERATE for dag_id, _ in watch.runs)
                if generated or asked:
                    return watch
                # Nothing new was staged, so no event came; work that an earlier run left over is looked for.
                api.trigger(GENERATE)
                asked = True
            time.sleep(1)


def _wait_for_dags(api: AirflowApi, dag_ids: Sequence[str]) -> None:
    deadline = time.monotonic() + PARSE_TIMEOUT_S
    while time.monotonic() < deadline:
        if errors := api.import_errors():
            raise DemoFailedError(f"{errors[0]['filename']} cannot be imported:\n{errors[0]['stack_trace']}")
        missing = set(dag_ids) - {dag["dag_id"] for dag in api.list_dags()}
        if not missing:
            return
        time.sleep(0.5)
    raise DemoFailedError(f"Airflow did not find the DAGs {', '.join(sorted(missing))} within {PARSE_TIMEOUT_S} s")


def _look(api: AirflowApi, warehouse: Warehouse, watch: _Watch) -> None:
    for dag_id, run_id in watch.ingests.items():
        watch.runs[dag_id, run_id] = api.run(dag_id, run_id)
    for run in api.runs(GENERATE):
        after = datetime.fromisoformat(run["run_after"])
        if after >= watch.since or run["state"] in _ACTIVE or (GENERATE, run["dag_run_id"]) in watch.runs:
            watch.runs[GENERATE, run["dag_run_id"]] = run
    for key, run in watch.runs.items():
        known = watch.tasks.get(key)
        if run["state"] in _ACTIVE or known is None or any(task["state"] in (None, *_ACTIVE) for task in known):
            watch.tasks[key] = api.tasks(*key)
    watch.progress = list_progress(warehouse, watch.since)


def _screen(watch: _Watch) -> RenderableType:
    runs = Table("run", "state", "tasks", box=None, pad_edge=False)
    for (dag_id, _), run in sorted(watch.runs.items(), key=lambda item: (item[0][0] == GENERATE, item[1]["run_after"])):
        runs.add_row(dag_id, _coloured(run["state"]), _task_line(watch.tasks.get((dag_id, run["dag_run_id"]), [])))
    modes = Table("mode", "", "done", "accepted", "tokens/s", "left", "device", box=None, pad_edge=False)
    for row in watch.progress:
        left = f"{row['eta_s']:.0f} s" if row["eta_s"] is not None else row["status"]
        speed = f"{row['tokens_per_s']:.0f}" if row["tokens_per_s"] else ""
        bar = ProgressBar(total=max(row["total"], 1), completed=row["done"], width=30)
        modes.add_row(
            row["mode"], bar, f"{row['done']} of {row['total']}", str(row["accepted"]), speed, left, row["device"] or ""
        )
    return Group(runs, Text(), modes) if watch.progress else runs


def _task_line(tasks: Sequence[dict[str, Any]]) -> Text:
    parts = []
    for task in sorted(tasks, key=lambda task: (task["start_date"] or "~", task["task_id"], task["map_index"])):
        if task["state"] not in (None, "removed"):
            parts.append(Text(task["task_id"], _COLOURS.get(task["state"], "")))
    return Text("  ").join(parts)


def _coloured(state: str) -> Text:
    return Text(state, _COLOURS.get(state, ""))


def _print_changes(console: Console, watch: _Watch, lines: dict[tuple[str, str], str]) -> None:
    """Without a terminal: one line whenever a run or a shard has come further."""
    now = {key: run["state"] for key, run in watch.runs.items()}
    for row in watch.progress:
        speed = f", {row['tokens_per_s']:.0f} tokens/s" if row["tokens_per_s"] else ""
        now[row["run_id"], row["mode"]] = f"{row['done']} of {row['total']} done, {row['status']}{speed}"
    for key, line in now.items():
        if lines.get(key) != line:
            console.print(
                f"{datetime.now():%H:%M:%S} {key[0] if key in watch.runs else key[1]}: {line}", highlight=False
            )
    lines.update(now)


def _summarise(
    settings: Settings,
    console: Console,
    state: StackState,
    sources: Sequence[str],
    watch: _Watch,
    seconds: float,
) -> None:
    api, warehouse = AirflowApi(state.url), Warehouse(state.conninfo)
    for (dag_id, run_id), run in watch.runs.items():
        if run["state"] != "success":
            raise DemoFailedError(f"{dag_id} {run['state']}:\n{_why_failed(api, dag_id, run_id)}")
    from include.publish.release import LATEST, verify_release

    release = settings.releases_dir / LATEST
    if not release.exists():
        raise DemoFailedError(f"all runs succeeded but {settings.releases_dir} holds no release")
    release = release.resolve()
    with console.status("Reading the release back"):
        verify_release(release)
    console.print(staged_table(warehouse))
    console.print(unmapped_table(warehouse))
    console.print(coverage_table(warehouse, settings))
    verdicts = Table("mode", "verdict", "texts", "share", title="Verdicts", title_justify="left")
    for mode, counts in count_verdicts(warehouse, list(sources)).items():
        for verdict, count in counts.items():
            verdicts.add_row(mode, verdict, str(count), f"{count / sum(counts.values()):.0%}")
    console.print(verdicts)
    generated = sum(row["accepted"] + row["rejected"] for row in watch.progress)
    if generated:
        console.print(f"{generated} texts were written in this run.")
    else:
        console.print("Nothing was pending: no text was generated again.")
    console.print(f"Release, read back: {release}", soft_wrap=True, highlight=False)
    console.print(f"Done in {seconds:.0f} s")


def _why_failed(api: AirflowApi, dag_id: str, run_id: str) -> str:
    reasons = []
    for task in api.tasks(dag_id, run_id):
        if task["state"] == "failed":
            log = api.task_log(dag_id, run_id, task["task_id"], task["try_number"], task["map_index"])
            lines = [line for line in log if not line.startswith("::")]  # marks that fold the log in the web UI
            reasons.append(f"  task {task['task_id']}:\n    " + "\n    ".join(lines[-8:]))
    return "\n".join(reasons)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that both end the demo in the same way."""

    def interrupt(received: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
