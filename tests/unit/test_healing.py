"""A prompt cut within a word goes on as the model would have gone on, given the typed characters: against enumeration of every spelling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
from scipy.stats import chisquare

from promptgen.generation.candidates import CandidateSet
from promptgen.generation.engine import Engine
from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.healing import MAX_BRANCHES, Healed, Healer
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.request import Answer, Sampling, TextRequest
from promptgen.generation.steps import PromptTokens
from promptgen.text.bytepair import BytePairTokenizer
from promptgen.text.tokenizer import BertWordTokenizer
from promptgen.text.vocabulary import Vocabulary
from tests.conftest import StepsFactory

WORDS = ["高", "血", "压", "力", "高血", "高血压", "血压", "压力", "要", "注", "意", "注意", "要注意", "，"]
LATIN = [
    "t",
    "tr",
    "translate",
    "trans",
    "##late",
    "##l",
    "##a",
    "##t",
    "##e",
    "##r",
    "how",
    "to",
    "2",
    "##0",
    ".",
    "py",
]
TOKENIZER = BertWordTokenizer(Vocabulary.of(["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", *WORDS, *LATIN]))
IDS = TOKENIZER.vocabulary.ids
HEALER = Healer(TOKENIZER)
SHAPE = Gpt2Shape(vocabulary=TOKENIZER.size, window=32, width=32, layers=1, heads=2, inner=64, epsilon=1e-5)
PLAIN = Sampling(top_k=0)


def healed(prompt: str) -> Healed | None:
    return HEALER.heal(prompt, (TOKENIZER.begin_id, *TOKENIZER.encode(prompt)))


def names(ids: Iterator[int] | tuple[int, ...] | np.ndarray) -> set[str]:
    return {TOKENIZER.vocabulary.tokens[int(i)] for i in ids}


@pytest.mark.parametrize(
    ("prompt", "rest", "ways"),
    [
        ("要高", "高", {(): {"高", "高血", "高血压"}}),
        ("高血", "高血", {(): {"高血", "高血压"}, ("高",): {"血", "血压"}}),
        (
            "要高血压",
            "高血压",
            {(): {"高血压"}, ("高血",): {"压", "压力"}, ("高",): {"血压"}, ("高", "血"): {"压", "压力"}},
        ),
        ("how to tr", "tr", {(): {"tr", "translate", "trans"}, ("t",): {"##r"}}),
        ("how to trans", "trans", None),
        ("要 tr", "tr", None),
        ("注", "注", {(): {"注", "注意"}}),
        ("要注", "要注", {(): {"要注意"}, ("要",): {"注", "注意"}}),
    ],
)
def test_every_spelling_of_what_was_typed_is_a_way_on(
    prompt: str, rest: str, ways: dict[tuple[str, ...], set[str]] | None
) -> None:
    found = healed(prompt)
    assert found is not None
    assert found.rest == rest
    assert (found.text + found.rest).strip() == prompt
    if ways is not None:
        told = {tuple(TOKENIZER.convert(b.path_ids)): names(b.cover_ids) for b in found.branches if len(b.cover_ids)}
        assert told == ways
    for branch in found.branches:
        spelled = "".join(TOKENIZER.convert(branch.path_ids)).replace("##", "")
        assert rest.startswith(spelled)
        assert names(branch.spelled_ids) <= {rest[len(spelled) :], "##" + rest[len(spelled) :]}


@pytest.mark.parametrize("prompt", ["要，", "2", "20", "", "[MASK]", "！", "how to z", "力", "x" * 200])
def test_what_begins_no_longer_word_is_left_as_it_is(prompt: str) -> None:
    assert healed(prompt) is None


def test_after_a_space_no_inner_piece_follows() -> None:
    found = healed("how to ")
    assert found is not None
    (branch,) = found.branches
    assert found.rest == ""
    assert not any(name.startswith("##") for name in names(branch.cover_ids))
    assert {"how", "高血压", "[CLS]"} <= names(branch.cover_ids)


def test_long_beginnings_have_a_bounded_number_of_branches() -> None:
    characters = "甲乙丙丁戊己庚辛"
    pieces = {characters[a:b] for a in range(8) for b in range(a + 1, 9)} | {characters + "壬"}
    tokenizer = BertWordTokenizer(Vocabulary.of(["[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]", *sorted(pieces)]))
    found = Healer(tokenizer).heal(characters, (tokenizer.begin_id, *tokenizer.encode(characters)))
    assert found is not None
    assert 1 < len(found.branches) <= MAX_BRANCHES
    for branch in found.branches:
        assert any(branch.path_ids[:-1] == other.path_ids for other in found.branches) or not branch.path_ids


class Small:
    """A random model that can be asked for any probability, and an engine over it."""

    def __init__(self, make_steps: StepsFactory = EagerGpt2, words: tuple[str, ...] = ()) -> None:
        """Only `words` are ever drawn, if some are named."""
        banned = TOKENIZER.banned_ids
        if words:
            banned = tuple(i for i in range(TOKENIZER.size) if TOKENIZER.vocabulary.tokens[i] not in words)
        generator = torch.Generator().manual_seed(3)
        weights = {
            name: (0.35 * torch.randn(size, generator=generator)).numpy() for name, size in SHAPE.tensors().items()
        }
        self.memory = Memory(SHAPE, max_rows=16, num_prompt_slots=32, banned_ids=banned, end_id=TOKENIZER.end_id)
        self.steps = make_steps(self.memory, weights)
        self.engine = Engine(self.memory, self.steps)
        other = Memory(SHAPE, max_rows=1, num_prompt_slots=1, banned_ids=banned, end_id=TOKENIZER.end_id)
        self._oracle, self._oracle_memory = EagerGpt2(other, weights), other
        self.last: CandidateSet | None = None  # that was answered
        self._known: dict[tuple[int, ...], np.ndarray] = {}

    def probabilities(self, ids: tuple[int, ...]) -> np.ndarray:
        """p(. | ids) among the tokens that may be drawn, by a model of its own."""
        if ids not in self._known:
            self._oracle.forward(0, PromptTokens.of([(1, 0, ids, True)]))
            logits = self._oracle_memory.logits[1, : SHAPE.vocabulary] + self._oracle_memory.bias
            self._known[ids] = torch.from_numpy(logits).double().softmax(0).numpy()
        return self._known[ids]

    def going_on(self, ids: tuple[int, ...]) -> np.ndarray:
        """p(. | ids) where the document does not end."""
        p = self.probabilities(ids).copy()
        p[TOKENIZER.end_id] = 0
        return p / p.sum()

    def answer(self, request: TextRequest) -> Answer:
        candidates = CandidateSet(TOKENIZER, request, HEALER, window=SHAPE.window)
        for part in candidates.requests:
            self.engine.add(0, part)
        while not candidates.is_complete:
            for event in self.engine.step():
                if event.request_id == 0:
                    candidates.take(event)
            orders, needless = candidates.take_orders()
            for sample in needless:
                self.engine.cancel(0, sample)
            for part in orders:
                self.engine.add(0, part)
        self.last = candidates
        return candidates.answer()


@pytest.fixture(scope="module")
def small(make_steps: StepsFactory) -> Small:
    return Small(make_steps)


@pytest.fixture(scope="module")
def few_words(make_steps: StepsFactory) -> Small:
    return Small(make_steps, ("高", "血", "压", "高血", "高血压", "血压", "[CLS]"))


def spellings(small: Small, prompt: str, rest: str) -> dict[str, float]:
    """Probability of every text that continues `prompt` and first reaches beyond or to the end of `rest`, given that it begins so."""
    start = (TOKENIZER.begin_id, *TOKENIZER.encode(prompt))
    reached: Counter[str] = Counter()
    todo: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while todo:
        path, p = todo.pop()
        for token_id, q in enumerate(small.probabilities((*start, *path))):
            detokenizer = TOKENIZER.detokenizer(prompt)
            text = "".join(map(detokenizer.push, (*path, token_id)))
            if q == 0 or token_id == TOKENIZER.end_id or not text:
                continue
            if text.startswith(rest):
                reached[text] += p * q
            elif rest.startswith(text) and len(path) < 4:
                todo.append(((*path, token_id), p * q))
    total = sum(reached.values())
    return {text: p / total for text, p in reached.items()}


@pytest.mark.parametrize(("prompt", "rest"), [("要", "高血"), ("，", "要注"), ("how to ", "tr"), ("", "高血压")])
def test_the_first_word_is_distributed_as_the_model_s_own_given_what_was_typed(
    small: Small, prompt: str, rest: str
) -> None:
    exact = spellings(small, prompt, rest)
    counts: Counter[str] = Counter()
    number = 6000
    for seed in range(number // 500):
        request = TextRequest(prompt + rest, 500, 1, Sampling(top_k=0, seed=seed), want_logprobs=True, distinct=False)
        candidates = CandidateSet(TOKENIZER, request, HEALER, window=SHAPE.window)
        (part,) = candidates.requests
        small.engine.add(0, part)
        while small.engine.has_work:
            for event in small.engine.step():
                candidates.take(event)
        for text in candidates._texts:
            counts["".join(TOKENIZER.convert(text.path.token_ids[: text.path.num_head])).replace("##", "")] += 1
    assert set(counts) <= set(exact)
    likely = [text for text in exact if exact[text] * number >= 5]
    observed = [counts[text] for text in likely] + [number - sum(counts[text] for text in likely)]
    expected = [exact[text] * number for text in likely] + [number * (1 - sum(exact[text] for text in likely))]
    if expected[-1] < 1e-6:
        observed, expected = observed[:-1], expected[:-1]
    assert chisquare(observed, np.array(expected) * sum(observed) / sum(expected)).pvalue > 1e-4


@pytest.mark.parametrize(("prompt", "rest"), [("要", "高血"), ("how to ", "tr"), ("", "要注")])
def test_log_probabilities_are_those_of_the_words_given_what_was_typed(small: Small, prompt: str, rest: str) -> None:
    exact = spellings(small, prompt, rest)
    request = TextRequest(prompt + rest, 64, 1, Sampling(top_k=0, seed=1), want_logprobs=True, distinct=False)
    for candidate in small.answer(request).candidates:
        # One new word: the word itself where it reaches beyond what was typed, or what follows a word that ends there.
        word = rest + candidate.completion
        if word in exact and candidate.num_tokens == 1 and exact.get(rest, 0.0) == 0.0:
            assert candidate.logprob == pytest.approx(math.log(exact[word]), abs=1e-4)


def test_without_a_draw_the_likeliest_word_comes(small: Small) -> None:
    exact = spellings(small, "要", "高血")
    best = max(exact, key=lambda text: exact[text])
    greedy = TextRequest("要高血", 1, 4, Sampling(temperature=0), distinct=False)
    assert ("高血" + small.answer(greedy).candidates[0].completion).startswith(best)


def test_as_many_new_words_come_as_were_asked_for(small: Small) -> None:
    for prompt in ("高血", "how to tr", "要", "，", "要注"):
        request = TextRequest(prompt, 8, 5, Sampling(top_k=0, seed=2), ignore_end=True, distinct=False)
        assert [candidate.num_tokens for candidate in small.answer(request).candidates] == [5] * 8


def test_the_window_is_never_overrun(small: Small) -> None:
    for length in range(20, 31):
        prompt = "，" * (length - 3) + "高血压"
        num_prompt = 1 + len(TOKENIZER.encode(prompt))
        request = TextRequest(prompt, 8, SHAPE.window - num_prompt, Sampling(top_k=0, seed=2), ignore_end=True)
        assert {c.num_tokens for c in small.answer(request).candidates} == {SHAPE.window - num_prompt}


def distribution(small: Small, prompt: str, length: int, temperature: float) -> dict[str, float]:
    """Probability of every text of up to `length` tokens after a prompt, drawn at a temperature."""
    start = (TOKENIZER.begin_id, *TOKENIZER.encode(prompt))
    texts: Counter[str] = Counter()
    todo: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
    while todo:
        path, p = todo.pop()
        if len(path) == length or path[-1:] == (TOKENIZER.end_id,):
            texts[said(prompt, path)] += p
            continue
        following = small.probabilities((*start, *path)) ** (1 / temperature)
        following = following / following.sum()
        todo += (((*path, token_id), p * following[token_id]) for token_id in np.flatnonzero(following).tolist())
    return dict(texts)


def said(prompt: str, ids: tuple[int, ...]) -> str:
    detokenizer = TOKENIZER.detokenizer(prompt)
    return "".join(detokenizer.push(token_id) for token_id in ids if token_id != TOKENIZER.end_id)


@pytest.mark.parametrize(("length", "temperature"), [(1, 1.0), (2, 1.0), (2, 0.6), (3, 1.4)])
def test_a_second_candidate_is_drawn_as_if_the_first_could_not_come(
    few_words: Small, length: int, temperature: float
) -> None:
    """Sampling without replacement: p(a) p(b) / (1 - p(a)), whether the second came at once or was drawn anew."""
    number = 1500
    counts: Counter[tuple[str, str]] = Counter()
    for seed in range(number):
        sampling = Sampling(temperature, top_k=0, seed=seed)
        asked = TextRequest("高血压", 2, length, sampling, rank="none", heal=False)
        first, second = few_words.answer(asked).candidates
        counts[first.completion, second.completion] += 1
    p = distribution(few_words, "高血压", length, temperature)
    assert not any(a == b for a, b in counts)
    pairs = {(a, b): number * p[a] * p[b] / (1 - p[a]) for a in p for b in p if a != b}
    likely = [pair for pair, expected in pairs.items() if expected >= 8]
    observed = [counts[pair] for pair in likely] + [number - sum(counts[pair] for pair in likely)]
    expected = [pairs[pair] for pair in likely] + [number - sum(pairs[pair] for pair in likely)]
    assert len(likely) >= 10
    assert chisquare(observed, expected).pvalue > 1e-4


def test_redraws_are_the_same_whoever_joins_when(make_steps: StepsFactory) -> None:
    """Other rows leave room for one candidate at a time, or for all."""
    model = Small(make_steps)
    num_redrawn = 0
    for seed in range(12):
        asked = TextRequest("高血压", 6, 2, Sampling(0.3, top_k=0, seed=seed), rank="none", salt=str(seed))
        alone = model.answer(asked)
        num_redrawn += alone.num_redrawn
        for n in range(15):
            busy = TextRequest("要", 1, 28, Sampling(seed=n), ignore_end=True, heal=False, salt="busy")
            (part,) = CandidateSet(TOKENIZER, busy, HEALER, window=SHAPE.window).requests
            model.engine.add(100 + n, part)
        model.engine._scheduler.prompts.forget()
        assert [c.completion for c in model.answer(asked).candidates] == [c.completion for c in alone.candidates]
        while model.engine.has_work:
            model.engine.step()
    assert num_redrawn > 10


def test_what_follows_a_healed_word_is_drawn_independently_of_how_it_was_spelled(few_words: Small) -> None:
    number = 2000
    asked = TextRequest("高血", 500, 2, Sampling(top_k=0), distinct=False, rank="none", ignore_end=True)
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(number // 500):
        few_words.answer(replace(asked, sampling=Sampling(top_k=0, seed=seed)))
        assert few_words.last is not None
        counts.update(tuple(text.path.token_ids[: text.path.num_head + 1]) for text in few_words.last._texts)
    start, joint = (TOKENIZER.begin_id,), Counter[tuple[int, ...]]()
    for spelled in ("高血压",), ("高血",), ("高", "血"), ("高", "血压"):
        ids = tuple(IDS[word] for word in spelled)
        p = math.prod(few_words.going_on((*start, *ids[:at]))[token_id] for at, token_id in enumerate(ids))
        for token_id, q in enumerate(few_words.going_on((*start, *ids))):
            joint[(*ids, token_id)] += p * q
    total = sum(joint.values())
    likely = [way for way, p in joint.items() if number * p / total >= 8]
    observed = [counts[way] for way in likely] + [number - sum(counts[way] for way in likely)]
    expected = [number * joint[way] / total for way in likely]
    expected.append(number - sum(expected))
    assert len(likely) >= 6
    assert chisquare(observed, expected).pvalue > 1e-4


def test_all_candidates_differ_even_where_the_model_hardly_has_a_choice(small: Small) -> None:
    for seed in range(20):
        cold = TextRequest("高血压", 8, 6, Sampling(temperature=0.05, top_p=0.5, seed=seed), want_logprobs=True)
        answer = small.answer(cold)
        texts = [candidate.completion for candidate in answer.candidates]
        assert len(set(texts)) == 8
        assert answer.num_redrawn > 0
        assert answer.num_missing == 0
        assert [c.score for c in answer.candidates] == sorted((c.score or 0 for c in answer.candidates), reverse=True)


@pytest.mark.parametrize("heal", [False, True])  # True: a session's prompt, whose first tokens are drawn otherwise
def test_the_end_that_comes_at_once_is_one_candidate_among_others(small: Small, heal: bool) -> None:
    likely_end = ((TOKENIZER.end_id, 30.0),)
    for seed in range(5):
        asked = TextRequest(
            "高血压，", 5, 4, Sampling(seed=seed), token_bias=likely_end, heal=heal, session="one" if heal else ""
        )
        answer = small.answer(asked)
        texts = [candidate.completion for candidate in answer.candidates]
        assert "" in texts
        assert len(set(texts)) == 5
        assert answer.num_missing == 0


def test_log_probabilities_of_candidates_that_were_drawn_anew_are_the_model_s(small: Small) -> None:
    start = (TOKENIZER.begin_id, *TOKENIZER.encode("高血压"))
    asked = TextRequest(
        "高血压", 8, 5, Sampling(temperature=0.05, seed=1), want_logprobs=True, heal=False, ignore_end=True
    )
    answer, last = small.answer(asked), small.last
    assert last is not None
    assert answer.num_redrawn > 0
    for candidate in answer.candidates:
        ids = tuple(last._texts[candidate.index].path.token_ids)
        assert len(ids) == 5
        exact = 0.0
        for at, token_id in enumerate(ids):
            p = small.probabilities((*start, *ids[:at]))
            exact += math.log(p[token_id] / (1 - p[TOKENIZER.end_id]))
        assert candidate.logprob == pytest.approx(exact, abs=1e-3)


def test_a_first_word_that_was_withdrawn_does_not_make_another_come_twice(small: Small) -> None:
    asked = TextRequest("高血压", 6, 3, Sampling(seed=4), distinct=False, distinct_first=True, rank="none", heal=False)
    firsts = [candidate.completion for candidate in small.answer(replace(asked, max_new_tokens=1)).candidates]
    assert len(set(firsts)) == 6
    third = small.answer(asked).candidates[2].completion
    answer = small.answer(replace(asked, bad_words=(third,)))
    assert answer.num_redrawn == 1
    assert small.last is not None
    ids = [tuple(text.path.token_ids[:1]) for text in small.last._texts if text.candidate is not None]
    assert len(set(ids)) == len(ids)


def test_distinct_first_words_are_the_likeliest_ones_each_once(small: Small) -> None:
    asked = TextRequest("高血压", 6, 3, Sampling(seed=4), distinct_first=True, rank="none", heal=False)
    p = small.probabilities((TOKENIZER.begin_id, *TOKENIZER.encode("高血压")))
    best = [TOKENIZER.vocabulary.tokens[i].removeprefix("##") for i in np.argsort(-p)[:6]]
    texts = [candidate.completion.strip() for candidate in small.answer(asked).candidates]
    for text, word in zip(texts, best, strict=True):
        assert text.startswith("" if word == "[CLS]" else "\n" if word == "[SEP]" else word)


def test_a_session_is_invisible_but_for_what_it_saves(small: Small) -> None:
    typed = "要高血压要注意，高血压力"

    def answers(session: str, healer_of: Callable[[str], TextRequest]) -> list[list[str]]:
        return [[c.completion for c in small.answer(healer_of(typed[:n])).candidates] for n in range(1, len(typed) + 1)]

    def request(prompt: str, session: str) -> TextRequest:
        return TextRequest(prompt, 5, 6, Sampling(top_k=8, temperature=0.6, seed=9), session=session)

    before = small.engine.stats
    with_session = answers("s", lambda prompt: request(prompt, "s"))
    after = small.engine.stats
    assert after.num_recalled_tokens > before.num_recalled_tokens
    fresh = Small()
    assert with_session == answers("", lambda prompt: fresh_request(fresh, request(prompt, "t")))
    assert small.engine.stats.num_rows == small.engine.stats.num_waiting == 0
    # Back again: what was drawn for shorter prompts is still known.
    again = [[c.completion for c in small.answer(request(typed[:n], "s")).candidates] for n in range(len(typed), 0, -1)]
    assert again == with_session[::-1]


def fresh_request(model: Small, request: TextRequest) -> TextRequest:
    """The same request, to be answered by an engine that remembers nothing."""
    model.engine._scheduler.prompts.forget()
    return request


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BytePairTokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    texts = ["高血压要注意饮食", "how to translate a text into chinese", "there is a translation", "the theatre"] * 20
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        tokenizers.trainers.BpeTrainer(
            vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    inner.save(str(folder / "tokenizer.json"))
    return BytePairTokenizer(folder)


def test_byte_level_prompts_are_healed_within_characters_and_words(bytes_tokenizer: BytePairTokenizer) -> None:
    healer = Healer(bytes_tokenizer)
    for prompt in ("how to tr", "高血", "how to ", "the", "there is a tra"):
        whole = (bytes_tokenizer.begin_id, *bytes_tokenizer.encode(prompt))
        found = healer.heal(prompt, whole)
        assert found is not None, prompt
        assert found.text + found.rest == prompt
        assert bytes_tokenizer.decode(found.prompt_ids[1:]) == found.text
        for branch in found.branches:
            spelled = b"".join(map(bytes_tokenizer.bytes_of, branch.path_ids))
            for token_id in branch.cover_ids:
                assert (spelled + bytes_tokenizer.bytes_of(int(token_id))).startswith(found.rest.encode())


def test_what_is_kept_of_a_cancelled_candidate_is_its_own() -> None:
    """A row that moves in the same moment is kept from where it stands, not from where it will."""
    small = Small()
    for length in (2, 3, 4):
        short = TextRequest(
            "压", 1, length, Sampling(top_k=0, seed=1), ignore_end=True, heal=False, salt="somebody else"
        )
        long = TextRequest("要", 3, 12, Sampling(top_k=0, seed=2), ignore_end=True, session="s")
        for request_id, asked in enumerate((short, long)):
            for part in CandidateSet(TOKENIZER, asked, HEALER).requests:
                small.engine.add(request_id, part)
        while small.engine._scheduler.rows == [] or any(row.request_id == 0 for row in small.engine._scheduler.rows):
            small.engine.step()
        small.engine.cancel(1)
        assert not small.engine.has_work
        small.engine.step()
        kept = [prompt for prompt in small.engine._scheduler.prompts if prompt.drawn is not None]
        assert len(kept) >= 3
        for prompt in kept:
            small.steps.forward(0, PromptTokens.of([(0, 0, prompt.token_ids, True)]))
            count = len(prompt.token_ids)
            np.testing.assert_allclose(
                small.memory.keys[:, prompt.slot, :, :count], small.memory.keys[:, 0, :, :count], atol=1e-4
            )
        small.engine._scheduler.prompts.forget()


def test_words_that_cannot_be_healed_around_are_not_forbidden(small: Small) -> None:
    asked = TextRequest(
        "要高血压", 4, 4, Sampling(seed=1), bad_words=("高血压", "压", "血压", "压力"), want_logprobs=True
    )
    for candidate in small.answer(asked).candidates:
        assert candidate.score is not None
        assert math.isfinite(candidate.score)
