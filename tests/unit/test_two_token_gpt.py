"""The lesson in examples/ counts its text rightly, learns what it counted, and draws arrows as thick as they are likely."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "two_token_gpt.py"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the script sets it, and only for this file."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def gpt() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_token_gpt", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def moments(gpt: ModuleType) -> list[Any]:
    return list(gpt.lesson(50))


def test_what_followed_each_state_is_counted(gpt: ModuleType) -> None:
    assert gpt.counted("111101111011110") == {"011": (0, 2), "101": (0, 2), "110": (0, 2), "111": (3, 3)}


def test_the_lowest_loss_is_that_of_the_counted_shares(gpt: ModuleType) -> None:
    def entropy(share: float) -> float:
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    # Of 12 windows: 10 begin with 1, 8 of them go on with 1; 8 begin with 11, 6 go on with 1; 6 begin with 111, 3 go on with 1.
    expected = (10 * entropy(8 / 10) + 8 * entropy(6 / 8) + 6 * entropy(3 / 6)) / 36
    assert gpt.lowest_loss("111101111011110") == pytest.approx(expected)
    assert gpt.lowest_loss("10101010") == 0


def test_the_batch_holds_every_window_and_what_followed(gpt: ModuleType) -> None:
    batch = gpt.training_batch("1101001")
    assert batch.tokens.tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert batch.labels.tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2]] * 4
    assert batch.segments.tolist() == [[1, 1, 1]] * 4


def test_the_lesson_goes_from_ignorance_over_frequency_to_the_counts(gpt: ModuleType, moments: list[Any]) -> None:
    before, after, converged, counted = (moment.chance_of_one for moment in moments)
    assert [moment.title for moment in moments[:2]] == ["before training", "after 50 steps"]
    assert moments[2].title.startswith("converged: ")
    assert list(before) == list(after) == list(converged) == gpt.STATES
    assert all(0.35 < chance < 0.65 for chance in before.values())
    assert all(after[state] == pytest.approx(29 / 36, abs=0.06) for state in counted)
    assert counted == {"011": 1.0, "101": 1.0, "110": 1.0, "111": 0.5}
    assert {state: converged[state] for state in counted} == pytest.approx(counted, abs=0.03)


def test_the_table_shows_counts_and_marks_what_was_never_seen(gpt: ModuleType, moments: list[Any]) -> None:
    rows = gpt.text_table(moments).splitlines()[1:]
    assert [row.split()[0] for row in rows] == gpt.STATES
    assert [row.split()[0] for row in rows if "unseen" in row] == ["000", "001", "010", "100"]
    assert rows[7].endswith("50.0%  (3 of 6)")


def test_the_text_graph_leads_on_and_its_arrows_are_as_long_as_likely(gpt: ModuleType) -> None:
    graph = gpt.text_graph(gpt.Moment("now", {"110": 0.75, "011": 0.0}))
    assert graph.splitlines() == [
        "--- now ---",
        "110 +0 100  25.0% =====>",
        "    +1 101  75.0% ===============>",
        "011 +0 110 100.0% ====================>",
        "    +1 111   0.0% >",
    ]


def test_the_svg_shows_every_state_and_arrow(gpt: ModuleType, moments: list[Any], tmp_path: Path) -> None:
    canvas = gpt.Svg()
    gpt.draw(canvas, moments)
    canvas.save(tmp_path / "graph.svg")
    root = ElementTree.parse(tmp_path / "graph.svg").getroot()
    words = [word.text or "" for word in root.iter(f"{SVG}text")]
    assert [word for word in words if re.fullmatch("[01]{3}", word)] == [*gpt.PLACES] * 4
    assert sum("%" in word for word in words) == 3 * 16 + 5  # what the text never does has no arrow
    assert sum("stroke-dasharray" in circle.attrib for circle in root.iter(f"{SVG}circle")) == 4 * 4


def test_a_likelier_arrow_is_thicker_and_none_is_called_certain_that_is_not(gpt: ModuleType) -> None:
    drawn = []
    for chance in (0.001, 0.25, 0.5, 0.999, 1.0):
        canvas = gpt.Svg()
        gpt.draw_arrow(canvas, gpt.arrow_path((100, 100), (300, 200)), chance, "#000000")
        text = "".join(canvas._lines)
        width, label = re.search(r'stroke-width="([\d.]+)"', text), re.search(r">([^<>]+)</text>", text)
        assert width is not None
        assert label is not None
        drawn.append((float(width[1]), label[1]))
    assert [label for _, label in drawn] == ["&lt;1%", "25%", "50%", "&gt;99%", "100%"]
    assert [width for width, _ in drawn] == [0.7, 2.0, 4.0, 8.0, 8.0]


def test_no_label_of_the_graph_lies_on_another_or_on_a_circle(gpt: ModuleType) -> None:
    class Labels(gpt.Svg):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.places: list[tuple[float, float]] = []

        def words(self, middle: tuple[float, float], text: str, size: float, colour: str = "") -> None:
            if "%" in text:
                self.places.append(middle)

    for chance in (0.002, 0.5, 0.998):
        canvas = Labels()
        gpt.draw_graph(canvas, gpt.Moment("", dict.fromkeys(gpt.STATES, chance)), (0, 0))
        assert len(canvas.places) == 16
        for (x, y), (other_x, other_y) in combinations(canvas.places, 2):
            assert abs(x - other_x) > 46 or abs(y - other_y) > 20
        for x, y in canvas.places:
            assert 24 < x < gpt.PANEL_WIDTH - 24
            for place in gpt.PLACES.values():  # the nearest point of the label's plate
                away = math.hypot(max(0, abs(x - place[0]) - 24), max(0, abs(y - place[1]) - 10))
                assert away > gpt.RADIUS


def test_the_script_prints_and_saves_the_same_each_time(
    gpt: ModuleType, moments: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpt.main(["--out", str(tmp_path / "new" / "folder")]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert gpt.text_table(moments) in printed
    assert all(gpt.text_graph(moment) in printed for moment in moments)
    assert (tmp_path / "new" / "folder" / "two_token_gpt.svg").read_text(encoding="utf-8").startswith("<svg ")
    if importlib.util.find_spec("matplotlib") is not None:
        assert (tmp_path / "new" / "folder" / "two_token_gpt.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_without_matplotlib_the_svg_is_all(
    gpt: ModuleType,
    moments: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpt.importlib.util, "find_spec", lambda name: None)
    gpt.save(tmp_path, moments)
    assert [path.name for path in tmp_path.iterdir()] == ["two_token_gpt.svg"]
    assert "pip install 'promptgen[train]'" in capsys.readouterr().out


def test_what_cannot_be_is_refused(
    gpt: ModuleType,
    moments: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        gpt.main(["--out", str(tmp_path), "--steps", "0"])
    assert caught.value.code == 2
    (tmp_path / "file").touch()
    monkeypatch.setattr(gpt, "lesson", lambda steps: moments)
    assert gpt.main(["--out", str(tmp_path / "file")]) == 5
    assert f"{tmp_path / 'file'} cannot be written: " in capsys.readouterr().err
