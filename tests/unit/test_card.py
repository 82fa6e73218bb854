"""The model card carries the figures of eval.json and keeps what people wrote below the marker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptgen.training.card import MARKER, write_card

REPORT: dict[str, Any] = {
    "held_out": {
        "documents": 12,
        "tokens": 99,
        "characters": 150,
        "loss_per_token": 1.5,
        "perplexity_per_token": 4.482,
        "loss_per_character": 0.9,
        "perplexity_per_character": 2.46,
    },
    "unknown_token_share": 0.0,
    "parameters": 5528064,
    "model_bytes": 11060000,
    "vocabulary": {"tokens": 9000, "sha256": "0" * 64},
    "corpus": {"documents": 200, "dialogues": 30, "tokens": 4000},
}


def test_card_states_the_figures(tmp_path: Path) -> None:
    write_card(tmp_path, REPORT)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for figure in ("4.482", "2.46", "5,528,064", "11.1 MB", "9,000 tokens", "200 documents, 30 dialogues"):
        assert figure in card


def test_card_written_anew_keeps_what_people_wrote(tmp_path: Path) -> None:
    write_card(tmp_path, REPORT)
    path = tmp_path / "README.md"
    path.write_text(path.read_text(encoding="utf-8") + "\nNo medical advice.\n", encoding="utf-8")
    write_card(tmp_path, REPORT | {"parameters": 1234567})
    card = path.read_text(encoding="utf-8")
    assert "1,234,567" in card
    assert card.endswith("\nNo medical advice.\n")
    assert card.count(MARKER) == 1


def test_a_readme_that_is_a_persons_is_kept_whole_below_the_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# My project\n" + b"\xff\n")
    write_card(tmp_path, REPORT)
    write_card(tmp_path, REPORT)
    card = (tmp_path / "README.md").read_bytes()
    assert card.endswith(b"# My project\n" + b"\xff\n")
    assert card.count(MARKER.encode()) == 1


def test_card_names_the_runs_a_model_continued(tmp_path: Path) -> None:
    shape = {"layers": 4, "width": 256, "heads": 4, "window": 256}
    first = shape | {"steps": 1866, "tokens": 10_700_000, "seconds": 2383}
    write_card(
        tmp_path, REPORT | {"training": shape | {"steps": 653, "tokens": 3_700_000, "seconds": 690, "before": first}}
    )
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "653 steps, 3,700,000 tokens, 12 minutes after 1,866 steps, 10,700,000 tokens, 40 minutes" in card


def test_card_carries_the_typing_figures_the_accuracy_and_the_samples(tmp_path: Path) -> None:
    figures = {"keystrokes_saved": 0.4321, "mrr_at_5": 0.5, "hit_at_5": 0.6}
    none = {"keystrokes_saved": None, "mrr_at_5": None, "hit_at_5": None}
    report = REPORT | {
        "held_out": REPORT["held_out"] | {"top_1_accuracy": 0.655, "top_5_accuracy": 0.9},
        "typing": {"prompts": 300, "characters": 9000, "model": figures, "trie": none, "five_gram": figures},
        "samples": [{"given": "高血压", "continuation": "要*注意*|<b>\n"}, {"given": "完", "continuation": ""}],
    }
    (tmp_path / "curves.png").write_bytes(b"")
    write_card(tmp_path, report)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for told in (
        "| this model | 43.2% | 0.500 | 60.0% |",
        "| most popular among the training prompts | - | - | - |",
        "65.5%, 90.0%",
        r"- 高血压 **要\*注意\*\|&lt;b>**",
        "- 完 **(end)**",
        "![curves](curves.png)",
    ):
        assert told in card
    assert "typing.png" not in card


def test_card_of_a_byte_level_model_names_its_token(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    write_card(tmp_path, REPORT)
    assert "begins with token `<|endoftext|>`" in (tmp_path / "README.md").read_text(encoding="utf-8")
