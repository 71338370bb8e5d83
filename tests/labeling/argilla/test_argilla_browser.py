"""A person at work: a browser logs in, ranks by keyboard, corrects and submits; the pull holds just that.

Set FLYWHEEL_SCREENSHOTS to a folder to keep the pictures (docs/images holds the ones of the documentation).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from labeling.argilla.client import Argilla
from labeling.tool.task import RankingRecord, RankingTask, Submission

HOSTILE = "<b>Lima</b><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
QUALITY = {"Lima.": 1, HOSTILE: 1, "Cusco, high up in the Andes.": 3}


# Scrolls what the answers are in to its end: how far that moved, how far it moved the prompt, and what was scrolled.
SCROLL_TO_END = """
    const prompt = document.querySelector('.chat__bubble'), last = [...document.querySelectorAll('.fields > *')].pop();
    let pane = last, chain = [];
    for (let e = last; e; e = e.parentElement) {
        const overflow = getComputedStyle(e).overflowY;
        chain.push([e.className, overflow, e.clientHeight, e.scrollHeight]);
        if (pane === last && /auto|scroll/.test(overflow) && e.scrollHeight > e.clientHeight + 50) pane = e;
    }
    pane.scrollTop = 0;
    const before = prompt.getBoundingClientRect().top;
    pane.scrollTop = 1e6;
    return [pane.scrollTop, before - prompt.getBoundingClientRect().top, chain]"""


# The prompt's and the answers' left, top, right and bottom, in pixels.
PLACES = """
    return [...document.querySelectorAll('.record__content .fields > *')].map(e => {
        const box = e.getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom].map(Math.round);
    })"""


def wait(for_what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true answer; elements that are not there yet, or no longer, count as false."""
    from selenium.common.exceptions import WebDriverException

    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := for_what():
                return found
        except WebDriverException:
            pass
        assert time.monotonic() < deadline, "the page never came to that"
        time.sleep(0.1)


def test_a_person_ranks_with_a_tie_and_a_correction(
    client: Argilla, task: RankingTask, browser: Any, tmp_path: Path
) -> None:
    task = replace(task, flags=(f"unsafe {HOSTILE}", "wrong"), guidelines=f"# Read\n\n{HOSTILE}\n\n[l](javascript:0)")
    pictures = Path(os.environ.get("FLYWHEEL_SCREENSHOTS", tmp_path))
    dataset = client.ensure_dataset(task)
    shown = ["Cusco, high up in the Andes.", "Lima.", HOSTILE]  # the caller's shuffle
    prompt = [
        {"role": "<i>x", "content": f"Hi {HOSTILE}"},
        {"role": "user", "content": f"What is the capital of Peru? {HOSTILE}"},
    ]
    client.push(dataset, [RankingRecord("peru", prompt, shown)])
    (user,) = client.ensure_users(["ann"], task.workspace)

    def find(selector: str) -> Any:
        return browser.find_element("css selector", selector)

    def active() -> Any:
        return browser.switch_to.active_element

    browser.get(client.url)
    wait(lambda: find("input[name=Username]").is_displayed())
    find("input[name=Username]").send_keys(user.name)
    find("input[name=Password]").send_keys(user.password)
    browser.save_screenshot(str(pictures / "argilla-login.png"))
    find("input[name=Password]").send_keys("\ue007")
    wait(lambda: "sign-in" not in browser.current_url)

    browser.get(dataset.url)
    wait(lambda: active().get_attribute("title") == "Answer A")  # ready for a key
    browser.save_screenshot(str(pictures / "argilla-rank.png"))
    # The answers stand side by side, under the prompt that goes over all of them (our server's doing, too).
    boxes = browser.execute_script(PLACES)
    if "ARGILLA_API_URL" not in os.environ:
        (left, top, right, bottom), *answers = boxes
        assert len(answers) == 3 and len({box[1] for box in answers}) == 1 and answers[0][1] >= bottom > top, boxes
        assert left <= answers[0][0] < answers[0][2] <= answers[1][0] < answers[2][0] < answers[2][2] <= right, boxes
    for label, answer in zip("abc", shown, strict=True):
        wait(lambda label=label: active().get_attribute("id") == label)
        active().send_keys(str(QUALITY[answer]))
        ranked = f"#{label} .draggable__rank-card--ranked"
        wait(lambda ranked=ranked: find(ranked))
        time.sleep(0.7)  # the UI takes a second digit within this time for a longer number
    correction = find("[contenteditable=true], textarea")
    correction.click()
    correction.send_keys("Lima, on the Pacific coast.")
    browser.save_screenshot(str(pictures / "argilla-ranked.png"))

    # What models wrote is to be read, not run.
    assert browser.title == "Argilla"
    bubbles = [bubble.text for bubble in browser.find_elements("css selector", ".chat__bubble")]
    assert sum(HOSTILE in text for text in bubbles) == 2
    page = find("body").text
    assert all(answer in page for answer in shown)
    assert not browser.find_elements("css selector", "iframe, img[src=x], .chat__bubble b, .chat i")

    # The prompt stays in view while the answers are scrolled (our server's doing: a remote one may not).
    browser.set_window_size(1500, 560)
    moved, prompt_moved, chain = wait(
        lambda: (found := browser.execute_script(SCROLL_TO_END)) and found[0] > 50 and found
    )
    if "ARGILLA_API_URL" not in os.environ:
        assert prompt_moved <= 20, (moved, prompt_moved, chain)  # the pane's own margin
    browser.save_screenshot(str(pictures / "argilla-scrolled.png"))
    browser.set_window_size(1500, 1100)

    next(b for b in browser.find_elements("css selector", "button") if "Submit" in b.text).click()
    (response,) = wait(lambda: [r for r in client.pull(dataset) if r.status == "submitted"])
    assert dict(zip(shown, response.ranks, strict=True)) == QUALITY
    assert (response.user, response.external_id) == ("ann", "peru")
    assert (response.correction, response.flags) == ("Lima, on the Pacific coast.", ())
    time.sleep(1.0)
    browser.save_screenshot(str(pictures / "argilla-submitted.png"))

    # A disputed record's link finds it again among others, whatever its prompt says.
    others = [RankingRecord(f"other {i}", [{"role": "user", "content": f"What is {i}?"}], shown) for i in range(5)]
    client.push(dataset, others)
    ann = client.as_user(user)
    ann.submit(dataset, [Submission(record.id, [1, 2, 3]) for record in ann.pending(dataset)])
    browser.get("about:blank")
    peru = next(record for record in client.records(dataset) if record.external_id == "peru")
    link = client.record_url(dataset, peru.id, prompt[0]["content"])
    assert len(link) <= 60 or "ARGILLA_API_URL" in os.environ, link
    browser.get(link)
    wait(lambda: HOSTILE in find(".chat__bubble").text)
