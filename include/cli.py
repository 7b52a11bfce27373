"""The commands of `./sift`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from include.settings import PROJECT_ROOT, Settings, describe_refused, get_settings

if TYPE_CHECKING:
    from include.local.airflow import AirflowApi
    from include.schema import Finding
    from include.storage.warehouse import Warehouse

app = typer.Typer(
    help="Turn public speech corpora into one instruction-tuning dataset, driven by Airflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
if not console.is_terminal:
    console = Console(width=10_000)  # a pipe and a file have no width: nothing is cut or folded
SAMPLES = PROJECT_ROOT / "samples"


class Reprocess(StrEnum):
    """Airflow's words for which past intervals a backfill runs again."""

    NONE = "none"
    FAILED = "failed"
    COMPLETED = "completed"


Hub = Annotated[
    Path | None,
    typer.Option(help="Folder in the Hub's layout to read corpora from", show_default="the bundled samples"),
]
Port = Annotated[
    int | None, typer.Option(help="Port of the web UI", show_default="8080, or the next free one", min=1, max=65535)
]


def _embedded_settings(hub: Path | None = None) -> Settings:
    """Settings of the embedded stack, put into the environment for the processes that are started."""
    if hub is not None:
        if not hub.is_dir():
            raise ValueError(f"--hub {hub}: there is no such folder")
        os.environ["SIFT_HUB"] = str(hub.absolute())
    os.environ.setdefault("SIFT_PROFILE", "embedded")
    if "hub" not in Settings().model_fields_set:
        os.environ["SIFT_HUB"] = str(SAMPLES)
    return get_settings()


