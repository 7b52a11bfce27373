"""The console as people use it: Chromium, Airflow's own login and shell, the bundled samples."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect

from include.storage.warehouse import Warehouse
from tests.conftest import SAMPLED
from tests.plugins.browsers import chromium, watched_page
from tests.plugins.conftest import PREFIX

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(300)]

TITLES = ("Coverage", "Samples", "Labels", "Quality", "Releases")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def signed_in(browser: Browser, server: str, tokens: dict[str, str]) -> dict:
    """What a browser keeps after the login of the viewer, typed into Airflow's form."""
    with watched_page(browser, server) as page:
        page.goto(f"{server}/auth/login")
        page.get_by_label("Username").fill("vic")
        page.get_by_label("Password").fill("vic-password")
        page.get_by_role("button", name=re.compile("sign in|log in", re.I)).click()
        page.wait_for_url(re.compile(rf"{PREFIX}/?$"))
        return page.context.storage_state()


@pytest.fixture
def page(browser: Browser, server: str, signed_in: dict) -> Iterator[Page]:
    with watched_page(browser, server, storage_state=signed_in, viewport={"width": 1360, "height": 860}) as page:
        yield page


def in_shell(page: Page, server: str, path: str) -> FrameLocator:
    """Open a page of the console within Airflow's shell."""
    page.goto(f"{server}/plugin/sift-data{PREFIX}/sift{path}")
    return page.frame_locator("iframe[title='SIFT data']")


def test_the_login_is_required(browser: Browser, server: str) -> None:
    context = browser.new_context()  # not watched: that its requests are refused stands in the console
    page = context.new_page()
    page.goto(f"{server}/plugin/sift-data")
    page.wait_for_url(re.compile("/auth/login"))  # Airflow's shell sends people there
    assert page.goto(f"{server}/sift/coverage").status == 401
    expect(page.get_by_role("heading", name="You are not signed in")).to_be_visible()
    expect(page.get_by_text("RAVDESS")).to_have_count(0)
    context.close()


def test_every_page_opens_in_the_shell_whose_address_follows(page: Page, server: str) -> None:
    page.goto(server)
    page.get_by_role("link", name="SIFT data").click()
    frame = page.frame_locator("iframe[title='SIFT data']")
    for title in TITLES:
        frame.get_by_role("navigation", name="Pages of the console").get_by_role("link", name=title).click()
        expect(frame.get_by_role("heading", level=1)).to_have_text(title)
        page.wait_for_url(re.compile(f"/plugin/sift-data{PREFIX}/sift/{title.lower()}"))
        # The shell may load the frame once more when its own address has changed: a look at the page must outlive that.
        page.wait_for_load_state("networkidle")
        expect(frame.get_by_role("heading", level=1)).to_have_text(title)
        assert frame.locator("html").evaluate("page => page.scrollWidth <= page.clientWidth")
    expect(frame.get_by_text("There is no release yet")).to_be_visible()


def test_a_clip_plays_from_the_list_and_on_its_page(page: Page, server: str) -> None:
    frame = in_shell(page, server, "/samples?source=ravdess")
    frame.locator("button.play").first.click()
    audio = frame.locator("audio")
    expect(frame.locator("button.play").first).to_have_attribute("aria-pressed", "true")
    audio.evaluate("a => new Promise(done => { a.ontimeupdate = () => { if (a.currentTime > 0.2) done(); }; })")
    frame.locator("button.play").nth(1).click()  # one clip at a time
    expect(frame.locator("button.play[aria-pressed=true]")).to_have_count(1)
    frame.locator("a.transcript").first.click()
    expect(frame.get_by_role("heading", level=1)).to_contain_text("ravdess/")
    audio = frame.locator("audio#audio")
    frame.get_by_role("heading", level=1).click()
    page.keyboard.press("p")
    audio.evaluate("a => new Promise(done => { a.ontimeupdate = () => { if (a.currentTime > 0.2) done(); }; })")
    page.keyboard.press("p")
    assert audio.evaluate("a => a.paused && a.duration > 0.5 && !a.error")


def test_a_clip_can_be_searched_within_by_ranges(page: Page, server: str) -> None:
    ranges = []
    page.on("response", lambda answer: ranges.append(answer.status) if "/audio?" in answer.url else None)
    frame = in_shell(page, server, "/sample?sample_id=ravdess/03-01-06-01-11-01-09.wav")
    audio = frame.locator("audio#audio")
    audio.evaluate("a => new Promise(done => a.readyState ? done() : a.onloadedmetadata = done)")
    audio.evaluate("a => new Promise(done => { a.onseeked = done; a.currentTime = a.duration - 0.3; })")
    assert audio.evaluate("a => a.duration - a.currentTime < 0.4")
    assert ranges and set(ranges) == {206}


def test_filters_narrow_stay_in_the_address_and_survive_a_reload(page: Page, server: str) -> None:
    frame = in_shell(page, server, "/samples")
    frame.locator("select[name=source]").select_option("meld")
    frame.locator("select[name=emotion]").select_option("happy")
    frame.get_by_role("button", name="Search").click()
    rows = frame.locator("table.samples tbody tr")
    expect(rows.first).to_contain_text("meld/")
    page.wait_for_url(re.compile(r"samples\?source=meld&emotion=happy$"))  # blanks are left out
    number = rows.count()
    assert 0 < number < 18
    page.reload()
    expect(rows).to_have_count(number)
    expect(frame.locator("select[name=emotion]")).to_have_value("happy")
    words = rows.first.locator("a.transcript").inner_text().split()[1]
    page.keyboard.press("Tab")
    frame.get_by_role("heading", level=1).click()
    page.keyboard.press("/")
    page.keyboard.type(re.sub(r"\W", "", words))
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"[?&]q="))
    assert 0 < rows.count() <= number


