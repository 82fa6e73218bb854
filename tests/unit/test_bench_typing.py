"""Traces are typed as people type and are the same each time, every computed token is counted once and for whom, and a small run goes through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from bench import typing as bench
from bench.counting import Counts, Meter
from bench.healing import Cut, cuts_of, is_found, summarize
from bench.peer.typing_task import Key, read_task, time_keystrokes
from bench.peer.weights import read_weights
from bench.traces import (
    MAX_BURST,
    MAX_GAP_S,
    MIN_GAP_S,
    How,
    Keystroke,
    counts,
    first_keystrokes,
    make_traces,
    read_prompts,
    typed,
)
from bench.typing import Bench, Outcome
from bench.typing_peers import PEERS, WARM_UP, best_ratio, make_task
from promptgen.config import EngineSettings
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.candidates import CandidateSet
from promptgen.generation.dialogue import Dialogue
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.healing import Healer
from promptgen.generation.loader import ModelInfo, OpenModel
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.request import Answer, Candidate, Sampling, TextRequest, TokenEvent
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary

PROMPTS = ["高血压要注意什么，怎么办？", "how to translate a letter", "周末去杭州 with a friend", "写一封邮件"]
WORDS = ["高", "血", "压", "高血", "高血压", "要", "注", "意", "注意", "，", "how", "to", "tr", "trans", "##late", "a"]
TOKENIZER = BertWordTokenizer(Vocabulary.of(["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", *WORDS]))
SHAPE = Gpt2Shape(vocabulary=TOKENIZER.size, window=64, width=16, layers=1, heads=2, inner=64, epsilon=1e-5)


# ---- Traces ----


def some_keys(seed: int = 0, number: int = 2000) -> list[Keystroke]:
    return list(islice(typed(PROMPTS, seed, 0), number))


def test_a_trace_is_a_function_of_seed_and_person() -> None:
    assert some_keys() == some_keys()
    assert some_keys() != some_keys(1)
    one, other = make_traces(["同一句话怎么写"], 2, 0, seconds=30)
    assert one != other


def test_every_keystroke_adds_what_comes_at_once_or_takes_a_character_back() -> None:
    for before, key in pairwise(some_keys()):
        assert MIN_GAP_S <= key.gap_s <= MAX_GAP_S
        if key.kind == "back":
            assert key.text == before.text[:-1]
        elif key.text.startswith(before.text):
            # A prompt that begins with a space shows nothing new until its first character.
            assert 1 <= len(key.text) - len(before.text) <= MAX_BURST
        else:
            assert before.text in PROMPTS, "the next prompt begins when one is finished"


def test_only_chinese_comes_in_bursts() -> None:
    for before, key in pairwise(some_keys()):
        new = key.text[len(before.text) :] if key.text.startswith(before.text) else key.text
        if key.kind == "burst":
            assert 2 <= len(new) <= MAX_BURST
            assert all("\u4e00" <= char <= "\u9fff" for char in new)
        elif key.kind == "key":
            assert len(new) == 1


def test_what_is_wrong_is_taken_back_before_typing_goes_on() -> None:
    keys = some_keys()
    right = ""
    num_mistakes = 0
    for before, key in pairwise(keys):
        if key.kind == "wrong" and before.kind != "wrong":
            right = before.text
            num_mistakes += 1
            assert not any(prompt.startswith(key.text) for prompt in PROMPTS)
        if before.kind == "back" and key.kind != "back":
            assert before.text == right
    assert 0.02 < num_mistakes / len(keys) < 0.06


def test_every_prompt_is_typed_to_its_end_in_turn() -> None:
    whole = [key.text for key in some_keys() if key.text in PROMPTS and key.kind in ("key", "burst")]
    assert whole[: 2 * len(PROMPTS)] == PROMPTS * 2


def test_traces_last_as_long_as_asked_and_are_counted() -> None:
    for trace in make_traces(PROMPTS, 3, 0, seconds=20):
        assert 20 - MAX_GAP_S < sum(key.gap_s for key in trace) <= 20
        told = counts(trace)
        assert told["keystrokes"] == len(trace) == sum(told[kind] for kind in ("key", "burst", "wrong", "back"))
    typing: list[tuple[str, How]] = [("a", "key"), ("ax", "wrong"), ("a", "back"), ("ab", "key"), ("高血", "burst")]
    told = counts([Keystroke(0.1, text, kind) for text, kind in typing])
    assert told == {"keystrokes": 5, "prompts": 2, "key": 2, "burst": 1, "wrong": 1, "back": 1}
    assert first_keystrokes(PROMPTS, 0, 7) == some_keys()[:7]


def test_prompts_too_short_to_be_typed_are_left_out(tmp_path: Path) -> None:
    text = tmp_path / "held_out.txt"
    text.write_text("abc\n\n" + "\n".join(f"Prompt number {n} " + "x" * 99 for n in range(20)), encoding="utf-8")
    prompts = read_prompts(text, 0)
    assert len(prompts) == 20
    assert all(prompt.startswith("prompt number") and len(prompt) == 64 for prompt in prompts)
    assert prompts == read_prompts(text, 0) != read_prompts(text, 1)


# ---- Counting ----


class Counted:
    """A small random model, an engine over it, and its meter."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: (0.5 * torch.randn(size, generator=generator)).numpy() for name, size in SHAPE.tensors().items()
        }
        memory = Memory(
            SHAPE, max_rows=16, num_prompt_slots=32, banned_ids=TOKENIZER.banned_ids, end_id=TOKENIZER.end_id
        )
        self.engine = Engine(memory, EagerGpt2(memory, weights))
        self.healer = Healer(TOKENIZER)
        self.meter = Meter(self.engine)
        self.num_spelled = 0  # tokens that only spell what was typed

    def start(self, request_id: int, request: TextRequest) -> CandidateSet:
        candidates = CandidateSet(TOKENIZER, request, self.healer, window=SHAPE.window)
        for part in candidates.requests:
            self.engine.add(request_id, part)
        return candidates

    def run(self, request_id: int, request: TextRequest) -> Counts:
        """What one request took."""
        self.meter.restart()
        self.start(request_id, request)
        while self.engine.has_work:
            self.engine.step()
        return self.meter.counts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def asked(prompt: str = "要注意，", salt: str = "", **told: object) -> TextRequest:
    plain: dict[str, object] = {"heal": False, "distinct": False, "ignore_end": True, "rank": "none"}
    return TextRequest(prompt, 3, 4, Sampling(seed=2), salt=salt, **plain | told)  # type: ignore[arg-type]