@app.command()
def demo(
    hub: Hub = None,
    sources: Annotated[str | None, typer.Option(help="Only these sources, separated by commas")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave Airflow running afterwards, without schedules")] = False,
    port: Port = None,
) -> None:
    """Run the main job once: corpora in, dataset out, through a real Airflow."""
    from include.local.demo import run_demo

    # The same at any hour and weekday, and with everything on this machine.
    os.environ |= {"SIFT_SCHEDULES": "false", "SIFT_TARGET": "local", "SIFT_REVIEW": "false"}
    settings = _embedded_settings(hub)
    wanted = [name.strip() for name in sources.split(",") if name.strip()] if sources else None
    run_demo(settings, console, sources=wanted, keep=keep, port=port)


@app.command()
def up(hub: Hub = None, port: Port = None) -> None:
    """Start Airflow in the background and print its address."""
    from include.local.stack import OPEN, start_stack

    settings = _embedded_settings(hub)
    with console.status("Starting") as status:
        state = start_stack(settings, port=port, attached=False, on_progress=status.update)
    console.print(f"Airflow is up at [link={state.url}]{state.url}[/link], reading corpora from {state.hub}")
    console.print(OPEN, soft_wrap=True)
    console.print("DAGs start paused: unpause or trigger what you want. Stop with ./sift down")


@app.command()
def down() -> None:
    """Stop what `up` or `demo --keep` left running."""
    from include.local.stack import stop_stack

    with console.status("Stopping"):
        stopped = stop_stack(_embedded_settings().home)
    console.print("Stopped" if stopped else "Nothing was running")


@app.command()
def status() -> None:
    """Show whether Airflow runs, what is staged and what is written. Exit status 3: not running."""
    from include.local.demo import coverage_table, staged_table, unmapped_table
    from include.local.stack import read_state
    from include.storage.warehouse import Warehouse

    settings = _embedded_settings()
    state = read_state(settings.home)
    if not state:
        console.print(f"Not running (home {settings.home}). Start it with ./sift up")
        raise typer.Exit(3)
    console.print(f"Airflow is up at [link={state.url}]{state.url}[/link] (process {state.pid})")
    warehouse = Warehouse(state.conninfo)
    staged = staged_table(warehouse)
    if not staged.row_count:
        console.print("Nothing is staged yet: trigger an ingest DAG")
        return
    for shown in (staged, unmapped_table(warehouse), coverage_table(warehouse, settings)):
        console.print(shown)


@app.command()
def logs(
    part: Annotated[
        str | None, typer.Argument(help="api-server, scheduler, dag-processor, postgres, migrate, clean, supervisor")
    ] = None,
    lines: Annotated[int, typer.Option("-n", help="Lines from the end", min=1)] = 40,
    follow: Annotated[bool, typer.Option("-f", help="Go on as they grow")] = False,
) -> None:
    """Show the end of the logs of Airflow's processes; task logs are in the web UI."""
    folder = _embedded_settings().home / "logs"
    found = sorted(folder.glob("*.log"))
    chosen = [file for file in found if part in (None, file.stem)]
    if not found:
        raise ValueError(f"there are no logs in {folder} yet: nothing was started")
    if not chosen:
        raise ValueError(f"there is no log {part} in {folder}; there are: {', '.join(file.stem for file in found)}")
    subprocess.run(["tail", "-n", str(lines), *(["-f"] if follow else []), *map(str, chosen)], check=False)


@app.command()
def trigger(
    dag: Annotated[str, typer.Argument(help="For example ingest_meld or generate_and_publish")],
    conf: Annotated[str, typer.Option(help="Parameters of the run, a JSON object")] = "{}",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit status 1 unless it succeeds")] = False,
) -> None:
    """Start a run of a DAG, unpausing it first."""
    api, url = _running_airflow()
    parameters = _json_object(conf)
    api.unpause(dag)
    run_id = api.trigger(dag, parameters)
    console.print(f"{dag}: run {run_id}, {url}/dags/{dag}/runs/{run_id}", soft_wrap=True)
    if not wait:
        return
    with console.status("running") as shown:
        while (run := api.run(dag, run_id))["state"] in ("queued", "running"):
            shown.update(run["state"])
            time.sleep(1)
    console.print(f"{dag}: {run['state']}")
    if run["state"] != "success":
        for task in api.tasks(dag, run_id):
            if task["state"] == "failed":
                why = api.task_error(dag, run_id, task).splitlines()[:3]  # the log in the web UI has all of it
                console.print("\n    ".join([f"  failed: {task['task_id']}", *why]), markup=False, soft_wrap=True)
        raise typer.Exit(1)
    if parameters.get("estimate"):
        estimate = api.returned(dag, run_id, "estimate") or {"text": "Nothing is pending."}
        console.print(estimate["text"], highlight=False, markup=False)


@app.command()
def backfill(
    dag: Annotated[str, typer.Argument(help="An ingest DAG, for example ingest_commonvoice")],
    since: Annotated[datetime, typer.Option("--from", help="First day, UTC", formats=["%Y-%m-%d"])],
    until: Annotated[datetime, typer.Option("--to", help="Last day, UTC", formats=["%Y-%m-%d"])],
    conf: Annotated[str, typer.Option(help="Parameters of the runs, a JSON object")] = "{}",
    reprocess: Annotated[
        Reprocess, typer.Option(help="Intervals that have a run already: leave them, or run failed ones or all again")
    ] = Reprocess.NONE,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit status 1 unless all succeed")] = False,
) -> None:
    """Run a DAG for past intervals, the oldest first; each run stages the newest revision of its time."""
    api, url = _running_airflow(schedules=True)
    parameters = _json_object(conf)
    first, last = since.replace(tzinfo=UTC), until.replace(tzinfo=UTC) + timedelta(days=1, seconds=-1)
    # Asked for first, so that a refused backfill leaves the DAG as it was.
    number = api.backfill(dag, first, last, conf=parameters, reprocess=reprocess.value)
    api.unpause(dag)
    console.print(f"{dag}: backfill {number}, {url}/dags/{dag}/backfills", soft_wrap=True)
    if not wait:
        return
    with console.status("running"):
        while not api.backfill_is_done(number):
            time.sleep(1)
    runs = [run for run in api.runs(dag, "backfill") if first <= datetime.fromisoformat(run["logical_date"]) <= last]
    table = Table("run of", "state")
    for run in reversed(runs):
        table.add_row(f"{datetime.fromisoformat(run['logical_date']):%Y-%m-%d %H:%M}", run["state"])
    console.print(table)
    if any(run["state"] != "success" for run in runs):
        raise typer.Exit(1)


def _running_airflow(*, schedules: bool = False) -> tuple[AirflowApi, str]:
    """The running stack's API and address; `schedules`: what is asked of it needs DAGs that have theirs."""
    from include.local.airflow import AirflowApi
    from include.local.stack import read_state

    state = read_state(_embedded_settings().home)
    if not state:
        raise ValueError("Airflow is not running; start it with ./sift up")
    if schedules and not state.schedules:
        raise ValueError(
            "this Airflow runs without schedules, as ./sift demo starts it (or SIFT_SCHEDULES=false), and without one "
            "a DAG has no past intervals: ./sift down, then ./sift up"
        )
    return AirflowApi(state.url), state.url


def _json_object(conf: str) -> dict[str, Any]:
    try:
        parameters = json.loads(conf)
    except json.JSONDecodeError as error:
        raise ValueError(f"--conf is not JSON: {error}") from None
    if not isinstance(parameters, dict):
        raise ValueError(f"--conf must be a JSON object, not {conf}")
    return parameters


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead")] = False,
    free: Annotated[float, typer.Option(help="GiB that must be free on each disk", min=0)] = 5,
) -> None:
    """Check this deployment: what is wrong, and how to mend it. Exit status 1: something is wrong."""
    from include.doctor import examine

    if "AIRFLOW__CORE__EXECUTOR" not in os.environ:
        with suppress(ValidationError, SettingsError):  # a finding, not the end
            _embedded_settings()
    # Libraries of Airflow print what they like; the answer alone goes out.
    with redirect_stdout(sys.stderr), console.status("Looking"):
        findings = list(examine(free))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        _show(findings)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)


