"""Who may see the console, asked of a real Airflow API server: users of its own, no all-admins, below a path prefix."""

from __future__ import annotations

import httpx
import pytest

from tests.plugins.conftest import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

PATHS = (
    "/",
    "/coverage",
    "/samples",
    "/sample?sample_id=x",
    "/audio?sample_id=x",
    "/labels",
    "/quality",
    "/releases",
    "/run?dag_id=generate_and_publish&run_id=x",
)


def get(server: str, path: str, token: str | None = None, *, cookie: str | None = None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.get(
        f"{server}/sift{path}", headers=headers, cookies={"_token": cookie} if cookie else None, timeout=30
    )


@pytest.mark.parametrize("path", PATHS)
def test_without_a_user_nothing_is_shown(server: str, path: str) -> None:
    answer = get(server, path)
    assert answer.status_code == 401
    assert "You are not signed in" in answer.text and f'href="{PREFIX}/auth/login"' in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", PATHS)
def test_without_the_right_to_read_the_dag_nothing_is_shown(server: str, tokens: dict[str, str], path: str) -> None:
    for answer in (get(server, path, tokens["nobody"]), get(server, path, cookie=tokens["nobody"])):
        assert answer.status_code == 403 and "You may not see this" in answer.text


@pytest.mark.parametrize("name", ["ada", "una", "vic"])
def test_who_may_read_the_dag_sees_all_pages_by_token_and_by_cookie(
    server: str, tokens: dict[str, str], name: str
) -> None:
    for path in PATHS:
        wanted = 404 if "sample_id=x" in path else 200
        assert get(server, path, tokens[name]).status_code == wanted, path
        assert get(server, path, cookie=tokens[name]).status_code == wanted, path


def test_forged_and_foreign_tokens_are_refused(server: str, tokens: dict[str, str]) -> None:
    header, payload, signature = tokens["vic"].split(".")
    forged = f"{header}.{payload}.{signature[:-4]}AAAA"
    for token in ("x", forged, f"{header}.{payload}."):
        assert get(server, "/coverage", token).status_code in (401, 403)
        assert get(server, "/coverage", cookie=token).status_code in (401, 403)


def test_a_token_that_is_given_wins_over_the_cookie(server: str, tokens: dict[str, str]) -> None:
    assert get(server, "/coverage", tokens["nobody"], cookie=tokens["ada"]).status_code == 403


def test_a_query_cannot_choose_what_is_asked_for(server: str, tokens: dict[str, str]) -> None:
    for query in ("dag_id=~", "dag_id=ingest_meld", "dag_id=generate_and_publish&dag_id=x"):
        assert get(server, f"/coverage?{query}", tokens["nobody"]).status_code == 403
        assert get(server, f"/coverage?{query}").status_code == 401


def test_clips_are_played_by_cookie_and_need_it(server: str, tokens: dict[str, str]) -> None:
    listed = get(server, "/samples?source=ravdess", tokens["vic"]).text
    path = listed.partition('data-audio="')[2].partition('"')[0].removeprefix(f"{PREFIX}/sift")
    assert path.startswith("/audio?sample_id=ravdess")
    assert get(server, path).status_code == 401
    assert get(server, path, cookie=tokens["nobody"]).status_code == 403
    answer = get(server, path, cookie=tokens["vic"])
    assert answer.status_code == 200 and answer.content[:4] == b"RIFF" and "no-store" in answer.headers["cache-control"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_sent(server: str, tokens: dict[str, str], method: str) -> None:
    headers = {"Authorization": f"Bearer {tokens['ada']}"}
    for path in PATHS:
        assert httpx.request(method, f"{server}/sift{path}", headers=headers).status_code == 405


def test_the_style_sheet_and_the_script_are_all_that_is_open(server: str) -> None:
    for name, kind in (("console.css", "text/css"), ("console.js", "javascript")):
        answer = get(server, f"/static/{name}")
        assert answer.status_code == 200 and kind in answer.headers["content-type"]
    for name in ("../app.py", "..%2fapp.py", "%2e%2e/app.py", ""):
        assert get(server, f"/static/{name}").status_code in (401, 404)
    for name in ("/docs", "/openapi.json", "/redoc"):
        assert get(server, name).status_code == 404


def test_links_and_entries_keep_the_prefix(server: str, tokens: dict[str, str]) -> None:
    page = get(server, "/coverage", tokens["vic"]).text
    assert f'href="{PREFIX}/sift/samples"' in page and f'href="{PREFIX}/dags/ingest_meld"' in page
    assert f'src="{PREFIX}/sift/static/console.js' in page
    headers = {"Authorization": f"Bearer {tokens['ada']}"}
    assert httpx.get(f"{server}/api/v2/plugins/importErrors", headers=headers).json()["import_errors"] == []
    (plugin,) = [
        plugin
        for plugin in httpx.get(f"{server}/api/v2/plugins", headers=headers).json()["plugins"]
        if plugin["name"] == "sift_console"
    ]
    assert [view["href"] for view in plugin["external_views"]] == [
        f"{PREFIX}/sift/coverage",
        f"{PREFIX}/sift/run?dag_id={{DAG_ID}}&run_id={{RUN_ID}}",
    ]