def test_a_call_from_scratch_computes_its_prompt_and_all_but_the_first_tokens(counted: Counted) -> None:
    length = 1 + len(TOKENIZER.encode("要注意，"))
    told = counted.run(0, asked())
    assert (told.read, told.found, told.fed, told.first, told.recalled) == (length, 0, 3 * 3, 3, 0)
    assert told.computed == length + 9
    assert told.drawn == counted.engine.stats.num_generated_tokens == 12
    assert told.read == counted.engine.stats.num_prompt_tokens
    again = counted.run(1, asked())
    assert (again.read, again.found, again.fed) == (0, length, 9)
    assert counted.run(2, asked(salt="another")) == Counts(*told_but_time(told), counted.meter.counts.step_s)


def told_but_time(told: Counts) -> tuple[int, ...]:
    return told.read, told.found, told.fed, told.shared, told.first, told.recalled, told.left, told.steps


def test_what_a_session_recalls_is_not_computed_again(counted: Counted) -> None:
    first = counted.run(0, asked(session="me"))
    again = counted.run(1, asked(session="me"))
    assert (first.recalled, first.drawn) == (0, 12)
    assert (again.recalled, again.first, again.fed, again.computed) == (9, 3, 0, 0)
    figures = again.figures(1)
    assert figures["recalled"] == 0.75
    assert figures["found"] == 1.0


def test_tokens_of_a_healed_prompt_are_counted_once_and_for_their_request(counted: Counted) -> None:
    told = counted.run(7, asked("要高血", heal=True))
    assert told.read == counted.engine.stats.num_prompt_tokens > 0
    assert sum(counted.meter._of.values()) == counted.meter._of[7] == told.computed


def test_drawn_tokens_are_those_given_out_but_for_what_spells_a_beginning(counted: Counted) -> None:
    candidates = counted.start(0, asked("要高血", heal=True))
    (part,) = candidates.requests
    paths = {pick: branch.path_ids for pick, branch in enumerate(part.branches)}
    assert any(paths.values())
    counted.meter.restart()
    given: dict[int, list[int]] = {}
    while counted.engine.has_work:
        for event in counted.engine.step():
            if isinstance(event, TokenEvent):
                given.setdefault(event.sample, []).append(event.token_id)
    covers = [(branch.path_ids, set(branch.cover_ids.tolist())) for branch in part.branches]
    spelled = sum(
        len(path)
        for ids in given.values()
        for path, cover in covers
        if tuple(ids[: len(path)]) == path and ids[len(path)] in cover
    )
    assert counted.meter.counts.drawn == sum(map(len, given.values())) - spelled


