"""How long the DAG files take to parse, beyond importing Airflow itself (DESIGN.md: at most 1 s for all of dags/).

Each figure is the median of several fresh processes; a process that only imports what every DAG file needs of Airflow
is the baseline. Writes .sift/bench/parse.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks._report import ROOT, report

RUNS = 5
UNWANTED = ("torch", "transformers", "datasets", "pandas", "huggingface_hub")

# Prints seconds and the unwanted modules that are loaded.
PROBE = """
import json, runpy, sys, time
import airflow.sdk
from airflow.sdk import AssetAny, AssetOrTimeSchedule, CronTriggerTimetable, ExceptionRetryPolicy, Param, dag, task
# Making one DAG loads what Airflow itself loads late.
@dag(schedule=CronTriggerTimetable("0 0 * * *", timezone="UTC"))
def warm():
    @task
    def nothing(): ...
    nothing()
warm()
before, started = set(sys.modules), time.perf_counter()
for path in sys.argv[1:]:
    runpy.run_path(path)
seconds = time.perf_counter() - started
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "loaded": sorted(loaded)}))
"""


def probe(*paths: Path) -> dict[str, object]:
    """Parse the files in a fresh process."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, paths)], env=env, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> int:
    """Measure, print a table, write the JSON; exit status 1 when a heavy library is loaded."""
    files = sorted((ROOT / "dags").glob("*.py"))
    rows: dict[str, float] = {}
    loaded: set[str] = set()
    for name, paths in (*((file.stem, (file,)) for file in files), ("all", tuple(files))):
        runs = [probe(*paths) for _ in range(RUNS)]
        rows[name] = statistics.median(float(run["seconds"]) for run in runs)
        loaded |= {module for run in runs for module in run["loaded"] if module in UNWANTED}
    if loaded:
        print(f"heavy libraries loaded: {', '.join(sorted(loaded))}")
    figures = {"seconds": rows.pop("all"), **{f"{name}_seconds": value for name, value in rows.items()}}
    report("parse", {**figures, "heavy_libraries": len(loaded)}, {"seconds": "<= 1", "heavy_libraries": "0"})
    return 1 if loaded else 0


if __name__ == "__main__":
    raise SystemExit(main())
