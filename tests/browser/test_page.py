"""The page at /: typed into as people do, over a service whose answers each test writes."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Fields, Reply, ScriptedService
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent / "axe" / "axe.min.js"
ROWS = """
return [...document.querySelectorAll("#candidates li")].filter(row => row.checkVisibility())
  .map(row => ["gap", "next", "rest"].map(part => row.querySelector("." + part).textContent).join(""));
"""
LISTEN = """
const live = document.getElementById("live");
window.heard = [];
new MutationObserver(() => heard.push(live.textContent)).observe(live, {childList: true, characterData: true, subtree: true});
"""
NO_CLIPBOARD = """
const own = document.execCommand;
Object.defineProperty(navigator, "clipboard", {value: undefined});
document.execCommand = (name, ...rest) => name !== "copy" && own.call(document, name, ...rest);
"""
HEALTH = ("饮食和作息，少熬夜。", "忌口", "控制体重")


class Page:
    """The page in the browser, and what one does with it."""

    def __init__(self, driver: webdriver.Chrome, origin: str) -> None:
        self.driver, self.origin = driver, origin
        self.expects_network_faults = False  # the browser logs an answer other than 200 as an error of its own

    def open(self) -> None:
        self.driver.get(self.origin + "/")
        # The driver may come back before the page's modules have run.
        self.driver.execute_async_script("import(location.origin + '/pages/app.js').then(arguments[0])")

    @property
    def box(self) -> WebElement:
        return self.driver.find_element(By.ID, "box")

    @property
    def text(self) -> str:
        return str(self.box.get_property("value"))

    @property
    def rows(self) -> list[str]:
        """The continuations that can be seen."""
        return list(self.driver.execute_script(ROWS))

    @property
    def selected(self) -> str | None:
        return self.driver.execute_script("""
          const id = document.getElementById("box").getAttribute("aria-activedescendant");
          return id && document.querySelector(`#${id}[aria-selected=true] .next`).parentNode.textContent;
        """)  # type: ignore[no-any-return]

    @property
    def notice(self) -> str:
        return self.find("#notice").text

    def listen(self) -> None:
        """From now on `heard` is what becomes of the live region: "" is that it was emptied."""
        self.driver.execute_script(LISTEN)

    def hears(self, *texts: str) -> None:
        """Waits until exactly these were heard."""
        self.wait(lambda: self.heard == list(texts), lambda: self.heard)

    @property
    def heard(self) -> list[str]:
        return list(self.driver.execute_script("return heard"))

    @property
    def told(self) -> str:
        """What a screen reader was told last."""
        return str(self.find("#live").get_property("textContent"))

    def is_told(self, words: str) -> None:
        """Waits until a screen reader is."""
        self.wait(lambda: self.told == words, lambda: self.told)

    @contextlib.contextmanager
    def two_windows(self) -> Iterator[tuple[str, str]]:
        """The page in a second window too, where one is then; go_to(one of the two) changes windows."""
        first = self.driver.current_window_handle
        self.driver.switch_to.new_window("window")
        second = self.driver.current_window_handle
        try:
            self.open()
            yield first, second
        finally:
            self.go_to(second)
            self.driver.close()
            self.go_to(first)

    def go_to(self, window: str) -> None:
        self.driver.switch_to.window(window)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, *keys: str) -> None:
        self.box.send_keys(*keys)

    def shows(self, *rows: str) -> None:
        """Waits until exactly these are seen."""
        self.wait(lambda: self.rows == list(rows), lambda: self.rows)

    def wait(
        self, condition: Callable[[], object], told: Callable[[], object] = lambda: "", timeout_s: float = 5
    ) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, told()
            time.sleep(0.01)

    def stays(self, condition: Callable[[], bool], for_s: float) -> None:
        end = time.monotonic() + for_s
        while time.monotonic() < end:
            assert condition()
            time.sleep(0.02)

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, parameters)

    def compose(self, *steps: str) -> None:
        """What an input method writes into the text before it is settled, as Chromium's own events."""
        for step in steps:
            self.cdp("Input.imeSetComposition", text=step, selectionStart=len(step), selectionEnd=len(step))

    def settle(self, text: str) -> None:
        """The input method is done; "" if it was left without choosing."""
        if text:
            self.cdp("Input.insertText", text=text)
        else:
            self.cdp("Input.imeSetComposition", text="", selectionStart=0, selectionEnd=0)

    def violations(self) -> list[str]:
        """What axe says of what is seen now; the test has loaded it."""
        found = self.driver.execute_async_script("axe.run().then(({violations}) => arguments[0](violations))")
        return [f"{one['id']}: {node['html']} {node['failureSummary']}" for one in found for node in one["nodes"]]

    def errors(self) -> list[str]:
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if not (self.expects_network_faults and entry["source"] == "network")
        ]


