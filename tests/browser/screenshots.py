"""Makes the pictures of docs/pictures anew: the page over the real service and the shipped model, typed into by Chromium.

    python tests/browser/screenshots.py [NAME ...]

Chinese needs a font (Debian: fonts-noto-cjk). Look at what comes out before it is committed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from conftest import new_chromium, start_service  # noqa: E402
from PIL import Image  # noqa: E402
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
COLOURS = 256
SETTLED_S = 0.8  # bars and rows have come to rest


@dataclass(frozen=True)
class TalkPicture:
    """A talk on the chat page; the other answers to the last question are shown if `opened`."""

    name: str
    questions: tuple[str, ...]
    theme: str = "light"
    language: str = "zh-CN"
    width: int = 900
    height: int = 720
    opened: bool = False


TALK_LIST = (
    TalkPicture("chat", ("高血压要注意什么？", "那饮食呢？"), opened=True),
    TalkPicture("chat-phone", ("失眠怎么办？",), theme="dark", width=390),
)


@dataclass(frozen=True)
class Picture:
    """What is typed, in which looks, and what is done before the shutter."""

    name: str
    text: str
    theme: str = "light"
    language: str = "en"
    width: int = 900
    height: int = 560
    touch: bool = False
    keys: str = ""
    drawer: str = ""


PICTURE_LIST = (
    Picture("light", "How can I lower my risk of", keys=Keys.ARROW_DOWN),
    Picture("dark", "Write a short story about", theme="dark", keys=Keys.ARROW_DOWN * 2),
    Picture("chinese", "高血压要注意", language="zh-CN", keys=Keys.ARROW_DOWN * 3),
    Picture("settings", "帮我写一首关于", theme="dark", language="zh-CN", drawer="settings", height=720),
    Picture("phone", "失眠的时候", language="zh-CN", width=390, height=720, touch=True),
)


def look(driver: webdriver.Chrome, origin: str, picture: Picture | TalkPicture, *, touch: bool) -> None:
    """Opens a page in the looks of a picture, with nothing kept from before."""
    driver.get(origin)
    driver.execute_script("localStorage.clear()")
    for name, value in (("language", picture.language), ("settings", {"seed": 1})):
        driver.execute_script(
            "localStorage.setItem('promptgen.' + arguments[0], arguments[1])", name, json.dumps(value)
        )
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": picture.width, "height": picture.height, "deviceScaleFactor": 2, "mobile": touch},
    )
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": picture.theme}]}
    )
    driver.get(origin)


def take_talk(driver: webdriver.Chrome, origin: str, picture: TalkPicture) -> None:
    look(driver, origin, picture, touch=False)
    for number, question in enumerate(picture.questions, 1):
        driver.find_element(By.ID, "box").send_keys(question, Keys.ENTER)
        end = time.monotonic() + 30
        while len(driver.find_elements(By.CSS_SELECTOR, ".turn:not(.pending)")) < number:
            assert time.monotonic() < end, "no answer"
            time.sleep(0.05)
    if picture.opened:
        driver.execute_script("document.querySelector('.last details').open = true")
    driver.execute_script("scrollTo(0, document.documentElement.scrollHeight)")
    time.sleep(SETTLED_S)
    save(driver.get_screenshot_as_png(), PICTURES / f"{picture.name}.png")


def take(driver: webdriver.Chrome, origin: str, picture: Picture) -> None:
    look(driver, origin, picture, touch=picture.touch)
    box = driver.find_element(By.ID, "box")
    for character in picture.text:
        box.send_keys(character)
        time.sleep(0.1)
    time.sleep(SETTLED_S)
    box.send_keys(picture.keys)
    if picture.drawer:
        driver.find_element(By.CSS_SELECTOR, f"[popovertarget={picture.drawer}]").click()
    time.sleep(SETTLED_S)
    save(driver.get_screenshot_as_png(), PICTURES / f"{picture.name}.png")


def save(png: bytes, path: Path) -> None:
    """With few colours, which is enough for letters on paper, and a quarter of the size."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1024} KiB, {image.width} x {image.height}")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        origin = start_service(stack) + "/"
        profile = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        driver = new_chromium(Path(profile))
        stack.callback(driver.quit)
        wanted = set(sys.argv[1:])
        for picture in PICTURE_LIST:
            if not wanted or picture.name in wanted:
                take(driver, origin, picture)
        for talk in TALK_LIST:
            if not wanted or talk.name in wanted:
                take_talk(driver, origin + "chat", talk)


if __name__ == "__main__":
    main()
