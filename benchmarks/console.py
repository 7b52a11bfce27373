"""Every page of the console on a warehouse of 1 M samples and 3 M responses.

A fresh embedded PostgreSQL is filled by SQL with rows of the right size and distribution, and counted as loads and runs
count. Then each page is asked for as a browser asks, and parsed requests, queries and rendering are timed together. The
first request of a page finds nothing prepared by an earlier one; the median is over five. `--keep DIR` leaves the
database, for a look at plans.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from benchmarks._report import report
from include.ingest import count_samples
from include.local.postgres import running_postgres
from include.modes import MODES
from include.settings import Settings
from include.sources import RECIPES
from include.storage.console import count_coverage, keep_verdicts
from include.storage.generation import save_quality, verdicts_by_source
from include.storage.releases import record_release
from include.storage.warehouse import Warehouse
from plugins.console.app import create_console

SAMPLES = {
    "commonvoice": 0.60,
    "podcast": 0.20,
    "esd": 0.08,
    "meld": 0.05,
    "crema_d": 0.04,
    "tess": 0.02,
    "ravdess": 0.007,
    "savee": 0.003,
}
"""Share of each source."""
RUNS = 20
# A word's rank is skewed: the eight most frequent ones make half of any text, most of the 20,000 are rare.
SAMPLE_ROWS = """
insert into staging.samples (
    source, sample_id, split, text, language, emotion, gender, age, pace, volume, accent, speaker, duration, raw,
    audio_file, audio_row_group, audio_row, blob_id, revision, row_hash
)
select %(source)s, %(source)s || '/clip_' || lpad(n::text, 8, '0') || '.wav', 'train',
    (
        select string_agg(
            case when rank < 8 then (array['the', 'and', 'of', 'to', 'in', 'was', 'her', 'that'])[rank + 1]
                else 'w' || rank end, ' '
        )
        from (
            select floor(power((hashint8(n * 16 + k) & 2147483647) / 2147483648.0, 11) * 20000)::int as rank
            from generate_series(1, 9) as k
        ) as picks
    ),
    'en',
    (array['angry', 'happy', 'sad', 'surprise', 'neutral', 'fear', 'disgust', null])[1 + mod(hashint8(n) & 65535, 8)],
    (array['male', 'female', null])[1 + mod(hashint8(n + 1) & 65535, 3)],
    (array['teenager', 'young adult', 'middle-age adult', 'senior', null])[1 + mod(hashint8(n + 2) & 65535, 5)],
    (array['slow', 'normal', 'fast'])[1 + mod(hashint8(n + 3) & 65535, 3)],
    (array['quiet', 'loud', null])[1 + mod(hashint8(n + 4) & 65535, 3)],
    case when mod(n, 3) = 0 then 'accent ' || mod(n, 200) end, 'speaker ' || mod(n, 5000), 3.5,
    jsonb_build_object(
        'emotion', 'raw ' || mod(n, 30), 'gender', 'm', 'age', 'twenties', 'accent', 'accent ' || mod(n, 200),
        'speaking_rate', 3 + (hashint8(n + 5) & 1023) / 100.0, 'relative_db', -30 + (hashint8(n + 6) & 255) / 10.0
    ),
    'data/train-' || n / 2000 || '.parquet', mod(n / 100, 20), mod(n, 100), md5((n / 2000)::text), repeat('a', 40),
    to_hex(hashint8(n))
from generate_series(1::bigint, %(rows)s) as n
"""
PROMPT_ROWS = """
insert into generation.prompts
select s.source, s.sample_id, m, repeat('b', 64), s.row_hash, encode(sha256((s.sample_id || m)::bytea), 'hex')
from staging.samples s, unnest(%(modes)s::text[]) as m
"""
# One prompt in a thousand is pending, two in a thousand are given up, one in twenty was answered badly at first.
RESPONSE_ROWS = """
insert into generation.responses
select p.source, p.sample_id, p.mode, p.prompt_hash,
    'Sounds like ' || repeat('some words of an answer, ', 4), 'stop', 120, 30, 1, 1, 'transformers', '2-x', 'accepted',
    now() - interval '1 day'
