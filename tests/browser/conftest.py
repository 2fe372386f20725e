"""A real browser, headless: the one of the system, driven by Playwright."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip("no Chromium on this machine; as root, `make test-browser` installs it where there is apt-get")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=executable) as chromium:
        yield chromium
