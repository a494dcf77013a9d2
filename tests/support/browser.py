"""A headless Chromium that opens pages of this package; tests skip where there is none."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    """Start the Chromium of this machine once."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: {' or '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: "Browser", path: Path, *, errors: Sequence[str] = (), **options: object
) -> Iterator["Page"]:
    """Open a page, and check that it loaded nothing, and caused just these errors and messages.

    ``options`` are those of a browser context, such as ``viewport`` or ``color_scheme``.
    """
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
    requests: list[str] = []
    said: list[str] = []
    context.on("request", lambda request: requests.append(request.url))
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert said == [*errors]
    assert [url for url in requests if not url.startswith(("data:", path.as_uri()))] == []