def _show(findings: list[Finding]) -> None:
    colours = {"ok": "green", "warn": "yellow", "wrong": "red"}
    for finding in findings:
        console.print(
            f"[{colours[finding.state]}]{finding.state:<6}[/]{escape(f'{finding.check}: {finding.said}')}",
            highlight=False,
            soft_wrap=True,
        )
        if finding.mend:
            console.print(f"      -> {escape(finding.mend)}", highlight=False, soft_wrap=True)
    counted = {state: sum(finding.state == state for finding in findings) for state in colours}
    console.print(f"{counted['ok']} ok, {counted['warn']} to know, {counted['wrong']} wrong")


@app.command()
def backup(folder: Annotated[Path, typer.Argument(help="A new folder; as secret as the database")]) -> None:
    """Save both databases of the embedded stack, also while Airflow runs; releases are files, and not in it."""
    from include.local.backup import make_backup

    with console.status("Saving"):
        make_backup(_embedded_settings(), folder.absolute())
    console.print(f"Saved in {folder}", soft_wrap=True)


@app.command()
def restore(folder: Annotated[Path, typer.Argument(help="What ./sift backup wrote")]) -> None:
    """Make the databases of a new SIFT_HOME from a backup."""
    from include.local.backup import restore_backup

    settings = _embedded_settings()
    with console.status("Restoring"):
        restore_backup(settings, folder.absolute())
    console.print(f"Restored to {settings.home}. Start it with ./sift up", soft_wrap=True)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open psql on the warehouse; arguments go to psql. Starts PostgreSQL for the call when it is down."""
    from include.local.postgres import require_cluster, running_postgres
    from include.local.stack import read_state

    settings = _embedded_settings()
    home = settings.home

    def run(program: Path, conninfo: str) -> int:
        return subprocess.run([str(program), conninfo, *context.args], check=False).returncode

    if state := read_state(home):
        code = run(Path(state.psql), state.conninfo)
    else:
        with running_postgres(require_cluster(home), home / "logs" / "postgres.log") as server:
            code = run(server.bin_dir / "psql", server.conninfo("sift"))
    raise typer.Exit(code)


@app.command()
def releases() -> None:
    """List the releases in the local folder, and what was published elsewhere, newest first."""
    settings = _embedded_settings()
    local = _local_releases(settings.releases_dir)
    console.print(local if local.row_count else f"No release in {settings.releases_dir} yet")
    with _warehouse(settings.home) as warehouse:
        elsewhere = _published_elsewhere(warehouse) if warehouse else None
    if elsewhere and elsewhere.row_count:
        console.print(elsewhere)


def _table_of_releases(title: str, *columns: str) -> Table:
    """A table that folds what is too long for the terminal, but never a release's id: people copy it."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column == "release", overflow="fold")
    return table


def _local_releases(folder: Path) -> Table:
    from include.publish.manifest import read_manifest
    from include.publish.promotion import size
    from include.publish.release import LATEST, awaits_review, promoted_releases, unpromoted

    latest = (folder / LATEST).resolve()
    waiting = {
        path: "awaits approval" if awaits_review(path) else "not promoted" for path in unpromoted(folder).values()
    }
    table = _table_of_releases("Local", "release", "made", "rows", "size", "sources", "model", "")
    manifests = {path: read_manifest(path) for path in {*promoted_releases(folder), *waiting}}
    for path, manifest in sorted(manifests.items(), key=lambda item: item[1].release_id, reverse=True):
        table.add_row(
            manifest.release_id,
            f"{manifest.created_at:%Y-%m-%d %H:%M}",
            str(sum(source.rows for source in manifest.sources.values())),
            size(sum(file.bytes for file in manifest.files)),
            ", ".join(manifest.sources),
            str(manifest.generator.get("model", "none")),
            waiting.get(path, "latest" if path.resolve() == latest else ""),
        )
    return table