def test_pages_and_samples_turn_by_keyboard(page: Page, server: str) -> None:
    frame = in_shell(page, server, "/samples")
    first = frame.locator("a.transcript").first
    text = first.inner_text()
    frame.get_by_role("heading", level=1).click()
    page.keyboard.press("ArrowRight")
    page.wait_for_url(re.compile("after="))
    expect(first).not_to_have_text(text)
    frame.get_by_role("heading", level=1).click()
    page.keyboard.press("ArrowLeft")
    expect(first).to_have_text(text)
    first.click()
    expect(frame.get_by_role("heading", level=1)).to_contain_text("/")
    name = frame.get_by_role("heading", level=1).inner_text()
    frame.get_by_role("heading", level=1).click()
    page.keyboard.press("ArrowRight")
    expect(frame.get_by_role("heading", level=1)).not_to_have_text(name)
    frame.get_by_role("heading", level=1).click()
    page.keyboard.press("ArrowLeft")
    expect(frame.get_by_role("heading", level=1)).to_have_text(name)


def test_the_first_stop_of_the_keyboard_skips_to_the_content(page: Page, server: str) -> None:
    page.goto(f"{server}/sift/coverage")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_links_to_airflow_s_pages_move_the_shell(page: Page, server: str) -> None:
    frame = in_shell(page, server, "/coverage")
    frame.get_by_role("row", name=re.compile("RAVDESS")).get_by_role("link", name="Ingest").click()
    page.wait_for_url(re.compile(f"{PREFIX}/dags/ingest_ravdess"))


def test_the_console_follows_the_shell_s_theme(page: Page, server: str) -> None:
    frame = in_shell(page, server, "/coverage")
    for theme, is_dark in (("dark", True), ("light", False)):
        page.evaluate("theme => localStorage.setItem('theme', theme)", theme)
        page.reload()
        expect(frame.locator("html")).to_have_attribute("data-theme", theme)
        background = frame.locator("html").evaluate("e => getComputedStyle(e).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background)[:3])) < 64) == is_dark, background
    # And at once, while it is open.
    page.evaluate("document.documentElement.classList.replace('light', 'dark')")
    expect(frame.locator("html")).to_have_attribute("data-theme", "dark")


@pytest.mark.parametrize(("scheme", "is_dark"), [("dark", True), ("light", False)])
def test_alone_it_follows_the_system_s_scheme(
    browser: Browser, server: str, signed_in: dict, scheme: str, is_dark: bool
) -> None:
    with watched_page(browser, server, storage_state=signed_in, color_scheme=scheme) as page:
        page.goto(f"{server}/sift/coverage")
        background = page.locator("html").evaluate("e => getComputedStyle(e).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background)[:3])) < 64) == is_dark


def test_every_page_fits_a_phone(browser: Browser, server: str, signed_in: dict) -> None:
    paths = [f"/{title.lower()}" for title in TITLES]
    paths += [f"/labels?source={source}" for source in SAMPLED]
    paths += ["/sample?sample_id=ravdess/03-01-06-01-11-01-09.wav", "/run?dag_id=generate_and_publish&run_id=run-1"]
    with watched_page(browser, server, storage_state=signed_in, viewport=PHONE, is_mobile=True, has_touch=True) as page:
        for path in paths:
            page.goto(f"{server}/sift{path}")
            # Not window.innerWidth: a phone shows a page that is too wide smaller, so that grows along.
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
            expect(page.get_by_role("heading", level=1)).to_be_visible()


def test_without_scripts_the_pages_are_whole(browser: Browser, server: str, signed_in: dict) -> None:
    with watched_page(browser, server, storage_state=signed_in, java_script_enabled=False) as page:
        page.goto(f"{server}/sift/samples?source=meld")
        assert page.locator("table.samples tbody tr").count() == 18
        page.locator("a.transcript").first.click()
        expect(page.locator("audio#audio")).to_be_visible()


def test_hostile_text_is_shown_and_does_nothing(page: Page, server: str, shown: Warehouse) -> None:
    hostile = (
        "<script>alert('script')</script><img src=x onerror=alert('image')><svg onload=alert('svg')>"
        "\"' autofocus onfocus=alert('focus') x='</bdi></blockquote><iframe srcdoc='<script>parent.alert(1)</script>'>"
        "<link rel=stylesheet href=//example.org/x.css>{{ 7*7 }}\u202e<a href=javascript:alert(1)>click</a>"
    )
    with shown.connection() as connection:
        row = connection.execute(
            "select source, sample_id, text, accent from staging.samples "
            "where source = 'commonvoice' order by sample_id limit 1"
        ).fetchone()
        where = "where source = %(source)s and sample_id = %(sample_id)s"
        kept = connection.execute(f"select * from generation.responses {where}", row).fetchall()
        values = {**row, "hostile": hostile}
        connection.execute(f"update staging.samples set text = %(hostile)s, accent = %(hostile)s {where}", values)
        connection.execute(f"update generation.responses set response = %(hostile)s {where}", values)
    try:
        for path in ("/samples?source=commonvoice", f"/sample?sample_id={quote(row['sample_id'])}"):
            frame = in_shell(page, server, path)
            expect(frame.get_by_text("<script>alert('script')</script>").first).to_be_visible()
            for element in ("iframe", "img", "svg[onload]", "a[href^=javascript]", "[onfocus]"):
                expect(frame.locator(element)).to_have_count(0)
        page.wait_for_timeout(300)  # what would run, has run
    finally:
        with shown.connection() as connection:
            connection.execute(f"update staging.samples set text = %(text)s, accent = %(accent)s {where}", row)
            for response in kept:
                connection.execute(
                    f"update generation.responses set response = %(response)s {where} and mode = %(mode)s", response
                )