@pytest.fixture
def page(chromium: webdriver.Chrome, scripted: ScriptedService) -> Iterator[Page]:
    """The page, in English and as if for the first time. No test may leave anything in the console."""
    page = Page(chromium, scripted.origin)
    page.cdp("Storage.clearDataForOrigin", origin=scripted.origin, storageTypes="all")
    page.errors()
    media(page, "light")
    page.open()
    yield page
    chromium.execute_script("sessionStorage.clear()")
    assert page.errors() == []


@pytest.fixture
def health(page: Page, scripted: ScriptedService) -> Page:
    """Has been typed into, and shows three candidates."""
    scripted.answer = lambda fields: Reply(
        [text for text in continuing("高血压要注意", fields["context"], HEALTH) if text], scores=(-0.3, -0.9, -1.6)
    )
    page.press("高血压要注意")
    page.shows(*HEALTH)
    return page


def continuing(beginning: str, context: str, ends: tuple[str, ...]) -> list[str]:
    """What is left of beginning + end after the context, for the ends that agree with it."""
    return [(beginning + end)[len(context) :] for end in ends if (beginning + end).startswith(context)]


def contexts(scripted: ScriptedService) -> list[str]:
    return [fields["context"] for fields in scripted.calls]


# Typing


def test_candidates_appear_under_what_is_typed_best_first(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["worst", "best", "middle"], scores=(-3, -0.1, -1))
    page.press("x")
    page.shows("best", "middle", "worst")
    shares = page.driver.execute_script(
        "return [...document.querySelectorAll('#candidates li')].map(row => Number(row.style.getPropertyValue('--share')))"
    )
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.905, abs=0.001)
    assert scripted.calls[-1] == {
        "context": "x", "stream": True, "echo": False, "samples": 5, "maxlength": 15, "session": scripted.calls[0]["session"],
    }  # fmt: skip


