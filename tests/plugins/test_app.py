"""The console's pages on a real warehouse; who may see them is tested with a real Airflow in test_access.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import HTTPException
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from include.generate import plan_run
from include.modes import MODES
from include.settings import Settings
from include.storage.releases import record_release
from include.storage.warehouse import Warehouse
from plugins.console.app import SECURITY_HEADERS, create_console
from tests.filled import FAULTS
from tests.include.publish.steps import EVERYTHING, default_target

PAGES = (
    "/",
    "/coverage",
    "/samples",
    "/labels",
    "/quality",
    "/releases",
    "/run?dag_id=generate_and_publish&run_id=run-1",
)
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</blockquote></main><svg/onload=alert(1)>",
    "{{ 7*7 }} {% raw %} ${7*7} #{7*7}",
    "javascript:alert(1) &lt;b&gt; &#60;b&#62;",
    "\u202egnp.exe\u202c \u2066\u200b",
    "x" * 300_000,
)


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def parse(html: str) -> Tags:
    page = Tags()
    page.feed(html)
    return page


@pytest.fixture
def settings(make_settings: Callable[..., Settings]) -> Settings:
    return make_settings(**FAULTS)


@pytest.fixture
def client(filled: Warehouse, settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_console(lambda: filled, lambda: settings, lambda: None)) as client:
        yield client


def text_of(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return re.sub(r"\s+", " ", parse(answer.text).text)


def execute(warehouse: Warehouse, query: str, params: Any = None) -> list[dict[str, Any]]:
    with warehouse.connection() as connection:
        cursor = connection.execute(query, params)
        return cursor.fetchall() if cursor.description else []


def test_every_route_asks_whether_the_user_may_read(filled: Warehouse, settings: Settings) -> None:
    def nobody() -> None:
        raise HTTPException(403, "no")

    app = create_console(lambda: pytest.fail("read without permission"), lambda: settings, nobody)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) >= 9
    with TestClient(app) as client:
        for route in routes:
            assert route.methods == {"GET"}
            answer = client.get(route.path, params={"sample_id": "meld/x", "dag_id": "x", "run_id": "x"})
            assert answer.status_code == 403, route.path
            assert "You may not see this" in answer.text


@pytest.mark.parametrize(
    "path", [*PAGES, "/nosuch", "/samples?emotion=zz", "/static/console.css", "/static/console.js"]
)
def test_every_answer_has_the_security_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert {name: headers.get(name) for name in SECURITY_HEADERS if name != "Cache-Control"} == {
        name: value for name, value in SECURITY_HEADERS.items() if name != "Cache-Control"
    }
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert headers["Cache-Control"] == ("no-store" if "static" not in path else "public, max-age=31536000, immutable")


@pytest.mark.parametrize("path", PAGES)
def test_pages_keep_their_own_policy_and_have_landmarks(client: TestClient, path: str) -> None:
    tags = parse(client.get(path).text).tags
    names = [tag for tag, _ in tags]
    assert names.count("main") == names.count("h1") == names.count("title") == 1 and "nav" in names
    for tag, attributes in tags:
        assert tag != "style" and "style" not in attributes, attributes
        assert not any(name.startswith("on") for name in attributes), attributes
        assert tag != "script" or attributes["src"].startswith("/static/")
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "/").startswith(("/", "#")), attributes  # nowhere else
        if tag in ("svg", "audio", "progress"):
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true", attributes
        if tag == "nav":
            assert attributes.get("aria-label")
    labelled = {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes}
    assert labelled <= {attributes["id"] for _, attributes in tags if "id" in attributes}


def test_coverage_shows_counts_loads_shards_and_ways_on(client: TestClient, filled: Warehouse) -> None:
    text = text_of(client, "/coverage")
    accepted = execute(filled, "select count(*) as n from generation.responses")[0]["n"]
    assert f"Prompts 150 Accepted {accepted} " in text
    assert "by the last load or run" in text and "RAVDESS" in text and "Not staged yet" in text
    assert "sift_s 1 of 1" in text and "done" in text
    page = client.get("/coverage").text
    assert 'href="/samples?source=meld&amp;mode=sift_s&amp;verdict=accepted"' in page
    assert 'href="/dags/ingest_meld" data-shell' in page


def test_coverage_names_what_to_trigger_while_something_is_pending(
    client: TestClient, filled: Warehouse, settings: Settings
) -> None:
    assert "Generate what is missing" not in text_of(client, "/coverage")
    plan_run(filled, settings.model_copy(update={"frozen_date": "2027-01-01"}), EVERYTHING, default_target(settings))
    page = parse(client.get("/coverage").text)
    assert "Generate what is missing" in page.text
    (title,) = {
        attributes["title"].removeprefix("Trigger with ")
        for tag, attributes in page.tags
        if tag == "a" and "meld" in (attributes.get("title") or "")
    }
    assert json.loads(title) == {"sources": ["meld"], "modes": list(MODES)}


def test_an_empty_warehouse_has_pages_too(warehouse: Warehouse, settings: Settings) -> None:
    with TestClient(create_console(lambda: warehouse, lambda: settings, lambda: None)) as client:
        for path in PAGES:
            assert client.get(path).status_code == 200, path
        assert "No sample is such a one" in text_of(client, "/samples")
        assert "There is no release yet" in text_of(client, "/releases")


def test_filters_stay_in_every_link(client: TestClient) -> None:
    query = "source=meld&mode=sift_s&verdict=accepted&q=the"
    page = parse(client.get(f"/samples?{query}").text)
    links = [
        attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes.get("class") == "transcript"
    ]
    assert links
    for link in links:
        assert all(part in link for part in query.split("&"))
    selected = [
        attributes.get("value") for tag, attributes in page.tags if tag == "option" and "selected" in attributes
    ]
    assert selected == ["meld", "sift_s", "accepted"]
    inside = parse(client.get(links[0]).text)
    assert f"/samples?{query}" in {
        attributes["href"]
        for tag, attributes in inside.tags
        if tag == "a" and attributes["href"].startswith("/samples?")
    }


def test_pages_of_samples_lead_forth_and_back(client: TestClient) -> None:
    seen: list[str] = []
    path = "/samples?source="
    while path:
        page = parse(client.get(path).text)
        seen += [attributes["data-audio"] for tag, attributes in page.tags if "data-audio" in attributes]
        links = {attributes.get("rel"): attributes["href"] for tag, attributes in page.tags if tag == "a"}
        path = links.get("next")
    assert len(seen) == len(set(seen)) == 50
    back = parse(client.get(links["prev"]).text)
    assert [attributes["data-audio"] for _, attributes in back.tags if "data-audio" in attributes] == seen[:25]
    assert "prev" not in {attributes.get("rel") for tag, attributes in back.tags if tag == "a"}


def test_a_sample_shows_labels_prompts_rules_and_attempts(client: TestClient, filled: Warehouse) -> None:
    rejected = execute(
        filled,
        "select a.* from generation.attempts a "
        "join generation.responses r using (source, sample_id, mode, prompt_hash) "
        "join staging.samples s using (source, sample_id) "
        "where a.verdict = 'refusal' and s.emotion is not null order by a.sample_id limit 1",
    )[0]
    sample = execute(filled, "select * from staging.samples where sample_id = %s", [rejected["sample_id"]])[0]
    text = text_of(client, f"/sample?sample_id={quote(rejected['sample_id'])}")
    assert sample["text"] in text
    assert f"{sample['raw']['emotion']} {sample['emotion']}" in text
    assert f"<text>{sample['text']}</text></audio>" in text  # the user message, as it is sent
    assert MODES[rejected["mode"]].system_prompt[:60].split("\n")[0] in text
    assert re.sub(r"\s+", " ", rejected["response"])[:60] in text and "1 earlier attempt" in text
    assert "✓ refusal" in text and "0 of" in text


def test_a_rule_that_only_warns_is_no_broken_one(filled: Warehouse, settings: Settings) -> None:
    row = execute(
        filled, "select * from generation.attempts where verdict = 'refusal' order by sample_id, attempt limit 1"
    )[0]
    execute(
        filled,
        "update generation.responses set response = %(response)s "
        "where (source, sample_id, mode) = (%(source)s, %(sample_id)s, %(mode)s)",
        row,
    )
    path = f"/sample?sample_id={quote(row['sample_id'])}"
    for severity, said in (("reject", r"Rules: 1 of \d+ broken\b"), ("warn", r"Rules: 0 of \d+ broken, 1 warning\b")):
        of_rule = settings.model_copy(update={"rule_severities": {"refusal": severity}})
        with TestClient(create_console(lambda: filled, lambda of=of_rule: of, lambda: None)) as client:
            assert re.search(said, text_of(client, path)), severity


def test_given_up_samples_say_which_rules_their_attempts_broke(client: TestClient, filled: Warehouse) -> None:
    row = execute(filled, "select * from generation.work where not accepted and tries >= 2 limit 1")[0]
    text = text_of(client, f"/sample?sample_id={quote(row['sample_id'])}")
    assert "Given up: every attempt broke a rule." in text and "✗" in text and "2 earlier attempts" in text


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_text_of_corpora_and_models_is_data(client: TestClient, filled: Warehouse, hostile: str) -> None:
    sample_id = execute(filled, "select sample_id from staging.samples where source = 'ravdess' order by 1 limit 1")[0][
        "sample_id"
    ]
    paths = ["/samples?source=ravdess", f"/sample?sample_id={quote(sample_id)}", "/labels?source=ravdess", "/quality"]
    paths += ["/coverage", "/releases", "/run?dag_id=generate_and_publish&run_id=run-1"]
    before = {path: {tag for tag, _ in parse(client.get(path).text).tags} for path in paths}
    values = {"hostile": hostile, "id": sample_id}
    for query in (
        "update staging.samples set text = %(hostile)s, accent = %(hostile)s, emotion = %(hostile)s, "
        "speaker = %(hostile)s, raw = jsonb_build_object('emotion', %(hostile)s::text) where sample_id = %(id)s",
        "update generation.responses set response = %(hostile)s, engine = %(hostile)s where sample_id = %(id)s",
        "update generation.attempts set response = %(hostile)s where sample_id = %(id)s",
        "update staging.label_counts set raw_value = left(%(hostile)s, 100), value = left(%(hostile)s, 100) "
        "where source = 'ravdess' and value <> '(others)'",
        "update generation.runs set device = %(hostile)s",
    ):
        if len(hostile) > 2000 and "staging.samples" in query:
            query = query.replace("emotion = %(hostile)s, ", "")  # an index entry has at most 2.7 kB
        execute(filled, query, values)
    # Row hashes are what they were: only the texts are others, as a corpus or a model might have written them.
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert len(answer.content) < 600_000
        page = parse(answer.text)
        new = {tag for tag, _ in page.tags} - before[path] - {"li", "small", "br", "option"}
        assert not new, (path, new)
        for tag, attributes in page.tags:
            assert not any(name.startswith("on") for name in attributes), (path, tag, attributes)
            assert tag not in ("img", "iframe", "object", "embed", "form") or attributes.get("role") == "search"
            assert "alert(1)" not in (attributes.get("href") or "") + (attributes.get("src") or "")
        assert "49 {" not in page.text  # no template was evaluated
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b]", answer.text)
    shown = parse(client.get(paths[1]).text).text
    assert hostile[:40].split("\u202e")[0] in shown


@pytest.mark.parametrize(
    "path",
    [
        "/samples?emotion=<script>",
        "/samples?source=x",
        "/samples?verdict=zz",
        "/samples?q=%00",
        f"/samples?q={'x' * 201}",
        "/sample",
        "/sample?sample_id=%00",
        "/audio",
        "/run?dag_id=x",
    ],
)
def test_bad_queries_are_named_not_guessed(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert "<script>" not in answer.text.partition("<main")[2]


@pytest.mark.parametrize("sample_id", ["meld/nosuch", "nosuch/x", "../../etc/passwd", "meld/../../x"])
def test_what_is_not_there_is_not_found(client: TestClient, sample_id: str) -> None:
    for page in ("sample", "audio"):
        assert client.get(f"/{page}?sample_id={quote(sample_id)}").status_code == 404


def test_clips_are_the_corpus_s_bytes_whole_and_in_ranges(client: TestClient, filled: Warehouse) -> None:
    kinds = {}
    for source in ("ravdess", "meld", "commonvoice"):
        sample_id = execute(filled, "select sample_id from staging.samples where source = %s limit 1", [source])[0]
        path = f"/audio?sample_id={quote(sample_id['sample_id'])}"
        whole = client.get(path)
        assert whole.status_code == 200 and len(whole.content) > 1000
        part = client.get(path, headers={"Range": "bytes=100-199"})
        assert (part.status_code, part.content) == (206, whole.content[100:200])
        assert whole.headers["X-Content-Type-Options"] == "nosniff"
        kinds[source] = whole.headers["content-type"]
    assert set(kinds.values()) <= {"audio/wav", "audio/flac", "audio/mpeg"}


def test_audio_of_a_changed_file_is_refused(client: TestClient, filled: Warehouse) -> None:
    execute(filled, "update staging.samples set blob_id = 'other' where source = 'meld'")
    sample_id = execute(filled, "select sample_id from staging.samples where source = 'meld' limit 1")[0]["sample_id"]
    assert "changed since it was staged" in text_of(client, f"/audio?sample_id={quote(sample_id)}", status=409)


@pytest.mark.parametrize("audio_file", ["../../../../../../etc/passwd", "/etc/passwd", "data/nosuch.parquet"])
def test_audio_comes_from_the_corpus_s_folder_alone(client: TestClient, filled: Warehouse, audio_file: str) -> None:
    execute(filled, "update staging.samples set audio_file = %s where source = 'meld'", [audio_file])
    sample_id = execute(filled, "select sample_id from staging.samples where source = 'meld' limit 1")[0]["sample_id"]
    answer = client.get(f"/audio?sample_id={quote(sample_id)}")
    assert answer.status_code == 409 and "root:" not in answer.text


def test_labels_show_both_sides_and_thresholds(client: TestClient, filled: Warehouse) -> None:
    execute(filled, "insert into staging.unmapped_labels values ('ravdess', 'emotion', 'bemused', 3, 'x')")
    text = text_of(client, "/labels?source=ravdess")
    assert "fearful fear" in text and "Unmapped labels" in text and "bemused" in text
    page = client.get("/labels?source=ravdess").text
    assert "histogram with the thresholds 6.0 and 9.0 phonetic symbols per second" in page
    assert "histogram with the thresholds -16.4 and -10.0 dB" in page


def test_quality_shows_rules_by_source_and_measures(client: TestClient) -> None:
    text = text_of(client, "/quality")
    assert "Verdicts by rule and source" in text and "refusal" in text and "Same opening" in text
    assert "Same opening" not in text_of(client, "/quality?source=meld")


def release(release_id: str, day: int, sources: dict[str, Any], **manifest: Any) -> dict[str, Any]:
    """A row of publish.releases."""
    return {
        "release_id": release_id,
        "created_at": datetime(2026, 1, day, tzinfo=UTC),
        "target": "local",
        "uri": f"/releases/{release_id}",
        "commit": None,
        "rows": {},
        "manifest": {"sources": sources, **manifest},
    }


def test_releases_show_sizes_licences_gates_and_changes(client: TestClient, filled: Warehouse) -> None:
    file = {"path": "data/x.parquet", "rows": 3, "bytes": 3 << 20, "sha256": "0" * 64}
    # Manifests as they were at first, files in the part itself, and as they are with held-out splits and gates.
    part = {
        "revision": "a" * 40,
        "licence": "GPL-3.0",
        "redistributable": False,
        "modes": {"sift_s": "1"},
        "rows_by_mode": {"sift_s": 10},
        "clips": 10,
        "left_out": {"given up": 2},
        "files": [file],
    }
    split = {
        "revision": "b" * 40,
        "licence": "GPL-3.0",
        "redistributable": True,
        "modes": {"sift_s": "2"},
        "left_out": {},
        "splits": {
            "train": {"rows_by_mode": {"sift_s": 12}, "clips": 12, "files": [file]},
            "heldout": {"rows_by_mode": {"sift_s": 3}, "clips": 3, "files": [file]},
        },
    }
    gates = [{"name": "no empty response", "measured": "0", "limit": "0", "passed": True}]
    record_release(filled, release("first", 1, {"meld": part, "ravdess": part}, generator={"model": "small"}))
    record_release(filled, release("second", 2, {"meld": split}, generator={"model": "large"}, gates=gates))
    text = text_of(client, "/releases")
    assert text.index("second") < text.index("first")
    assert "Rows 15 Clips 15 Size 6.0 MiB 2 files Left out 0" in text and "3 held out" in text
    assert "Rows 20 Clips 20 Size 6.0 MiB 2 files Left out 4" in text
    assert "not cleared for redistribution: meld, ravdess" in text and "GPL-3.0" in text
    assert "Gates: 1 of 1 passed" in text
    assert "ravdess is no longer there (10 rows)" in text
    assert f"meld: +5 rows, revision {'a' * 12} to {'b' * 12}, sift_s written anew by another prompt or model" in text
    assert "generator's model: small to large" in text


def test_a_manifest_of_another_time_is_shown_as_far_as_it_goes(client: TestClient, filled: Warehouse) -> None:
    record_release(filled, release("odd", 1, {"meld": {}}))
    assert "odd" in text_of(client, "/releases")


def test_a_run_s_tab_shows_what_it_did(client: TestClient) -> None:
    text = text_of(client, "/run?dag_id=generate_and_publish&run_id=run-1")
    assert "sift_ssp 1 of 1" in text and "refusal" in text
    assert "18 rows" in text_of(client, "/run?dag_id=ingest_meld&run_id=ingest-1")
    assert "merged nothing" in text_of(client, "/run?dag_id=ingest_meld&run_id=nosuch")
    assert "ingest DAGs" in text_of(client, "/run?dag_id=somebody_else_s&run_id=x")


def test_links_and_assets_stand_below_the_prefix(filled: Warehouse, settings: Settings) -> None:
    app = create_console(lambda: filled, lambda: settings, lambda: None)
    with TestClient(app, root_path="/airflow/sift") as client:
        tags = parse(client.get("/coverage").text).tags
    links = {attributes[name] for _, attributes in tags for name in ("href", "src", "action") if name in attributes}
    assert "/airflow/sift/samples" in links and "/airflow/dags/ingest_meld" in links
    assert all(link.startswith(("/airflow/", "#")) for link in links)


def test_a_warehouse_that_is_away_is_an_answer_too(settings: Settings) -> None:
    app = create_console(lambda: Warehouse("host=/nosuch dbname=x connect_timeout=1"), lambda: settings, lambda: None)
    with TestClient(app) as client:
        assert "cannot be read just now" in text_of(client, "/coverage", status=503)