from generation.prompts p where mod(hashtext(p.prompt_hash) & 2147483647, 1000) > 2
"""
ATTEMPT_ROWS = """
insert into generation.attempts
select p.source, p.sample_id, p.mode, p.prompt_hash, t.attempt, 'As an AI I cannot hear that.', 'stop', 120, 30, 1,
    'transformers', '2-x',
    (array['refusal', 'empty', 'truncated', 'leaked_tag', 'copied_prompt'])[1 + least(mod(h.hash / 7, 9), 4)],
    now() - interval '1 day'
from generation.prompts p
cross join lateral (select hashtext(p.prompt_hash) & 2147483647 as hash) as h
cross join lateral generate_series(1, case when mod(h.hash, 1000) in (1, 2) then 3 else 1 end) as t (attempt)
where mod(h.hash, 1000) in (1, 2) or mod(h.hash, 20) = 5
"""
TAIL_ROWS = """
update generation.responses set created_at = now() + interval '1 second'
where source = 'podcast' and mode = 'sift_s'
"""


def fill(warehouse: Warehouse, samples: int, settings: Settings) -> dict[str, float]:
    """Make the rows, then count them as loads and runs do; the seconds that counting took."""
    started = time.monotonic()

    def step(what: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {what}", flush=True)

    with warehouse.connection() as connection:
        connection.execute("set synchronous_commit = off; set maintenance_work_mem = '256MB'; set work_mem = '128MB'")
        for source, share in SAMPLES.items():
            connection.execute("select staging.create_partition(%s)", [source])
            rows = round(samples * share)
            connection.execute(SAMPLE_ROWS, {"source": source, "rows": rows})
            load = [
                f"{source}/run/1",
                source,
                "a" * 40,
                "code",
                rows,
                rows,
                0,
                0,
                0,
                0,
                json.dumps({"empty text": 3}),
                20,
            ]
            connection.execute("insert into staging.loads values (%s,%s,%s,null,%s,%s,%s,%s,%s,%s,%s,%s,%s)", load)
        step("samples")
        connection.execute(PROMPT_ROWS, {"modes": list(MODES)})
        step("prompts")
        connection.execute(RESPONSE_ROWS)
        step("responses")
        connection.execute(ATTEMPT_ROWS)
        connection.execute(
            "insert into generation.runs (run_id, mode, shard, shards, status, device, total, accepted) "
            "select 'run-' || n, m, s, 4, 'running', 'cuda:' || s, 100000, 5000 * s "
            "from generate_series(1, 30) as n, unnest(%s::text[]) as m, generate_series(0, 3) as s",
            [list(MODES)],
        )
        connection.execute("vacuum analyze")
        step("attempts, analysed")
    figures = {}
    began = time.monotonic()
    for source in SAMPLES:
        count_samples(RECIPES[source], (), settings.max_attempts, warehouse)
    figures["count_labels_and_index_seconds"] = time.monotonic() - began
    began = time.monotonic()
    count_coverage(warehouse, list(SAMPLES), list(MODES), settings.max_attempts)
    figures["count_coverage_seconds"] = time.monotonic() - began
    step("counted")
    verdicts = verdicts_by_source(warehouse, list(SAMPLES))
    for number in range(RUNS):
        keep_verdicts(warehouse, f"run-{number}", verdicts)
        measures = (
            "words_mean",
            "words_p95",
            "duplicates",
            "same_opening",
            "distinct_1",
            "distinct_2",
            "warn_x",
            "warn_y",
        )
        for mode in MODES:
            save_quality(warehouse, f"run-{number}", mode, dict.fromkeys(measures, 0.1 + number / 100))
        record_release(warehouse, _release(number, samples))
    with warehouse.connection() as connection:
        # A run is under way: 200,000 responses are newer than the counts.
        connection.execute(TAIL_ROWS)
        connection.execute("vacuum analyze generation.responses")
    step("reports, releases, a run under way")
    return figures


def _release(number: int, samples: int) -> dict[str, Any]:
    files = [
        {"path": f"data/x/train-{n:05}.parquet", "rows": 3000, "bytes": 500 << 20, "sha256": "0" * 64}
        for n in range(60)
    ]
    sources = {
        name: {
            "fingerprint": "f",
            "revision": "a" * 40,
            "licence": RECIPES[name].licence,
            "redistributable": False,
            "modes": dict.fromkeys(MODES, "b" * 64),
            "rows_by_mode": {mode: round(samples * share) + number for mode in MODES},
            "clips": round(samples * share),
            "left_out": {"given up": 5},
            "files": files,
        }
        for name, share in SAMPLES.items()
    }
    manifest = {
        "sources": sources,
        "generator": {"model": "SmolLM3-3B", "revision": "c" * 40},
        "modes": {},
        "gates": [],
    }
    created_at = datetime.now(UTC) - timedelta(days=RUNS - number)
    release = {"release_id": f"release-{number:03}", "created_at": created_at, "target": "local", "uri": "/x"}
    return {**release, "commit": None, "rows": {}, "manifest": manifest}


def pages(samples: int) -> dict[str, str]:
    """Name -> address of what is timed."""
    middle = f"commonvoice/clip_{round(samples * SAMPLES['commonvoice'] / 2):08}.wav"
    return {
        "coverage": "/coverage",
        "samples": "/samples",
        "samples_deep": f"/samples?after={middle}",
        "samples_backwards": f"/samples?before={middle}",
        "samples_labels": "/samples?emotion=disgust&gender=female&age=senior",
        "samples_last_source": "/samples?source=tess&emotion=fear",
        "samples_common_word": "/samples?q=the",
        "samples_rare_word": "/samples?q=w19998",
        "samples_two_words": "/samples?q=the+her&emotion=sad&source=podcast",
        "samples_no_word": "/samples?q=zyzzyva",
        "samples_accepted": "/samples?verdict=accepted&mode=sit_ssp",
        "samples_pending": "/samples?verdict=pending&mode=sift_s&source=commonvoice",
        "samples_given_up": "/samples?verdict=given_up",
        "samples_rule": "/samples?verdict=copied_prompt&mode=sift_s&emotion=fear",
        "samples_rule_no_word": "/samples?verdict=refusal&q=zyzzyva",
        "sample": f"/sample?sample_id={middle}",
        "sample_filtered": f"/sample?sample_id={middle}&verdict=pending&mode=sift_s&emotion=sad",
        "labels": "/labels?source=commonvoice",
        "labels_histograms": "/labels?source=podcast",
        "quality": "/quality",
        "releases": "/releases",
        "run": "/run?dag_id=generate_and_publish&run_id=run-7",
    }


def main() -> None:
    """Fill, time every page, print a table, write the JSON."""
    parser = argparse.ArgumentParser(prog="./sift bench console")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="folder for the database, which stays; used again if it is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        settings = Settings(home=folder / "home", engine="fake", max_attempts=3)
        is_there = (folder / "data").exists()
        with running_postgres(folder / "data", folder / "postgres.log") as server:
            warehouse = Warehouse(server.conninfo("sift"))
            warehouse.migrate()
            figures = {} if is_there else fill(warehouse, arguments.samples, settings)
            figures |= measure(warehouse, settings, arguments.samples)
    reach = {name: "<= 1 s" for name in figures if not name.startswith("count")}
    report("console", figures, {**reach, "samples": "", "responses": ""})


def measure(warehouse: Warehouse, settings: Settings, samples: int) -> dict[str, float]:
    """Seconds of each page: the first request, and the median of five."""
    figures: dict[str, float] = {}
    with warehouse.connection() as connection:
        for name, query in (
            ("samples", "select count(*) as rows from staging.samples"),
            ("responses", "select count(*) as rows from generation.responses"),
        ):
            figures[name] = (connection.execute(query).fetchone() or {})["rows"]
    with TestClient(create_console(lambda: warehouse, lambda: settings, lambda: None)) as client:
        for name, path in pages(samples).items():
            seconds = []
            for _ in range(5):
                began = time.monotonic()
                answer = client.get(path)
                seconds.append(time.monotonic() - began)
                if answer.status_code != 200:
                    raise RuntimeError(f"{path} answered {answer.status_code}: {answer.text[:500]}")
            figures[f"{name}_first"] = seconds[0]
            figures[f"{name}_median"] = statistics.median(seconds)
    figures["slowest_first"] = max(value for name, value in figures.items() if name.endswith("_first"))
    return figures


if __name__ == "__main__":
    main()