def test_candidates_grow_as_they_are_streamed(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two three", "four five"], stepwise=True)
    page.press("x")
    for rows in (("one", "four"), ("one two", "four five"), ("one two three", "four five")):
        scripted.go_on()
        page.shows(*rows)
    scripted.go_on()
    page.wait(lambda: page.find("#took").text)
    page.shows("one two three", "four five")


def test_a_withdrawn_candidate_is_not_seen(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a", "", "c"])
    page.press("x")
    page.shows("a", "c")


def test_a_blank_text_asks_nothing_and_an_empty_answer_is_explained(page: Page, scripted: ScriptedService) -> None:
    page.press("  ")
    page.stays(lambda: page.notice == "" and not scripted.calls, 0.2)
    page.press("x")
    page.wait(lambda: "nothing to add" in page.notice)


def test_what_agrees_with_the_next_key_stays_before_any_answer(health: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["新的"], before_s=0.5)
    asked = len(scripted.calls)
    health.press("忌")
    assert health.rows == ["口"]
    health.press(Keys.BACKSPACE)
    assert health.rows == list(HEALTH)
    health.stays(lambda: health.rows == list(HEALTH), 0.2)
    assert contexts(scripted)[asked:] in ([], ["高血压要注意忌"]), "what was answered before is remembered"


def test_a_key_that_agrees_with_none_empties_the_list_at_once(health: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["新的"], stepwise=True)
    health.press("山")
    assert health.rows == []
    scripted.go_on()
    scripted.go_on()
    health.shows("新的")


def test_nothing_is_shown_while_the_caret_is_not_at_the_end(health: Page) -> None:
    health.press(Keys.HOME)
    health.wait(lambda: health.rows == [])
    health.find("[popovertarget=settings]").click()
    health.find("#samples").send_keys(Keys.ARROW_RIGHT)
    health.stays(lambda: health.rows == [], 0.1)
    health.press(Keys.END)
    health.shows(*HEALTH)
    health.press(Keys.CONTROL, "a")
    health.wait(lambda: health.rows == [])


STALE = """
window.seen = {frames: 0, rows: 0, stale: []};
const box = document.getElementById("box");
const look = () => {
  seen.frames++;
  for (const row of document.querySelectorAll("#candidates li")) {
    if (!row.checkVisibility()) continue;
    seen.rows++;
    const whole = box.value + ["gap", "next", "rest"].map(part => row.querySelector("." + part).textContent).join("");
    const [context, ...marks] = whole.split("«");
    if (marks.length !== 1 || !`${context}»`.startsWith(marks[0].slice(0, context.length + 1))) seen.stale.push(`${box.value}|${whole}`);
  }
};
addEventListener("input", look); // after the page's own
const everything = {subtree: true, childList: true, characterData: true, attributes: true};
new MutationObserver(look).observe(document.getElementById("candidates"), everything);
const frame = () => { look(); requestAnimationFrame(frame); };
frame();
"""


@pytest.mark.parametrize("aborts", [True, False], ids=["as it is", "where aborting does nothing"])
def test_a_fast_typist_never_sees_a_stale_list(page: Page, scripted: ScriptedService, aborts: bool) -> None:
    """Each candidate names the context it was made for; what is shown is looked at after every key, change and frame."""
    delays_s = [0.0, 0.12, 0.03, 0.2, 0.01]
    scripted.answer = lambda fields: Reply(
        [f"«{fields['context']}»{i} a b" for i in range(3)], before_s=delays_s[len(scripted.calls) % 5], between_s=0.002
    )
    if not aborts:
        page.driver.execute_script(
            "const own = fetch; window.fetch = (url, options) => own(url, {...options, signal: undefined})"
        )
    page.driver.execute_script(STALE)
    for character in "how to go" + Keys.BACKSPACE * 4 + "stay here" + Keys.BACKSPACE * 2:
        page.press(character)
        time.sleep(0.02)
    page.shows(*[f"«{page.text}»{i} a b" for i in range(3)])
    seen = page.driver.execute_script("return seen")
    assert seen["stale"] == []
    assert page.text == "how tstay he"
    assert seen["rows"] > 50


def test_the_answer_to_an_older_key_cannot_come_after_the_newer(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([f" {fields['context']}"], before_s=0.4 if fields["context"] == "x" else 0)
    page.driver.execute_script(
        "const own = fetch; window.fetch = (url, options) => own(url, {...options, signal: undefined})"
    )
    page.press("x")
    page.wait(lambda: contexts(scripted) == ["x"])
    page.press("y")
    page.shows(" xy")
    page.stays(lambda: page.rows == [" xy"], 0.5)


def test_a_newer_key_hangs_up_on_the_older_call(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"], before_s=5 if fields["context"] == "x" else 0)
    page.press("x")
    page.wait(lambda: scripted.calls)
    page.press("y")
    page.shows("a")
    page.wait(lambda: [fields["context"] for fields in scripted.left] == ["x"])
    assert len({fields["session"] for fields in scripted.calls}) == 1


def test_slow_answers_are_asked_for_less_often(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"], before_s=0.4)
    for text in ("x", "xy"):
        page.press(text[-1])
        page.wait(lambda text=text: page.rows == ["a"] and contexts(scripted)[-1] == text)
    asked = len(scripted.calls)
    page.driver.execute_async_script("""
      for (const key of "abcdefghijkl") {
        document.execCommand("insertText", false, key);
        await new Promise(resolve => setTimeout(resolve, 20));
      }
      arguments[0]();
    """)
    page.shows("a")
    assert len(scripted.calls) - asked <= 4
    assert contexts(scripted)[-1] == "xyabcdefghijkl"


# Input methods


def test_nothing_is_asked_while_composing_and_once_when_it_ends(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"])
    page.box.click()
    page.compose("g", "ga", "gao", "gao x", "gao xue", "gao xue ya")
    page.stays(lambda: scripted.calls == [] and page.rows == [], 0.3)
    page.settle("高血压")
    page.shows("a")
    page.stays(lambda: contexts(scripted) == ["高血压"], 0.2)


def test_the_list_is_gone_while_composing_and_back_with_what_agrees(health: Page, scripted: ScriptedService) -> None:
    asked = len(scripted.calls)
    health.compose("j", "ji")
    assert health.rows == []
    health.settle("忌")
    health.shows("口")
    assert contexts(scripted)[asked:] == ["高血压要注意忌"]


def test_a_composition_that_is_left_brings_the_list_back_without_a_call(
    health: Page, scripted: ScriptedService
) -> None:
    asked = len(scripted.calls)
    health.compose("j", "ji")
    health.settle("")
    health.shows(*HEALTH)
    assert len(scripted.calls) == asked
    assert health.text == "高血压要注意"


def test_keys_of_the_input_method_take_nothing(health: Page) -> None:
    health.compose("ni")
    for key, code in (("Enter", 13), ("Tab", 9), ("ArrowDown", 40), ("Escape", 27)):
        health.driver.execute_script(
            """
            const [key, keyCode] = arguments;
            const event = new KeyboardEvent("keydown", {key, keyCode, isComposing: true, bubbles: true, cancelable: true});
            document.getElementById("box").dispatchEvent(event);
            window.taken = event.defaultPrevented;
            """,
            key,
            code,
        )
        assert health.driver.execute_script("return taken") is False
    assert health.text == "高血压要注意ni"
    health.settle("你")
    # Safari ends a composition before the key that ended it: only its code tells.
    health.driver.execute_script(
        'document.getElementById("box").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", keyCode: 229, bubbles: true}))'
    )
    assert health.text == "高血压要注意你"


def test_events_in_the_order_of_other_browsers_make_one_call(page: Page, scripted: ScriptedService) -> None:
    """Firefox and Safari send the last input event after the composition has ended."""
    scripted.answer = lambda fields: Reply(["a"])
    page.driver.execute_script("""
      const box = document.getElementById("box");
      box.focus();
      const send = (type, Kind, options = {}) => box.dispatchEvent(new Kind(type, {bubbles: true, ...options}));
      send("compositionstart", CompositionEvent);
      for (const text of ["n", "ni"]) {
        send("compositionupdate", CompositionEvent, {data: text});
        box.value = text;
        send("input", InputEvent, {isComposing: true});
      }
      box.value = "你";
      send("compositionend", CompositionEvent, {data: "你"});
      send("input", InputEvent, {isComposing: false});
    """)
    page.shows("a")
    page.stays(lambda: contexts(scripted) == ["你"], 0.2)


# Taking


def test_enter_takes_the_first_and_arrows_choose_another(health: Page) -> None:
    assert health.selected is None
    health.press(Keys.ARROW_DOWN)
    assert health.selected == "高血压要注意" + HEALTH[0]
    health.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert health.selected == "高血压要注意" + HEALTH[2]
    health.press(Keys.ARROW_UP)
    assert health.selected == "高血压要注意" + HEALTH[1]
    health.press(Keys.ENTER)
    assert health.text == "高血压要注意忌口"


def test_enter_without_a_choice_takes_the_best(health: Page) -> None:
    health.press(Keys.ENTER)
    assert health.text == "高血压要注意" + HEALTH[0]
    assert health.driver.switch_to.active_element == health.box


def test_up_from_the_first_leaves_the_list(health: Page) -> None:
    health.press(Keys.ARROW_DOWN, Keys.ARROW_UP)
    assert health.selected is None
    health.press("忌")
    assert health.selected is None


def test_what_is_chosen_stays_chosen_when_newer_answers_come(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["ab one", "ab two", "ac three"])
    page.press("x")
    page.shows("ab one", "ab two", "ac three")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    scripted.answer = lambda fields: Reply(["new", "newer", "newest"], stepwise=True)
    for key, left, chosen in (("a", ("b one", "b two", "c three"), "b two"), ("b", (" two",), " two")):
        page.press(key)
        page.shows(*left)
        assert page.selected == "xab two"
        scripted.go_on()
        scripted.go_on()
        page.wait(lambda: page.find("#took").text)
        assert page.rows == [chosen, "new", "newer"]
        assert page.selected == "xab two"
    page.press(Keys.ENTER)
    assert page.text == "xab two"


def test_what_is_chosen_before_the_answer_comes_stays_chosen(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["ab one", "ab two"])
    page.press("x")
    page.shows("ab one", "ab two")
    scripted.answer = lambda fields: Reply(["new", "b two"], scores=(-1, -2), stepwise=True)
    page.press("a")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    for _ in range(3):
        scripted.go_on()
    page.wait(lambda: page.find("#took").text)
    assert page.rows == ["b two", "new"], "once, though the new answer says it too"
    assert page.selected == "xab two"
    page.press(Keys.ARROW_DOWN, Keys.ENTER)
    assert page.text == "xanew"


def test_what_is_chosen_stays_chosen_when_the_settings_change(health: Page, scripted: ScriptedService) -> None:
    health.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    scripted.answer = lambda fields: Reply(["新的", "别的"])
    health.find("[popovertarget=settings]").click()
    health.find("#samples").send_keys(Keys.ARROW_RIGHT)
    health.shows(HEALTH[1], "新的")
    assert health.selected == "高血压要注意" + HEALTH[1]


def test_what_is_chosen_stays_chosen_after_a_composition(health: Page) -> None:
    health.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    health.compose("j", "ji")
    assert health.rows == []
    assert health.box.get_attribute("aria-activedescendant") is None
    health.settle("忌")
    health.wait(lambda: health.find("#took").text)
    assert health.rows == ["口"]
    assert health.selected == "高血压要注意忌口"


def test_what_is_typed_against_the_chosen_one_ends_the_choice(health: Page) -> None:
    health.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    health.press("山")
    assert health.rows == []
    health.press(Keys.BACKSPACE)
    health.shows(*HEALTH)
    assert health.selected is None


def test_tab_takes_word_by_word_and_the_candidate_stays_first(health: Page, scripted: ScriptedService) -> None:
    others = ("别的", "另外")
    scripted.answer = lambda fields: Reply([*others, *continuing("高血压要注意", fields["context"], HEALTH)])
    texts = []
    for _ in range(4):
        health.press(Keys.TAB)
        texts.append(health.text)
        walked = ("高血压要注意" + HEALTH[0]).removeprefix(texts[-1])
        health.shows(walked, *others)
    assert texts == ["高血压要注意饮食", "高血压要注意饮食和", "高血压要注意饮食和作息", "高血压要注意饮食和作息，少"]


def test_tab_needs_no_answer_to_go_on(health: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["别的"], before_s=5)
    health.press(Keys.TAB, Keys.TAB, Keys.TAB)
    assert health.text == "高血压要注意饮食和作息"
    assert health.rows == ["，少熬夜。"]


def test_tab_walks_along_the_chosen_one(health: Page) -> None:
    health.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.TAB)
    assert health.text == "高血压要注意控制"
    assert health.selected == "高血压要注意控制体重"
    health.press(Keys.TAB)
    assert health.text == "高血压要注意控制体重"


def test_a_word_cut_in_the_middle_is_finished_by_tab(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["avel cheaply"])
    page.press("how to tr")
    page.shows("avel cheaply")
    page.press(Keys.TAB)
    assert page.text == "how to travel"


def test_the_chosen_one_keeps_its_place_when_the_order_comes(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a b", "d e"], scores=(-2, -1), stepwise=True)
    page.press("x")
    scripted.go_on()
    page.shows("a", "d")
    page.press(Keys.ARROW_DOWN)
    scripted.go_on()
    scripted.go_on()
    page.wait(lambda: page.find("#took").text)
    assert page.rows == ["a b", "d e"]
    assert page.selected == "xa b"


def test_escape_closes_and_gives_the_keys_back(health: Page, scripted: ScriptedService) -> None:
    health.press(Keys.ESCAPE)
    assert health.rows == []
    health.press(Keys.ENTER)
    assert health.text == "高血压要注意\n"
    health.press(Keys.BACKSPACE)
    health.shows(*HEALTH)
    health.press(Keys.ESCAPE, Keys.TAB)
    assert health.text == "高血压要注意"
    assert health.driver.switch_to.active_element == health.find("#copy")


def test_arrow_down_opens_what_escape_closed(health: Page) -> None:
    health.press(Keys.ESCAPE, Keys.ARROW_DOWN)
    assert health.rows == list(HEALTH)
    assert health.selected == "高血压要注意" + HEALTH[0]


def test_tab_leaves_the_box_when_there_is_nothing_to_take(page: Page) -> None:
    page.press(Keys.TAB)
    assert page.driver.switch_to.active_element != page.box


def test_shift_enter_starts_a_line_and_shift_tab_goes_back(health: Page) -> None:
    health.press(Keys.SHIFT, Keys.ENTER)
    assert health.text == "高血压要注意\n"
    health.press(Keys.BACKSPACE)
    health.shows(*HEALTH)
    health.press(Keys.SHIFT, Keys.TAB)
    assert health.driver.switch_to.active_element == health.find("#language")


def test_a_click_takes_and_the_box_keeps_the_focus(health: Page) -> None:
    health.find("#candidates li:nth-child(2)").click()
    assert health.text == "高血压要注意忌口"
    assert health.driver.switch_to.active_element == health.box


def test_what_was_taken_can_be_undone(health: Page) -> None:
    health.press(Keys.ENTER)
    health.press(Keys.CONTROL, "z")
    assert health.text == "高血压要注意"
    health.shows(*HEALTH)


# What goes wrong


def test_superseded_is_silent(page: Page, scripted: ScriptedService) -> None:
    page.expects_network_faults = True
    scripted.answer = lambda fields: Reply(status=409, code="superseded")
    page.press("x")
    page.wait(lambda: scripted.calls)
    page.stays(lambda: page.notice == "" and page.rows == [], 0.2)
    scripted.answer = lambda fields: Reply(["a"])
    page.press("y")
    page.shows("a")


def test_a_busy_service_is_asked_again_when_it_said(page: Page, scripted: ScriptedService) -> None:
    page.expects_network_faults = True
    scripted.answer = lambda fields: Reply(status=503, code="overloaded", headers={"Retry-After": "3"})
    page.press("x")
    page.wait(lambda: "busy" in page.notice)
    assert page.find("#countdown").text in ("3 s", "2 s")
    page.find("#clear").click()
    assert page.notice == page.find("#countdown").text == "", "without a text there is nothing to wait for"
    page.press("x")
    scripted.answer = lambda fields: Reply(["a"])
    page.press("y")
    page.shows("a")
    assert contexts(scripted) == ["x", "xy"]
    assert scripted.came_at[1] - scripted.came_at[0] > 2.95, "what is typed meanwhile waits too"
    assert page.notice == page.find("#countdown").text == ""


def test_offline_is_said_kindly_and_passes_by_itself(health: Page, scripted: ScriptedService) -> None:
    health.expects_network_faults = True
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    health.cdp("Network.enable")
    health.cdp("Network.emulateNetworkConditions", offline=True, **offline)
    try:
        health.press("忌")
        health.wait(lambda: "does not answer" in health.notice)
        assert health.rows == ["口"], "what agrees can still be taken"
    finally:
        health.cdp("Network.emulateNetworkConditions", offline=False, **offline)
    health.wait(lambda: health.notice == "")
    health.shows("口")


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Page, scripted: ScriptedService) -> None:
    page.expects_network_faults = True
    scripted.answer = lambda fields: Reply(["a"])
    scripted.key = "open-sesame"
    page.press("x")
    page.wait(lambda: "wants a key" in page.notice)
    page.press("y")
    page.stays(lambda: len(scripted.calls) == 1, 0.2)
    page.find("#key").send_keys("wrong", Keys.ENTER)
    page.wait(lambda: "does not know" in page.notice)
    page.find("#key").send_keys("open-sesame", Keys.ENTER)
    page.shows("a")
    assert page.notice == ""
    assert not page.find("#key-form").is_displayed()
    assert "open-sesame" not in page.driver.execute_script("return JSON.stringify(localStorage)")
    page.open()
    page.press("z")
    page.shows("a")


def test_other_failures_are_said_and_forgotten_with_the_next_answer(page: Page, scripted: ScriptedService) -> None:
    page.expects_network_faults = True
    for status, code, request_id, words in (
        (400, "context_length_exceeded", "r-1", "longer than the model can read"),
        (403, "origin_not_allowed", "r-2", "does not answer this address"),
        (413, "body_too_large", "r-3", "longer than the model can read"),
        (504, "deadline_exceeded", "r-4", "took too long"),
        (500, "internal_error", "r-5", "more under r-5"),
        (502, "", "", "or on the way to it."),
    ):
        reply = Reply(status=status, code=code, headers={"X-Request-Id": request_id} if request_id else {})
        scripted.answer = lambda fields, reply=reply: reply
        page.press("x")
        page.wait(lambda words=words: words in page.notice, lambda: page.notice)
    scripted.answer = lambda fields: Reply(["a"])
    page.press("y")
    page.shows("a")
    assert page.notice == ""


@pytest.mark.parametrize("mended", ["the key", "a setting"])
def test_nothing_is_said_of_an_answer_that_has_not_come(page: Page, scripted: ScriptedService, mended: str) -> None:
    page.expects_network_faults = True
    scripted.key = "k" if mended == "the key" else ""
    scripted.answer = lambda fields: Reply(status=400, code="invalid_value")
    page.press("x")
    page.wait(lambda: page.notice)
    scripted.answer = lambda fields: Reply(["a"], stepwise=True)
    if mended == "the key":
        page.find("#key").send_keys("k", Keys.ENTER)
    else:
        page.find("[popovertarget=settings]").click()
        page.find("#samples").send_keys(Keys.ARROW_RIGHT)
    page.wait(lambda: len(scripted.calls) == 2)
    assert page.notice == ""
    scripted.go_on()
    scripted.go_on()
    page.shows("a")


def test_markup_is_inert(page: Page, scripted: ScriptedService) -> None:
    nasty = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'
    scripted.answer = lambda fields: Reply([f"{nasty}{{seconds}}", "</li></ul><h1>x</h1>"])
    page.press("<b onmouseover=window.pwned=1>")
    page.wait(lambda: len(page.rows) == 2)
    assert page.rows[0].startswith(nasty)
    page.press(Keys.ENTER)
    page.find("[popovertarget=taken]").click()
    assert nasty in page.find("#taken .prompt").text
    assert page.driver.execute_script("return [window.pwned, document.images.length, document.querySelectorAll('h1').length]") == [
        None, 0, 1,
    ]  # fmt: skip


# Drawers, words, looks


def test_settings_are_sent_when_touched_remembered_and_reset(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"])
    page.press("x")
    page.shows("a")
    page.find("[popovertarget=settings]").click()
    page.find("#temperature").send_keys("0.5")
    page.find("#top_k").send_keys("12")
    page.find("#top_p").send_keys("7")  # out of range: is not sent
    page.find("#seed").send_keys("3")
    page.find("#samples").send_keys(Keys.ARROW_RIGHT)
    wanted = {"temperature": 0.5, "top_k": 12, "seed": 3, "samples": 6, "maxlength": 15}
    page.wait(lambda: settings_of(scripted.calls[-1]) == wanted, lambda: scripted.calls[-1])
    page.open()
    page.press("x")
    page.shows("a")
    assert settings_of(scripted.calls[-1]) == wanted
    page.find("[popovertarget=settings]").click()
    page.find("#settings-form [type=reset]").click()
    page.wait(lambda: settings_of(scripted.calls[-1]) == {"samples": 5, "maxlength": 15}, lambda: scripted.calls[-1])


def settings_of(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name not in ("context", "stream", "echo", "session")}


def test_taken_prompts_are_kept_recalled_and_forgotten(health: Page) -> None:
    health.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    health.find("#clear").click()
    health.press("高血压要注意")
    health.shows(*HEALTH)
    health.press(Keys.TAB, Keys.TAB)
    health.open()
    health.find("[popovertarget=taken]").click()
    prompts = [row.text for row in health.driver.find_elements(By.CSS_SELECTOR, "#taken .prompt")]
    assert prompts == ["高血压要注意饮食和", "高血压要注意忌口"], "a walk is one entry"
    health.find("#taken li:nth-child(2) .prompt").click()
    assert health.text == "高血压要注意忌口"
    health.find("[popovertarget=taken]").click()
    health.find("#taken .forget").click()
    assert health.find("#taken .none").is_displayed()
    assert health.driver.execute_script("return localStorage.getItem('promptgen.taken')") is None


def test_windows_share_what_was_taken(health: Page) -> None:
    def prompts() -> list[str]:
        script = "return [...document.querySelectorAll('#taken .prompt')].map(e => e.textContent)"
        return list(health.driver.execute_script(script))

    def take(place: int) -> None:
        health.press("高血压要注意")
        health.shows(*HEALTH)
        health.press(*[Keys.ARROW_DOWN] * place, Keys.ENTER)

    one, two, three = ("高血压要注意" + end for end in HEALTH)
    health.press(Keys.ENTER)
    health.find("[popovertarget=taken]").click()
    with health.two_windows() as (first, second):
        health.find("[popovertarget=taken]").click()
        assert prompts() == [one]
        health.find("#taken .forget").click()
        health.go_to(first)
        health.wait(lambda: prompts() == [], prompts)
        health.find("#taken [popovertarget]").click()
        health.find("#clear").click()
        take(2)
        health.go_to(second)
        health.wait(lambda: prompts() == [two], prompts)
        health.find("#taken [popovertarget]").click()
        take(3)
        health.go_to(first)
        health.wait(lambda: prompts() == [three, two], prompts)


def test_an_example_begins_a_prompt(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"])
    example = page.find(".example")
    words = example.text
    example.click()
    page.shows("a")
    assert page.text == words
    assert not page.find("#examples").is_displayed()
    page.find("#clear").click()
    assert page.text == ""
    page.wait(lambda: page.find("#examples").is_displayed())


@pytest.mark.parametrize("secure", [True, False], ids=["with the clipboard", "on a page without TLS"])
def test_copy(health: Page, secure: bool) -> None:
    health.cdp(
        "Browser.grantPermissions", origin=health.origin, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"]
    )
    if not secure:
        health.driver.execute_script("""
          window.clipboard = navigator.clipboard;
          Object.defineProperty(navigator, "clipboard", {value: undefined});
        """)
    health.press(Keys.SHIFT, Keys.ENTER)
    health.press("two  lines")
    health.find("#copy").click()
    health.is_told("Copied")
    assert health.driver.switch_to.active_element == health.find("#copy")
    copied = health.driver.execute_async_script("""
      document.body.focus();
      (navigator.clipboard ?? window.clipboard).readText().then(arguments[0], fault => arguments[0](String(fault)));
    """)
    assert copied == "高血压要注意\ntwo  lines"


def test_a_copy_that_fails_is_told(health: Page) -> None:
    health.listen()
    health.driver.execute_script(NO_CLIPBOARD)
    for words in ("It could not be copied.", "没能复制"):
        health.find("#copy").click()
        health.wait(lambda words=words: health.notice.startswith(words), lambda: health.notice)
        assert health.driver.switch_to.active_element == health.find("#copy")
        assert health.find("#copy").get_attribute("class") == "quiet icon"
        health.find("#language").click()
    assert not {"Copied", "已复制"} & set(health.heard)


def test_words_in_both_languages(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"])
    assert page.find("#box").get_attribute("placeholder") == "Begin a prompt…"
    page.find("#language").click()
    assert page.find("#box").get_attribute("placeholder") == "写个开头…"
    page.open()
    assert page.find("html").get_attribute("lang") == "zh-CN"
    page.press("x")
    page.wait(lambda: re.fullmatch(r"\d+ 毫秒", page.find("#took").text))
    page.find("#language").click()
    assert re.fullmatch(r"\d+ ms", page.find("#took").text)


def test_a_chinese_browser_reads_chinese(page: Page) -> None:
    agent = page.driver.execute_script("return navigator.userAgent")
    page.cdp("Network.setUserAgentOverride", userAgent=agent, acceptLanguage="zh-TW,zh")
    try:
        page.open()
        assert page.find("html").get_attribute("lang") == "zh-CN"
    finally:
        page.cdp("Network.setUserAgentOverride", userAgent=agent, acceptLanguage="en-US")


def test_both_dictionaries_say_the_same_things(page: Page) -> None:
    names, used = page.driver.execute_async_script("""
      import(location.origin + "/pages/words.js").then(({words}) => arguments[0]([
        Object.values(words).map(said => Object.entries(said).map(([name, text]) => [name, text.match(/\\{\\w+\\}/g)])),
        ["word", "label", "placeholder"].flatMap(kind => [...document.querySelectorAll(`[data-${kind}]`)].map(e => e.dataset[kind])),
      ]));
    """)
    english, chinese = names
    assert english == chinese
    assert set(used) <= {name for name, _ in english}


def test_the_theme_follows_the_system_until_chosen(page: Page) -> None:
    def background() -> str:
        return str(page.find("body").value_of_css_property("background-color"))

    light = background()
    media(page, "dark")
    assert background() != light
    page.find("#theme").click()
    assert background() == light
    page.open()
    assert background() == light


def media(page: Page, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
    page.cdp("Emulation.setEmulatedMedia", features=features)


# Everyone


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page: Page, scripted: ScriptedService, theme: str) -> None:
    page.expects_network_faults = True
    scripted.answer = lambda fields: Reply(["one two", "three"], scores=(-0.1, -1))
    media(page, theme)
    page.driver.execute_script(AXE.read_text(encoding="utf-8"))
    try:
        assert page.violations() == []
        page.press("x")
        page.shows("one two", "three")
        page.press(Keys.ARROW_DOWN)
        assert page.violations() == []
        screen(page, 360)
        assert page.violations() == []
        for drawer in ("settings", "taken"):
            page.driver.execute_script(f"document.getElementById('{drawer}').showPopover()")
            assert page.violations() == []
        page.driver.execute_script("document.getElementById('taken').hidePopover()")
        scripted.key = "k"
        page.press("y")
        page.wait(lambda: page.notice)
        assert page.violations() == []
    finally:
        page.cdp("Emulation.clearDeviceMetricsOverride")


def screen(page: Page, width: int) -> None:
    page.cdp("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=True)


def test_nothing_is_wider_than_a_phone(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["w" * 200, "one two three four five six seven eight nine ten eleven"])
    screen(page, 320)
    page.cdp("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        page.open()
        page.press("a long beginning that needs more than one line on a phone")
        page.wait(lambda: len(page.rows) == 2)
        assert page.driver.execute_script("return document.documentElement.scrollWidth") == 320
        assert page.find(".by-touch").is_displayed()
        heights = page.driver.execute_script(
            "return [...document.querySelectorAll('#candidates li, header button, #tools button')].map(e => e.offsetHeight)"
        )
        assert min(heights) >= 44
        assert page.find("#box").size["height"] > 60, "the box grows with its text"
    finally:
        page.cdp("Emulation.setTouchEmulationEnabled", enabled=False)
        page.cdp("Emulation.clearDeviceMetricsOverride")


def test_a_screen_reader_hears_how_many_and_which(health: Page) -> None:
    health.is_told("3 candidates")
    health.press(Keys.ARROW_DOWN)
    tree = health.cdp("Accessibility.getFullAXTree")["nodes"]
    named = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if not node["ignored"]}
    assert ("textbox", "The beginning of a prompt") in named
    assert ("listbox", "Ways it could go on") in named
    assert {name for role, name in named if role == "option"} == set(HEALTH)
    box = next(node for node in tree if node["role"]["value"] == "textbox")
    assert "activedescendant" in {one["name"] for one in box["properties"]}


def test_a_screen_reader_is_told_the_same_again(health: Page, scripted: ScriptedService) -> None:
    health.is_told("3 candidates")
    health.listen()
    scripted.answer = lambda fields: Reply(["a", "b", "c"])
    health.press("山")
    health.hears("", "3 candidates")
    health.find("#copy").click()
    health.hears("", "3 candidates", "", "Copied")
    health.find("#copy").click()
    health.hears("", "3 candidates", "", "Copied", "", "Copied")


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(health: Page, scripted: ScriptedService) -> None:
    asked = health.driver.execute_script("return performance.getEntriesByType('resource').map(({name}) => name)")
    assert len(asked) > 10
    assert [address for address in asked if not address.startswith(scripted.origin + "/")] == []
    refused = health.driver.execute_script("""
      const before = document.body.childElementCount;
      try { document.body.innerHTML = "<b>x</b>"; return "taken"; } catch (fault) { return fault.name; }
    """)
    assert refused == "TypeError"
    health.expects_network_faults = True
    assert [line for line in health.errors() if "TrustedHTML" not in line] == []


def test_a_browser_that_keeps_nothing_can_use_the_page(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"])
    script = page.cdp(
        "Page.addScriptToEvaluateOnNewDocument",
        source="""
          const refuse = {get() { throw new DOMException("no", "SecurityError"); }};
          for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, refuse);
        """,
    )
    try:
        page.open()
        page.press("x")
        page.shows("a")
        page.press(Keys.ENTER)
        page.find("#theme").click()
        page.find("[popovertarget=taken]").click()
        assert page.find("#taken .prompt").text == "xa"
    finally:
        page.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
        page.open()


def test_spoilt_storage_does_no_harm(page: Page, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a"])
    for name, value in (
        ("settings", '{"samples": "many", "nothing": 1}'),
        ("taken", "{"),
        ("language", '"fr"'),
        ("theme", "7"),
    ):
        page.driver.execute_script(f"localStorage.setItem({json.dumps('promptgen.' + name)}, {json.dumps(value)})")
    page.open()
    page.press("x")
    page.shows("a")
