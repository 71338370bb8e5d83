"""A person at work in Label Studio: a browser signs in, ranks by keyboard, corrects and submits; the pull holds just that.

Set FLYWHEEL_SCREENSHOTS to a folder to keep the picture (docs/images holds the one of the documentation).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from uuid import uuid4

from labeling.label_studio.access import email_of
from labeling.label_studio.studio_client import LabelStudio
from labeling.tool.task import RankingRecord, RankingTask
from tests.labeling.argilla.test_argilla_browser import HOSTILE, wait

ANSWERS = ["Cusco, high up in the $b Andes.\n\nSecond line.", "Lima.", HOSTILE]


def test_a_person_ranks_with_a_tie_and_a_correction(label_studio: LabelStudio, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    task = RankingTask(
        f"a person {uuid4().hex[:8]}",
        3,
        correction=True,
        flags=(f"unsafe {HOSTILE}", "wrong"),
        guidelines=f"# Read\n\n{HOSTILE}",
    )
    dataset = label_studio.ensure_dataset(task)
    prompt = [
        {"role": "<i>x", "content": f"Hi {HOSTILE}"},
        {"role": "user", "content": f"What is the capital of Peru? {HOSTILE} ${{a}}"},
    ]
    label_studio.push(dataset, [RankingRecord("peru", prompt, ANSWERS)])
    (user,) = label_studio.ensure_users([f"ann-{uuid4().hex[:8]}"], task.workspace)

    def find(selector: str) -> Any:
        return browser.find_element("css selector", selector)

    def text() -> str:
        return find("body").text

    browser.get(f"{label_studio.url}/user/login/")
    find("input[name=email]").send_keys(email_of(user.name))
    find("input[name=password]").send_keys(f"{user.password}{Keys.ENTER}")
    wait(lambda: "login" not in browser.current_url)
    browser.get(dataset.url)
    wait(lambda: HOSTILE in text() and "Labeling Instructions" in text())  # guidelines come first, as text
    find("body").send_keys(Keys.ESCAPE)
    wait(lambda: "Labeling Instructions" not in text() and "Answer C" in text())

    # What models wrote is to be read, not run nor looked up.
    assert all(answer in text() for answer in ANSWERS)
    page = text()
    assert all(message["content"] in page for message in prompt) and f"unsafe {HOSTILE}" in page
    assert browser.title == "Label Studio" and not browser.find_elements(
        "css selector", "img[src=x], .lsf-paragraphs b"
    )
    places = browser.execute_script(
        "return [...document.querySelectorAll('.flywheel-answer')].map(e => [e.getBoundingClientRect().left, e.getBoundingClientRect().top])"
    )
    assert len(places) == 3 and len({top for _, top in places}) == 1 and places[0][0] < places[1][0] < places[2][0]

    # Cusco is third, the others share the first rank: by the third key of the first row, the first of the second, a click.
    def ranked() -> list[str]:
        marked = browser.find_elements("css selector", ".flywheel-answer .ant-radio-wrapper-checked input")
        return [radio.get_attribute("name") for radio in marked]

    ActionChains(browser).send_keys("3").perform()
    wait(lambda: ranked() == ["3"])
    ActionChains(browser).send_keys("q").perform()
    wait(lambda: ranked() == ["3", "1"])
    browser.find_elements("css selector", ".flywheel-answer")[2].find_element("css selector", "label").click()
    wait(lambda: ranked() == ["3", "1", "1"])
    correction = find("textarea")
    correction.click()
    correction.send_keys("Lima, on the Pacific coast.")  # not added by its button: it counts all the same
    browser.save_screenshot(str(Path(os.environ.get("FLYWHEEL_SCREENSHOTS", tmp_path)) / "label-studio.png"))
    next(b for b in browser.find_elements("css selector", "button") if b.text.strip() == "Submit").click()
    (response,) = wait(lambda: list(label_studio.pull(dataset)))
    assert (response.user, response.external_id, response.status) == (user.name, "peru", "submitted")
    assert response.ranks == (3, 1, 1)
    assert (response.correction, response.flags) == ("Lima, on the Pacific coast.", ())
    assert label_studio.progress(dataset).completed == 1