def test_work_for_requests_that_were_given_up_is_told_apart(counted: Counted) -> None:
    counted.meter.restart()
    counted.start(0, asked())
    counted.start(1, asked("how to "))
    for _ in range(2):
        counted.engine.step()
    counted.engine.cancel(0)
    counted.engine.cancel(1, sample=2)
    while counted.engine.has_work:
        counted.engine.step()
    told = counted.meter.counts
    assert told.left == counted.meter._of[0] > 0
    assert told.left + counted.meter._of[1] == told.computed
    assert counted.meter.counts.figures(2)["wasted"] == round(told.left / told.computed, 4)


# ---- Figures ----


def test_percentiles_are_over_answered_keystrokes_and_superseded_ones_count_as_never() -> None:
    outcomes = [Outcome(n, 10.0 * n) for n in range(1, 20)] + [Outcome(5.0, None)]
    row = bench.summarize(outcomes)
    assert (row["all50"], row["all95"], row["first50"], row["superseded"]) == (100.0, 190.0, 10, 0.05)
    assert row["all95+"] == 190.0
    assert bench.summarize([*outcomes, Outcome()])["all95+"] is None
    assert bench.summarize([Outcome()])["all50"] is None


@pytest.mark.parametrize("has_pauses", [True, False])
@pytest.mark.parametrize("reuse", ["nothing", "prefix", "session"])
def test_people_type_over_one_engine(has_pauses: bool, reuse: bench.Reuse) -> None:
    def load(settings: EngineSettings) -> OpenModel:
        info = ModelInfo("small", SHAPE.window, TOKENIZER.size, 1, 16, 2)
        return OpenModel(TOKENIZER, Healer(TOKENIZER), Counted().engine, info, Dialogue(TOKENIZER, SHAPE.window))

    async def run() -> dict[str, float]:
        engine = AsyncEngine(EngineSettings(max_rows=16, prompt_slots=32), load)
        await engine.start()
        texts = ["高", "高血", "高血压", "高血压要", "高血压要注意"]
        people = 2 if has_pauses else 1
        row = await Bench(engine, 0).run(
            [[Keystroke(0.05, t, "key") for t in texts]] * people, reuse, has_pauses=has_pauses
        )
        assert engine.num_active == 0
        await engine.stop()
        return row

    row = asyncio.run(run())
    assert row["keystrokes"] == (10 if has_pauses else 5)
    assert 0 < row["first50"] <= row["all50"] <= row["all99"]
    assert row["computed"] == pytest.approx(row["read"] + row["fed"] - row["shared"], abs=0.03)
    if reuse != "session":
        assert row["recalled"] == 0
    if not has_pauses:  # else it depends on the machine how many are superseded before anything is drawn
        assert (row["recalled"] > 0) == (reuse == "session")
        assert row["superseded"] == row["wasted"] == 0


def test_who_types_faster_than_the_engine_supersedes_himself() -> None:
    def load(settings: EngineSettings) -> OpenModel:
        info = ModelInfo("small", SHAPE.window, TOKENIZER.size, 1, 16, 2)
        return OpenModel(TOKENIZER, Healer(TOKENIZER), Counted().engine, info, Dialogue(TOKENIZER, SHAPE.window))

    async def run(reuse: bench.Reuse) -> dict[str, float]:
        engine = AsyncEngine(EngineSettings(max_rows=16, prompt_slots=32), load)
        await engine.start()
        row = await Bench(engine, 0).run([[Keystroke(0.0, "高血压要注意", "key")] * 40], reuse, has_pauses=True)
        await engine.stop()
        return row

    for reuse in ("prefix", "session"):
        row = asyncio.run(run(reuse))
        assert 0.9 < row["superseded"] < 1
        assert row["all95+"] is None


# ---- Healing ----


def test_cuts_know_the_word_that_they_fall_into() -> None:
    cuts = cuts_of(TOKENIZER, "how to translate 高血压，要")
    told = {cut.typed: (cut.rest, cut.is_word_end) for cut in cuts}
    assert told["h"] == ("ow", False)
    assert told["how"] == (" to", True)
    assert told["how "] == ("to", True)
    assert told["how to tr"] == ("ans", False)
    assert told["how to trans"] == ("late", False)
    assert told["how to translate"] == ("高血压", True)
    assert told["how to translate高血"] == ("压", False)
    assert told["how to translate高血压"] == ("，", True)
    assert len(cuts) == len("how to translate高血压，要") - 1
    assert cuts_of(TOKENIZER, "高血压病") == []


