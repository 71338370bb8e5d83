"""Debian's Chromium, as tests and benchmarks drive it."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


def missing() -> str:
    """What is not on this machine; empty if a browser can be had."""
    if find_spec("selenium") is None:
        return "no selenium on this machine"
    return "" if shutil.which("chromium") and shutil.which("chromedriver") else "no chromium and chromedriver here"


@contextmanager
def chromium(width: int = 1500, height: int = 1100) -> Generator[Any]:
    """A browser of its own, with nothing in it; what its console tells is kept."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    size = f"--window-size={width},{height}"
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", size):
        options.add_argument(option)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))
    try:
        yield chrome
    finally:
        chrome.quit()
