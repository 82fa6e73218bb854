"""The page and promptgen.js over the real service and the shipped model."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from conftest import KEY
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

pytestmark = pytest.mark.browser

FRONTEND = Path(__file__).resolve().parents[2] / "docs" / "frontend.md"


def wait_for_texts(driver: webdriver.Chrome, selector: str, beginning: str) -> list[str]:
    """The texts of five elements, once all of them begin so."""
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    end = time.monotonic() + 10
    while True:
        texts = list(driver.execute_script(script, selector))
        if len(texts) == 5 and all(text.startswith(beginning) for text in texts):
            return texts
        assert time.monotonic() < end, texts
        time.sleep(0.02)


def test_the_page_suggests_and_takes(chromium: webdriver.Chrome, service: str) -> None:
    chromium.get(service + "/")
    chromium.get_log("browser")
    box = chromium.find_element(By.ID, "box")
    for character in "高血压要注意":
        box.send_keys(character)
    WebDriverWait(chromium, 10).until(lambda driver: driver.find_element(By.ID, "took").text)
    rows = wait_for_texts(chromium, "#candidates li", "高血压要注意")
    assert len(set(rows)) == 5
    assert min(map(len, rows)) > len("高血压要注意")
    box.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    assert box.get_property("value") == rows[1]
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def test_a_word_cut_in_the_middle_is_healed(chromium: webdriver.Chrome, service: str) -> None:
    chromium.get(service + "/")
    chromium.find_element(By.ID, "box").send_keys("How can I lo")
    rows = wait_for_texts(chromium, "#candidates li", "How can I lo")
    assert all(re.match("How can I lo[a-z]", row) for row in rows), rows


def test_the_example_of_the_documentation_works_on_another_origin_with_a_key(
    chromium: webdriver.Chrome, guarded: str, foreign_page: str, foreign_folder: Path
) -> None:
    example = re.search(r"```html\n(.*?)```", FRONTEND.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    assert len(example[1].splitlines()) == 10
    page = example[1].replace("http://127.0.0.1:5005", guarded).replace("YOUR-KEY", KEY)
    (foreign_folder / "example.html").write_text(page, encoding="utf-8")
    chromium.get(foreign_page + "example.html")
    box = chromium.find_element(By.ID, "box")
    box.send_keys("高血压要")
    box.send_keys("注意")
    wait_for_texts(chromium, "#list li", "高血压要注意")


def test_the_page_of_a_service_with_keys_opens_without_one(chromium: webdriver.Chrome, guarded: str) -> None:
    chromium.get(guarded + "/")
    chromium.find_element(By.ID, "box").send_keys("高血压要注意")
    key = chromium.find_element(By.ID, "key")
    WebDriverWait(chromium, 10).until(lambda _: key.is_displayed())
    key.send_keys(KEY, Keys.ENTER)
    wait_for_texts(chromium, "#candidates li", "高血压要注意")