def test_a_word_is_found_when_a_candidate_goes_on_with_it() -> None:
    def answer(*texts: str, redrawn: int = 0) -> Answer:
        return Answer(tuple(Candidate(text, 1, None, "stop") for text in texts), 1, num_redrawn=redrawn)

    cuts = [Cut("高", "血压", False), Cut("how", " to", True)]
    five = ("血压要", "血", "a", "b", "c")
    assert is_found(cuts[0], answer(*five))
    assert not is_found(cuts[1], answer("to a", " t"))
    told = summarize(cuts, {0: answer(*five), 1: answer(" to", " to", "x", "y", "z", redrawn=1)})
    assert told["found"] == {"everywhere": 1.0, "word ends": 1.0, "within words": 1.0}
    assert (told["distinct"], told["redrawn"], told["cuts"]) == (0.5, 0.5, 2)


# ---- Peers ----


def test_peers_get_the_ids_that_we_read(random_words_model: Path) -> None:
    trace = [Keystroke(0.1, "高血压"[: 1 + n % 3], "key") for n in range(WARM_UP + 4)]
    task_file = random_words_model / "task.json"
    task_file.write_text(json.dumps(make_task(random_words_model, trace, 0)), encoding="utf-8")
    task = read_task(task_file)
    assert (len(task.warm_up), len(task.keys)) == (WARM_UP, 4)
    for key, stroke in zip(task.keys, trace[WARM_UP:], strict=True):
        assert key == Key(stroke.text, (TOKENIZER.begin_id, *TOKENIZER.encode(stroke.text)))
    assert task.end_id == TOKENIZER.end_id
    assert (task.temperature, task.top_k, task.top_p) == (0.5, 7, 0.9)


@pytest.fixture
def random_words_model(tmp_path: Path) -> Path:
    TOKENIZER.vocabulary.save(tmp_path / "vocab.txt")
    told = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(told), encoding="utf-8")
    return tmp_path


def test_warming_up_is_not_timed_and_too_long_answers_are_refused(
    random_words_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = [Keystroke(0.1, "高", "key")] * (WARM_UP + 3)
    task_file = random_words_model / "task.json"
    task_file.write_text(json.dumps(make_task(random_words_model, trace, 0)), encoding="utf-8")
    task = read_task(task_file)
    seeds: list[int] = []

    def answer(key: Key, seed: int) -> list[int]:
        seeds.append(seed)
        return [15, 3, 0, 1, 1]

    time_keystrokes("mine", task, answer)
    told = json.loads(capsys.readouterr().out)
    assert len(seeds) == len(set(seeds)) == WARM_UP + 3
    assert (told["engine"], len(told["ms"]), told["candidates"], told["tokens"]) == ("mine", 3, [5] * 3, [20] * 3)
    for bad in ([16], [], [1] * 6):
        with pytest.raises(AssertionError):
            time_keystrokes("mine", task, lambda key, seed, bad=bad: bad)  # type: ignore[misc]


def test_the_best_peer_is_the_one_with_the_fewest_milliseconds() -> None:
    rows = {
        "ours": {"p50": 4.0, "mean": 5.0},
        "ours, nothing kept": {"p50": 1.0, "mean": 1.0},
        "ours, HTTP": {"p50": 6.0, "mean": 6.0},
        "openvino int8": {"p50": 12.0, "mean": 13.0},
        "llama-server q8_0, calls": {"p50": 24.0, "mean": 12.0},
    }
    assert set(rows) <= set(PEERS)
    assert best_ratio(rows) == {
        "ours, p50": {"times": 3.0, "peer": "openvino int8"},
        "ours, mean": {"times": 2.4, "peer": "llama-server q8_0, calls"},
        "ours, HTTP, p50": {"times": 4.0, "peer": "llama-server q8_0, calls"},
        "ours, HTTP, mean": {"times": 2.0, "peer": "llama-server q8_0, calls"},
    }


def test_weights_of_half_precision_are_read_as_they_are(tmp_path: Path) -> None:
    half = {"transformer.wte.weight": np.array([[0.5, -2.0], [3.25, 1e-3]], np.float16)}
    save_file(half, tmp_path / "model.safetensors")
    read = read_weights(tmp_path)["wte.weight"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, half["transformer.wte.weight"].astype(np.float32))
