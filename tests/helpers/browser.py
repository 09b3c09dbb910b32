"""The page of `camp serve` in a real browser: a server that listens, and a page whose errors fail the test."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from camp_sdk.server.app import create_app
from camp_sdk.server.run import Server, listener
from camp_sdk.server.settings import Settings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FAILED = "Failed to load resource"  # what Chromium logs of every answer that is an error
WAIT_MS = 20_000  # far more than anything takes, on a busy machine too

expect.set_options(timeout=WAIT_MS)


@contextmanager
def browsing() -> Iterator[Browser]:
    """The system's Chromium; the test is skipped without one. Nothing is downloaded."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@contextmanager
def listening(**settings: Any) -> Iterator[str]:
    """The address of a server with these settings, which has loaded everything."""
    chosen = Settings(port=0, **settings)
    app = create_app(chosen)
    server, socket = Server(app, chosen), listener(chosen)

    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    try:
        while not (app.state.serving.services.ready or server.failure or not thread.is_alive()):
            thread.join(0.02)
        assert server.failure is None, server.failure
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/"
    finally:
        server.drain(0.0)
        thread.join()
        socket.close()


@contextmanager
def opened(browser: Browser, address: str, *, expect_errors: bool = False, **options: Any) -> Iterator[Page]:
    """A page in a profile of its own; what goes wrong in it fails the test: scripts, and the content security policy.

    Args:
        browser: The browser.
        address: The page's address.
        expect_errors: Whether requests fail, which Chromium logs.
        **options: Of the profile: its viewport, its colours.
    """
    context: BrowserContext = browser.new_context(**{"reduced_motion": "reduce", **options})
    context.set_default_timeout(WAIT_MS)
    page, found = context.new_page(), list[str]()

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not (expect_errors and message.text.startswith(FAILED)):
            found.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("dialog", lambda dialog: found.append(f"a script opened a dialog: {dialog.message}"))
    page.goto(address)
    yield page
    context.close()
    assert not found, found


def until(page: Page, script: str) -> None:
    """Wait until an expression is true; Playwright's own means evaluates it in a way that the page's policy forbids."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(script):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{script} did not become true")
