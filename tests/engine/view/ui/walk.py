"""What a person does in the browser with `flywheel ui`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Walk:
    """What a person does in the browser."""

    def __init__(self, chrome: Any, link: str, home: str) -> None:
        self.chrome, self.home = chrome, home
        chrome.get(link)

    def all(self, css: str) -> list[Any]:
        return self.chrome.find_elements("css selector", css)

    def texts(self, css: str) -> list[str]:
        return [one.text for one in self.all(css)]

    def wait(self, happens: Callable[[], Any], within_s: float = 30) -> Any:
        end = time.monotonic() + within_s
        while True:
            try:
                if found := happens():
                    return found
            except Exception as error:  # the page was replaced while one looked
                if "stale" not in str(error):
                    raise
            assert time.monotonic() < end, self.chrome.page_source[-3000:]
            time.sleep(0.1)

    def click(self, words: str, within: str = "main") -> None:
        """One click on a link, a box of a picture or a button that says this."""
        before = self.all("main")[0]
        self.wait(lambda: self.links(words, within))[0].click()
        self.wait(lambda: self.gone(before))
        self.there()

    def there(self) -> None:
        """The page that was asked for has come, as a whole."""
        self.wait(lambda: self.all("main") and self.chrome.execute_script("return document.readyState") == "complete")

    def links(self, words: str, within: str) -> list[Any]:
        found = self.all(f"{within} a, {within} button")
        return [one for one in found if words in (one.text or one.get_attribute("textContent"))]

    def gone(self, element: Any) -> bool:
        try:
            return element.tag_name == ""
        except Exception:
            return True

    def ask(self, **fields: str) -> None:
        """Fill the form above the rows and send it."""
        for name, value in fields.items():
            box = self.all(f"#rows [name='{name}']")[0]
            box.clear()
            box.send_keys(value)
        old = self.all("#rows")[0]
        next(b for b in self.all("#rows button") if b.text == "Show").click()
        self.wait(lambda: self.gone(old))

    def rows(self) -> list[str]:
        """Starts of the ids of the rows that are shown."""
        return self.texts("table.rows td:first-child a")

    def clicks(self, *steps: tuple[str, str]) -> str:
        """What the page tells after clicking through from the first one: three clicks at most, each on words within a part of the page."""
        self.chrome.get(self.home + "/")
        assert len(steps) <= 3
        for words, within in steps:
            self.click(words, within)
        return self.wait(lambda: self.all("main"))[0].text
