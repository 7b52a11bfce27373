"""Chromium for the tests, and a page that remembers all that must not happen in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium; a test skips, visibly, where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    # A page of Airflow's is drawn by scripts: beside a whole deployment on two cores that takes seconds.
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        # No sandbox: CI runs as root, and only our own pages are looked at.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched_page(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """Open a page; in the end no script may have failed, no dialog opened, no other host been asked for anything."""
    context = browser.new_context(**options)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    here = urlsplit(address).netloc
    context.on(
        "request",
        lambda request: (
            faults.append(f"asked for {request.url}")
            if urlsplit(request.url).scheme not in ("data", "blob", "about") and urlsplit(request.url).netloc != here
            else None
        ),
    )
    yield page
    context.close()
    assert faults == []