def _published_elsewhere(warehouse: Warehouse) -> Table:
    from include.publish.promotion import size
    from include.publish.targets import LOCAL
    from include.storage.releases import list_releases

    table = _table_of_releases("Elsewhere", "target", "release", "made", "rows", "size", "where")
    for row in list_releases(warehouse):
        if row["target"] != LOCAL:
            made = f"{row['created_at'].astimezone(UTC):%Y-%m-%d %H:%M}"
            table.add_row(
                row["target"], row["release_id"], made, str(row["total_rows"]), size(row["bytes"]), row["uri"]
            )
    return table


@contextmanager
def _warehouse(home: Path) -> Iterator[Warehouse | None]:
    """The warehouse; PostgreSQL is started for the time when it is down. None if there is none yet."""
    from include.local.postgres import running_postgres
    from include.local.stack import read_state
    from include.storage.warehouse import Warehouse

    if state := read_state(home):
        yield Warehouse(state.conninfo)
    elif (home / "postgres").is_dir():
        with running_postgres(home / "postgres", home / "logs" / "postgres.log") as server:
            yield Warehouse(server.conninfo("sift"))
    else:
        yield None


@app.command()
def secrets(
    gpus: Annotated[
        int | None, typer.Option(help="GPUs that generate: 0, 1, 2, 4 or 8", show_default="those of this machine")
    ] = None,
    file: Annotated[Path, typer.Option(help="File to write", show_default="beside docker-compose.yaml")] = (
        PROJECT_ROOT / ".env"
    ),
) -> None:
    """Make the secrets of a deployment that the file lacks; nothing that is there changes, no value is shown."""
    from include.deployment.secrets import write_secrets

    written = write_secrets(file, gpus)
    if written.closed:
        console.print(f"{file} could be read by others; now only you can", highlight=False, soft_wrap=True)
    if written.names:
        console.print(f"Added to {file}: {', '.join(written.names)}", highlight=False, soft_wrap=True)
    else:
        console.print(f"{file} lacks nothing", highlight=False, soft_wrap=True)
    console.print(f"The password of the user admin: grep ^ADMIN_PASSWORD= {file}", highlight=False, soft_wrap=True)


@app.command()
def prepare() -> None:
    """Make a deployment's PostgreSQL ready: databases, users, tables, the pool gpu, the user admin."""
    import logging

    from include.deployment.prepare import prepare as prepare_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    prepare_server()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def test(context: typer.Context) -> None:
    """Run the test suite; arguments go to pytest."""
    # Two files at once: half of the time tests wait for Airflow. What is chosen by hand has the machine to itself.
    arguments = context.args or ["--numprocesses=2", "--dist=loadfile"]
    raise typer.Exit(
        subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=PROJECT_ROOT, check=False).returncode
    )


@app.command()
def lint() -> None:
    """Check style, formatting and types, as CI does."""
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        console.print(f"[bold]{' '.join(command)}[/bold]")
        if code := subprocess.run([sys.executable, "-m", *command], cwd=PROJECT_ROOT, check=False).returncode:
            raise typer.Exit(code)


@app.command(
    "new-source", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)
def new_source(context: typer.Context) -> None:
    """Scaffold a source from a corpus: its recipe and its fixture."""
    _embedded_settings()
    _run_tool("new_source", *context.args)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def docs(context: typer.Context) -> None:
    """Write the generated documents, docs/SOURCES.md, docs/QUALITY.md and docs/DAGS.md; --check only compares them."""
    _run_tool("generate_docs", *context.args)


def _run_tool(name: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"tools.{name}", *arguments]
    raise typer.Exit(subprocess.run(command, cwd=PROJECT_ROOT, check=False).returncode)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="For example parse; none lists them")] = None,
) -> None:
    """Run a benchmark: prints a table and writes .sift/bench/<name>.json; further arguments go to it."""
    found = [file.stem for file in sorted((PROJECT_ROOT / "benchmarks").glob("[!_]*.py"))]
    if name is None:
        console.print("\n".join(found))
        return
    if name not in found:
        raise ValueError(f"there is no benchmark {name}; there are {', '.join(found)}")
    _embedded_settings()
    command = [sys.executable, "-m", f"benchmarks.{name}", *context.args]
    raise typer.Exit(subprocess.run(command, cwd=PROJECT_ROOT, check=False).returncode)


def main() -> None:
    """Run a command; an error that a user can mend ends in one message and exit status 1, not in a traceback."""
    try:
        app(prog_name="./sift")
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("SIFT_TRACEBACK"):
            raise
        said = str(error)
        settings = Settings.__name__
        if isinstance(error, SettingsError) or (isinstance(error, ValidationError) and error.title == settings):
            said = "; ".join(describe_refused(error))
        Console(stderr=True).print(f"[red]sift:[/red] {escape(said)}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
