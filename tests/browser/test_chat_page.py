"""The page at /chat: asked as people ask, over a service whose answers each test writes, and once over the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import Fields, Reply, ScriptedService
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from test_page import AXE, NO_CLIPBOARD, Page, media

pytestmark = pytest.mark.browser

FIRST, SECOND = "高血压要注意什么？", "那饮食呢？"
TEXTS = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
SALT, WALK = "少吃盐，多走路。", "多走路，早点睡。"


class Chat(Page):
    """The chat page, and what one does with it."""

    def open(self) -> None:
        self.driver.get(self.origin + "/chat")

    @property
    def said(self) -> list[str]:
        """What stands in the bubbles, in order."""
        return list(self.driver.execute_script(TEXTS, "#talk p"))

    @property
    def others(self) -> list[str]:
        return list(self.driver.execute_script(TEXTS, ".last .other"))

    def ask(self, question: str) -> None:
        self.press(question, Keys.ENTER)

    def press_wherever(self, *keys: str) -> None:
        """Presses keys without going to the box first."""
        ActionChains(self.driver).send_keys(*keys).perform()

    @property
    def focused(self) -> str:
        """The id of what has the focus."""
        return str(self.driver.execute_script("return document.activeElement.id"))

    def says(self, *texts: str) -> None:
        """Waits until exactly these stand in the bubbles and nothing is on its way."""
        self.wait(lambda: self.said == list(texts) and not self.is_shown("#stop"), lambda: self.said)

    def is_shown(self, selector: str) -> bool:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return bool(found) and found[0].is_displayed()


@pytest.fixture
def chat(chromium: webdriver.Chrome, scripted: ScriptedService) -> Iterator[Chat]:
    """The page, in English and as if for the first time. No test may leave anything in the console."""
    page = Chat(chromium, scripted.origin)
    page.cdp("Storage.clearDataForOrigin", origin=scripted.origin, storageTypes="all")
    page.errors()
    media(page, "light")
    page.open()
    yield page
    chromium.execute_script("sessionStorage.clear()")
    assert page.errors() == []


@pytest.fixture
def answered(chat: Chat, scripted: ScriptedService) -> Chat:
    """Has been asked FIRST, with another answer to choose from."""
    scripted.answer = lambda fields: Reply([SALT, WALK])
    chat.ask(FIRST)
    chat.says(FIRST, SALT)
    return chat


def history(*texts: str) -> list[Fields]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


# Asking


def test_a_question_is_answered_and_the_next_one_brings_what_was_said(
    answered: Chat, scripted: ScriptedService
) -> None:
    assert scripted.calls == [{"question": FIRST, "history": [], "samples": 4, "stream": True}]
    assert answered.text == ""
    assert answered.driver.switch_to.active_element == answered.box
    scripted.answer = lambda fields: Reply(["芹菜。"])
    answered.ask(SECOND)
    answered.says(FIRST, SALT, SECOND, "芹菜。")
    assert scripted.calls[1]["history"] == history(FIRST, SALT)


def test_the_answer_is_seen_as_it_comes(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two three"], stepwise=True)
    chat.ask("x")
    chat.wait(lambda: chat.said == ["x", ""] and chat.is_shown("#stop"))
    assert chat.find(".answer").get_attribute("aria-busy") == "true"
    scripted.go_on()
    chat.wait(lambda: chat.said[-1] == "one")
    scripted.go_on()
    chat.wait(lambda: chat.said[-1] == "one two")
    scripted.go_on()
    scripted.go_on()
    chat.says("x", "one two three")
    assert not chat.driver.find_elements(By.CSS_SELECTOR, "[aria-busy]")


def test_an_example_is_a_question(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([SALT])
    chat.find(".example").click()
    chat.says(FIRST, SALT)
    assert not chat.is_shown("#welcome")


def test_an_example_leaves_what_is_being_written(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([SALT], stepwise=True)
    chat.press("why")
    example = chat.find(".example")
    chat.driver.execute_script("""
      window.visits = 0;
      document.getElementById("box").addEventListener("focus", () => visits++);
    """)
    example.click()
    chat.wait(lambda: scripted.calls)
    assert (chat.text, chat.focused) == ("why", "stop")
    assert chat.driver.execute_script("return visits") == 0, "a phone would open its keyboard"
    for _ in range(len(SALT) + 1):
        scripted.go_on()
    chat.says(FIRST, SALT)
    assert chat.text == "why"


def test_the_button_sends_and_a_blank_question_does_not(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([SALT])
    chat.ask("  ")
    chat.find("#send").click()
    chat.press(Keys.SHIFT, Keys.ENTER)
    assert scripted.calls == []
    chat.press(Keys.CONTROL, "a")
    chat.press(Keys.BACKSPACE, "line one", Keys.SHIFT + Keys.ENTER + Keys.NULL, "line two")
    chat.find("#send").click()
    chat.says("line one\nline two", SALT)
    assert scripted.calls[0]["question"] == "line one\nline two"


def test_enter_within_a_composition_sends_nothing(chat: Chat, scripted: ScriptedService) -> None:
    chat.box.click()
    chat.compose("g", "gao")
    chat.driver.execute_script("""
      const event = new KeyboardEvent("keydown", {key: "Enter", keyCode: 229, isComposing: true, bubbles: true, cancelable: true});
      document.getElementById("box").dispatchEvent(event);
    """)
    assert scripted.calls == []
    chat.settle("高")
    assert chat.text == "高"


def test_while_an_answer_comes_no_other_question_is_sent(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([SALT], stepwise=True)
    chat.ask("x")
    chat.wait(lambda: scripted.calls)
    chat.ask("y")
    for _ in range(9):
        scripted.go_on()
    chat.says("x", SALT)
    assert len(scripted.calls) == 1
    assert chat.text == "y"


# Stopping


def test_what_came_before_it_was_stopped_stays_and_is_history(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two three four five six"], stepwise=True)
    chat.ask("x")
    scripted.go_on()
    scripted.go_on()
    chat.wait(lambda: chat.said[-1:] == ["one two"])
    chat.find("#stop").click()
    chat.wait(lambda: not chat.is_shown("#stop"))
    assert chat.said[1].startswith("one two")
    assert not chat.said[1].endswith("six")
    chat.is_told("Stopped")
    chat.wait(lambda: len(scripted.left) == 1)
    stopped = chat.said[1]
    scripted.answer = lambda fields: Reply(["ok"])
    chat.ask("y")
    chat.says("x", stopped, "y", "ok")
    assert scripted.calls[1]["history"] == history("x", stopped)


def test_stopped_before_a_word_the_question_is_back_in_the_box(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["late"], before_s=5)
    chat.ask("x")
    chat.wait(lambda: scripted.calls)
    chat.press(Keys.ESCAPE)
    chat.says()
    assert chat.text == "x"
    assert chat.is_shown("#welcome")
    chat.wait(lambda: len(scripted.left) == 1)


def test_escape_stops_wherever_the_focus_is(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["late"], before_s=5)
    chat.find(".example").click()
    chat.wait(lambda: scripted.calls)
    assert chat.focused == "stop", "the example that had it is gone"
    chat.press_wherever(Keys.ESCAPE)
    chat.says()
    assert (chat.text, chat.focused) == (FIRST, "box")
    chat.press(Keys.ENTER)
    chat.wait(lambda: len(scripted.calls) == 2)
    chat.driver.execute_script("document.activeElement.blur()")
    chat.press_wherever(Keys.ESCAPE)
    chat.says()
    assert chat.text == FIRST


def test_escape_stops_answering_anew(answered: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["late"], before_s=5)
    answered.find(".last .again").click()
    answered.wait(lambda: len(scripted.calls) == 2)
    assert answered.focused == "stop"
    answered.press_wherever(Keys.ESCAPE)
    answered.says(FIRST, SALT)
    assert answered.focused == "box"


def test_escape_of_an_input_method_stops_nothing(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([SALT], stepwise=True)
    chat.ask("x")
    chat.wait(lambda: scripted.calls)
    escape = """
      const event = new KeyboardEvent("keydown", {key: "Escape", bubbles: true, cancelable: true, ...arguments[0]});
      document.getElementById("box").dispatchEvent(event);
    """
    chat.compose("g", "gao")
    chat.driver.execute_script(escape, {"isComposing": True})
    chat.settle("")
    chat.driver.execute_script(escape, {"keyCode": 229})  # Safari: the composition ends before the key that ended it
    assert chat.is_shown("#stop")
    for _ in range(len(SALT) + 1):
        scripted.go_on()
    chat.says("x", SALT)


# Choosing


def test_another_answer_can_be_chosen_and_is_what_was_said(answered: Chat, scripted: ScriptedService) -> None:
    assert answered.others == [WALK]
    answered.find(".last summary").click()
    answered.find(".last .other").click()
    answered.says(FIRST, WALK)
    assert answered.others == [SALT]
    answered.is_told(f"Taken in its place: {WALK}")
    answered.ask(SECOND)
    answered.says(FIRST, WALK, SECOND, SALT)
    assert scripted.calls[1]["history"] == history(FIRST, WALK)


def test_answering_anew_keeps_the_older_answers_to_choose_from(answered: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["戒烟。", SALT])
    answered.find(".last .again").click()
    answered.says(FIRST, "戒烟。")
    assert scripted.calls[1] == scripted.calls[0]
    assert answered.others == [SALT, WALK]


def test_only_the_last_answer_can_be_changed(answered: Chat, scripted: ScriptedService) -> None:
    answered.ask(SECOND)
    answered.says(FIRST, SALT, SECOND, SALT)
    shown = [b.is_displayed() for b in answered.driver.find_elements(By.CSS_SELECTOR, ".again")]
    assert shown == [False, True]
    assert [b.is_displayed() for b in answered.driver.find_elements(By.CSS_SELECTOR, ".others")] == [False, True]


def test_answering_anew_stopped_or_failed_leaves_what_was_there(answered: Chat, scripted: ScriptedService) -> None:
    answered.expects_network_faults = True
    scripted.answer = lambda fields: Reply(["late"], before_s=5)
    answered.find(".last .again").click()
    answered.wait(lambda: answered.is_shown("#stop"))
    answered.find("#stop").click()
    answered.says(FIRST, SALT)
    scripted.answer = lambda fields: Reply(status=503, code="overloaded")
    answered.find(".last .again").click()
    answered.wait(lambda: "busy" in answered.notice)
    answered.says(FIRST, SALT)
    assert answered.text == ""
    assert "older answer stays" in answered.notice
    assert "below" not in answered.notice


def test_an_answer_is_copied(answered: Chat) -> None:
    answered.cdp(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        origin=answered.origin,
    )
    answered.find(".last .copy").click()
    answered.is_told("Copied")
    script = "navigator.clipboard.readText().then(arguments[0])"
    assert answered.driver.execute_async_script(script) == SALT


def test_a_copy_that_fails_is_told(answered: Chat) -> None:
    answered.is_told(f"Answer: {SALT}")
    answered.driver.execute_script(NO_CLIPBOARD)
    for words in ("It could not be copied.", "没能复制"):
        answered.find(".last .copy").click()
        answered.wait(lambda words=words: answered.notice.startswith(words), lambda: answered.notice)
        assert answered.driver.switch_to.active_element == answered.find(".last .copy")
        assert answered.find(".last .copy").get_attribute("class") == "quiet icon copy"
        answered.find("#language").click()
    assert answered.told == f"Answer: {SALT}"


# Keeping


def test_the_talk_is_there_after_a_reload_and_can_be_cleared(answered: Chat, scripted: ScriptedService) -> None:
    answered.open()
    answered.says(FIRST, SALT)
    assert answered.others == [WALK]
    answered.ask(SECOND)
    answered.says(FIRST, SALT, SECOND, SALT)
    assert scripted.calls[1]["history"] == history(FIRST, SALT)
    answered.find("#clear").click()
    answered.says()
    assert answered.is_shown("#welcome")
    assert not answered.is_shown("#clear")
    answered.open()
    answered.says()
    answered.ask("x")
    answered.says("x", SALT)
    assert scripted.calls[-1]["history"] == []


def test_cleared_while_an_answer_comes_nothing_of_it_comes_back(answered: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two three"], stepwise=True)
    answered.ask("x")
    scripted.go_on()
    answered.wait(lambda: answered.said[-1:] == ["one"])
    answered.find("#clear").click()
    answered.says()
    answered.wait(lambda: len(scripted.left) == 1)
    answered.stays(lambda: answered.said == [] and answered.text == "", 0.3)


def test_what_one_window_clears_is_gone_from_the_other(answered: Chat, scripted: ScriptedService) -> None:
    with answered.two_windows() as (first, second):
        answered.says(FIRST, SALT)
        answered.find("#clear").click()
        answered.says()
        answered.go_to(first)
        answered.says()
        assert answered.is_shown("#welcome")
        answered.ask("x")
        answered.says("x", SALT)
        assert scripted.calls[-1]["history"] == []
        answered.go_to(second)
        answered.says("x", SALT)


def test_two_windows_lose_no_turn(answered: Chat, scripted: ScriptedService) -> None:
    answers = {"x": Reply(["one two"], stepwise=True), "y": Reply(["three"])}
    scripted.answer = lambda fields: answers[fields["question"]]
    answered.ask("x")
    answered.wait(lambda: len(scripted.calls) == 2)
    with answered.two_windows() as (first, second):
        answered.ask("y")
        answered.says(FIRST, SALT, "y", "three")
        answered.go_to(first)
        assert answered.said == [FIRST, SALT, "x", ""], "nothing moves while an answer comes"
        for _ in range(3):
            scripted.go_on()
        for window in (first, second):
            answered.go_to(window)
            answered.says(FIRST, SALT, "y", "three", "x", "one two")


def test_an_answer_brings_nothing_back_that_another_window_cleared(answered: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two"], stepwise=True)
    answered.find(".last .again").click()
    answered.wait(lambda: len(scripted.calls) == 2)
    with answered.two_windows() as (first, _):
        answered.find("#clear").click()
        answered.says()
        answered.go_to(first)
        for _ in range(3):
            scripted.go_on()
        answered.says(FIRST, "one two")
        assert answered.others == []


def test_answering_anew_meets_what_another_window_chose(answered: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two"], stepwise=True)
    answered.find(".last .again").click()
    answered.wait(lambda: len(scripted.calls) == 2)
    with answered.two_windows() as (first, _):
        answered.find(".last summary").click()
        answered.find(".last .other").click()
        answered.says(FIRST, WALK)
        answered.go_to(first)
        for _ in range(3):
            scripted.go_on()
        answered.says(FIRST, "one two")
        assert answered.others == [SALT, WALK]


def test_a_browser_that_keeps_nothing_can_talk(chat: Chat, scripted: ScriptedService) -> None:
    chat.driver.execute_script("""
      for (const name of ["getItem", "setItem"]) Storage.prototype[name] = () => { throw new DOMException("no", "QuotaExceededError"); };
    """)
    scripted.answer = lambda fields: Reply([SALT])
    for asked in ("x", "y"):
        chat.ask(asked)
        chat.wait(lambda asked=asked: chat.said[-2:] == [asked, SALT])
    chat.says("x", SALT, "y", SALT)
    assert scripted.calls[1]["history"] == history("x", SALT)


@pytest.mark.parametrize(
    "damage", ['"no talk"', "[1, null, {}]", '[{"question": "x", "answers": [], "chosen": 0}]', "{"]
)
def test_what_was_kept_by_another_version_is_no_harm(chat: Chat, scripted: ScriptedService, damage: str) -> None:
    chat.driver.execute_script("localStorage.setItem('promptgen.talk', arguments[0])", damage)
    chat.open()
    scripted.answer = lambda fields: Reply([SALT])
    chat.ask("x")
    chat.says("x", SALT)


def test_a_long_talk_is_sent_from_its_end(chat: Chat, scripted: ScriptedService) -> None:
    turns = [{"question": f"q{n}", "answers": [f"a{n}"], "chosen": 0} for n in range(120)]
    chat.driver.execute_script("localStorage.setItem('promptgen.talk', arguments[0])", json.dumps(turns))
    chat.open()
    scripted.answer = lambda fields: Reply(["ok"])
    chat.ask("x")
    chat.wait(lambda: chat.said[-1] == "ok")
    assert scripted.calls[0]["history"] == history(*(f"{who}{n}" for n in range(114, 120) for who in "qa"))
    chat.wait(
        lambda: len(json.loads(chat.driver.execute_script("return localStorage.getItem('promptgen.talk')"))) == 100
    )
    at_end = "return document.documentElement.scrollHeight - innerHeight - scrollY < 4"
    chat.wait(lambda: chat.driver.execute_script(at_end))


# Failing


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(status=503, code="overloaded"), "busy"),
        (Reply(status=504, code="deadline_exceeded"), "too long"),
        (Reply(status=400, code="context_length_exceeded"), "fewer words"),
        (Reply(status=413, code="body_too_large"), "fewer words"),
        (Reply(status=500, code="internal_error", headers={"X-Request-Id": "r-1"}), "under r-1"),
        (Reply(status=502), "or on the way to it."),
    ],
)
def test_a_failure_is_explained_and_the_question_kept(
    chat: Chat, scripted: ScriptedService, reply: Reply, said: str
) -> None:
    chat.expects_network_faults = True
    scripted.answer = lambda fields: reply
    chat.ask("x")
    chat.wait(lambda: said in chat.notice, lambda: chat.notice)
    chat.says()
    assert chat.text == "x"
    scripted.answer = lambda fields: Reply([SALT])
    chat.press(Keys.ENTER)
    chat.says("x", SALT)
    assert chat.notice == ""


def test_a_question_that_failed_stands_before_the_one_being_written(chat: Chat, scripted: ScriptedService) -> None:
    chat.expects_network_faults = True
    scripted.answer = lambda fields: Reply(status=503, code="overloaded", before_s=2)
    chat.ask("x")
    chat.wait(lambda: scripted.calls)
    chat.press("why", Keys.ARROW_LEFT)
    chat.wait(lambda: "stands below" in chat.notice)
    assert chat.text == "x\nwhy"
    assert chat.focused == "box"
    chat.press_wherever("a")
    assert chat.text == "x\nwhay", "the caret is where it was"
    chat.press(Keys.CONTROL, "z")
    chat.press(Keys.CONTROL, "z")
    assert chat.text == "why"


def test_a_question_that_was_stopped_stands_before_the_one_being_written(chat: Chat, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["late"], before_s=5)
    chat.ask("x")
    chat.wait(lambda: scripted.calls)
    chat.press("y", Keys.ESCAPE)
    chat.says()
    assert chat.text == "x\ny"
    scripted.answer = lambda fields: Reply([SALT])
    chat.press(Keys.ENTER)
    chat.says("x\ny", SALT)


def test_a_question_that_failed_does_not_break_into_a_composition(chat: Chat, scripted: ScriptedService) -> None:
    chat.expects_network_faults = True
    scripted.answer = lambda fields: Reply(status=503, code="overloaded", before_s=2)
    chat.ask("x")
    chat.wait(lambda: scripted.calls)
    chat.compose("g", "gao")
    chat.wait(lambda: "stands below" in chat.notice)
    assert chat.text == "gao"
    chat.settle("高")
    chat.wait(lambda: chat.text == "x\n高", lambda: chat.text)


def test_a_key_is_asked_for_and_kept_in_the_tab(chat: Chat, scripted: ScriptedService) -> None:
    chat.expects_network_faults = True
    scripted.key = "open-sesame"
    scripted.answer = lambda fields: Reply([SALT])
    chat.ask("x")
    chat.wait(lambda: chat.is_shown("#key-form"))
    chat.find("#key").send_keys("wrong", Keys.ENTER)
    chat.press(Keys.ENTER)
    chat.wait(lambda: "does not know this key" in chat.notice)
    chat.find("#key").send_keys("open-sesame", Keys.ENTER)
    assert not chat.is_shown("#key-form")
    chat.press(Keys.ENTER)
    chat.says("x", SALT)
    assert chat.driver.execute_script("return JSON.stringify(localStorage)").count("sesame") == 0


def test_markup_is_inert(chat: Chat, scripted: ScriptedService) -> None:
    nasty = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>{text}'
    scripted.answer = lambda fields: Reply([nasty, "</p></li></ol><h1>x</h1>"])
    chat.ask("<b onmouseover=window.pwned=1>{count}")
    chat.says("<b onmouseover=window.pwned=1>{count}", nasty)
    chat.is_told(f"Answer: {nasty}")
    chat.open()
    chat.says("<b onmouseover=window.pwned=1>{count}", nasty)
    counts = "return [window.pwned, document.images.length, document.querySelectorAll('h1').length, document.querySelectorAll('b').length]"
    assert chat.driver.execute_script(counts) == [None, 0, 1, 0]


# Everyone


def test_it_speaks_both_languages_and_always_says_that_it_is_no_doctor(answered: Chat) -> None:
    assert "no doctor" in answered.find(".disclaimer").text
    answered.find("#language").click()
    assert "不是医生" in answered.find(".disclaimer").text
    assert answered.find(".last summary").text == "另外 1 个回答"
    assert answered.find("html").get_attribute("lang") == "zh-CN"
    answered.says(FIRST, SALT)
    answered.open()
    assert answered.find("#language").text == "English"
    assert "问答" in answered.driver.title


def test_both_dictionaries_say_the_same_things(chat: Chat) -> None:
    names, used = chat.driver.execute_async_script("""
      import(location.origin + "/pages/chat-words.js").then(({words}) => arguments[0]([
        Object.values(words).map(said => Object.entries(said).map(([name, text]) => [name, text.match(/\\{\\w+\\}/g)])),
        ["word", "label", "placeholder"].flatMap(kind => [...document.querySelectorAll(`[data-${kind}]`)].map(e => e.dataset[kind])),
      ]));
    """)
    english, chinese = names
    assert english == chinese
    assert set(used) <= {name for name, _ in english}


def test_a_screen_reader_is_told_who_speaks_and_what_happens(answered: Chat) -> None:
    answered.is_told(f"Answer: {SALT}")
    speakers = answered.driver.execute_script(TEXTS, "#talk .unseen")
    assert speakers == ["You:", "Answer:"]
    names = [
        b.get_attribute("aria-label") for b in answered.driver.find_elements(By.CSS_SELECTOR, ".last .tools button")
    ]
    assert names == ["Copy", "Answer anew"]
    assert answered.box.get_attribute("aria-label") == "Your question"
    assert answered.box.get_attribute("aria-describedby") == "disclaimer"


def test_a_screen_reader_is_told_the_same_again(answered: Chat) -> None:
    answered.is_told(f"Answer: {SALT}")
    answered.listen()
    answered.find(".last .copy").click()
    answered.hears("", "Copied")
    answered.find(".last .copy").click()
    answered.hears("", "Copied", "", "Copied")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(chat: Chat, scripted: ScriptedService, theme: str) -> None:
    chat.expects_network_faults = True
    media(chat, theme)
    chat.driver.execute_script(AXE.read_text(encoding="utf-8"))
    assert chat.violations() == []
    scripted.answer = lambda fields: Reply([SALT, WALK])
    chat.ask(FIRST)
    chat.says(FIRST, SALT)
    chat.find(".last summary").click()
    assert chat.violations() == []
    scripted.answer = lambda fields: Reply(status=401, code="invalid_api_key")
    chat.ask("x")
    chat.wait(lambda: chat.is_shown("#key-form"))
    assert chat.violations() == []


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_phone(answered: Chat, width: int) -> None:
    answered.cdp("Emulation.setDeviceMetricsOverride", width=width, height=640, deviceScaleFactor=2, mobile=True)
    try:
        answered.find(".last summary").click()
        widest = answered.driver.execute_script("return document.documentElement.scrollWidth")
        assert widest <= width
        small = answered.driver.execute_script("""
          return [...document.querySelectorAll("button, summary, a")].filter(e => e.checkVisibility())
            .map(e => [e.id || e.className || e.tagName, e.getBoundingClientRect()])
            .filter(([, {width, height}]) => Math.min(width, height) < 24).map(([name]) => name);
        """)
        assert small == []
    finally:
        answered.cdp("Emulation.clearDeviceMetricsOverride")


def test_the_pages_lead_to_one_another(chat: Chat) -> None:
    chat.find(".name a").click()
    chat.wait(lambda: chat.driver.current_url == chat.origin + "/")
    chat.find("nav a").click()
    chat.wait(lambda: chat.driver.current_url == chat.origin + "/chat")


def test_the_real_service_answers_and_asks_on(chromium: webdriver.Chrome, service: str) -> None:
    chat = Chat(chromium, service)
    chat.cdp("Storage.clearDataForOrigin", origin=service, storageTypes="all")
    chat.errors()
    chat.open()
    for turn, question in enumerate([FIRST, SECOND], 1):
        chat.ask(question)
        chat.wait(
            lambda turn=turn: len(chat.said) == 2 * turn and chat.said[-1] and chat.is_shown("#send"), timeout_s=30
        )
    assert chat.said[0::2] == [FIRST, SECOND]
    requests: list[Any] = chat.driver.execute_script(
        "return performance.getEntriesByType('resource').map(({name}) => new URL(name).origin)"
    )
    assert set(requests) == {service}
    assert chat.errors() == []
