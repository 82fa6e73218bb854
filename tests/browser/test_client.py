"""promptgen.js by itself, in the browser: what it makes of bytes, answers and failures. `fetch` is put in its place by each test."""

from __future__ import annotations

import time
from typing import Any

import pytest
from scripted import Reply, ScriptedService
from selenium import webdriver

pytestmark = pytest.mark.browser

# The test's body runs with the module's names, and `stream(...portions)`: what fetch would give for these strings or bytes.
FRAME = """
const [origin, done] = arguments;
const stream = (...portions) => new Response(
  new ReadableStream({start(controller) {
    for (const portion of portions) controller.enqueue(typeof portion === "string" ? new TextEncoder().encode(portion) : portion);
    controller.close();
  }}),
  {headers: {"Content-Type": "text/event-stream"}},
);
const event = value => `data: ${JSON.stringify(value)}\\n\\n`;
const failure = promise => promise.then(() => "no failure", fault => ({...fault, name: fault.name, message: fault.message}));
(async () => {
  const {Promptgen, PromptgenError, EventParser, Answer, newSessionId} = await import(origin + "/promptgen.js");
  const client = new Promptgen(origin);
  BODY
})().then(done, fault => done({failed: String(fault.stack)}));
"""


@pytest.fixture
def run(elsewhere: webdriver.Chrome, scripted: ScriptedService) -> Any:
    """run(javascript) on a page of another origin; gives what it returns."""

    def script(body: str) -> Any:
        answer = elsewhere.execute_async_script(FRAME.replace("BODY", body), scripted.origin)
        assert not (isinstance(answer, dict) and "failed" in answer), answer
        return answer

    return script


def test_events_are_the_same_however_the_bytes_are_cut(run: Any) -> None:
    wrong = run("""
      const text = ': hello\\r\\n\\r\\ndata: {"a": "高血压😀"}\\n\\ndata:two\\ndata: lines\\r\\r'
        + 'event: x\\nid: 1\\ndata: \\n\\ndata: [DONE]\\n\\ndata: half';
      const wanted = JSON.stringify(['{"a": "高血压😀"}', "two\\nlines", "", "[DONE]"]);
      const bytes = new TextEncoder().encode("\\ufeff" + text);
      const wrong = [];
      for (let first = 0; first <= bytes.length; first++) {
        for (let second = first; second <= bytes.length; second++) {
          const parser = new EventParser();
          const portions = [bytes.slice(0, first), bytes.slice(first, second), bytes.slice(second)];
          const got = JSON.stringify(portions.flatMap(portion => parser.push(portion)));
          if (got !== wanted) wrong.push([first, second, got]);
        }
      }
      return wrong;
    """)
    assert wrong == []


def test_a_candidate_grows_is_withdrawn_and_drawn_anew(run: Any) -> None:
    steps = run("""
      const answer = new Answer(), steps = [];
      for (const event of [
        {index: 1, text: "b"}, {index: 0, text: "a"}, {index: 1, text: "c"}, {index: 0, reset: true},
        {index: 0, text: "d"}, {index: 0, finish_reason: "stop"}, {index: 1, finish_reason: "length"},
      ]) {
        answer.add(event);
        steps.push(answer.candidates.map(({index, text, finishReason}) => `${index}${text}${finishReason ?? ""}`).join(" "));
      }
      return steps;
    """)
    assert steps == ["1b", "0a 1b", "0a 1bc", "1bc", "0d 1bc", "0dstop 1bc", "0dstop 1bclength"]


def test_the_last_event_orders_scores_and_drops_what_was_withdrawn_for_good(run: Any) -> None:
    candidates = run("""
      globalThis.fetch = async () => stream(
        event({index: 0, text: "a"}), event({index: 1, text: "b"}), event({index: 2, text: "c"}) + event({index: 1, reset: true}),
        event({index: 0, finish_reason: "stop"}) + event({index: 2, finish_reason: "stop"}),
        event({result: ["a", null, "c"], time: 0.1, order: [2, 0], scores: [-0.5, -2]}) + "data: [DONE]\\n\\n");
      return client.suggest("x");
    """)
    assert candidates == [
        {"index": 2, "text": "c", "finishReason": "stop", "score": -0.5},
        {"index": 0, "text": "a", "finishReason": "stop", "score": -2},
    ]


def test_an_answer_without_an_order_keeps_that_of_the_indices(run: Any) -> None:
    texts = run("""
      globalThis.fetch = async () => stream(
        event({index: 1, text: "b"}) + event({index: 0, text: "a"}) + event({result: null, time: 1, omitted: "long"}));
      return (await client.suggest("x")).map(({text, score}) => [text, score]);
    """)
    assert texts == [["a", None], ["b", None]]


def test_updates_come_as_the_stream_does_and_are_not_changed_afterwards(run: Any) -> None:
    updates = run("""
      globalThis.fetch = async () => stream(
        event({index: 0, text: "a"}), event({index: 0, text: "b"}), event({result: ["ab"], time: 0, order: [0], scores: [-1]}));
      const updates = [];
      await client.suggest("x", {onUpdate: candidates => updates.push(candidates)});
      return updates.map(([{text, score}]) => [text, score]);
    """)
    assert updates == [["a", None], ["ab", None]]


def test_what_is_sent(run: Any, scripted: ScriptedService) -> None:
    run("""
      await client.suggest("x", {samples: 3, temperature: undefined, echo: true, heal: false});
      const session = client.session({samples: 2});
      await session.suggest("y", {maxlength: 4});
      await session.suggest("z", {samples: 7, session: "mine"});
      return client.suggest(" ");
    """)
    plain = {"stream": True, "echo": False}
    first, second, third, blank = scripted.calls
    assert first == {"context": "x", "samples": 3, "heal": False, **plain}
    assert len(second["session"]) == 32
    assert second == {"context": "y", "samples": 2, "maxlength": 4, "session": third["session"], **plain}
    assert third["samples"] == 7
    assert blank == {"context": " ", **plain}


def test_failures_are_one_class_with_what_a_caller_needs(run: Any) -> None:
    failures = run("""
      const answer = (status, body, headers) => async () => new Response(body, {status, headers});
      const error = JSON.stringify({error: {message: "not now", type: "t", param: "seed", code: "some_code"}});
      const failures = [];
      for (const fetch of [
        answer(503, error, {"Retry-After": "7", "X-Request-Id": "r1"}),
        answer(502, "<html>proxy</html>"),
        answer(200, "<html>hotel</html>", {"Content-Type": "text/html"}),
        async () => { throw new TypeError("Failed to fetch"); },
        async () => stream(event({index: 0, text: "a"}), event({error: {message: "newer", param: null, code: "superseded"}})),
        async () => stream(event({index: 0, text: "a"})),
        async () => stream("data: {oops\\n\\n"),
        async () => new Response(new ReadableStream({start: c => c.error(new TypeError("network"))}), stream()),
        answer(500, "null"),
        answer(500, '{"error": null}'),
        answer(500, '{"error": "no object"}'),
        async () => stream(event(null)),
        async () => stream(event({error: null})),
      ]) {
        globalThis.fetch = fetch;
        failures.push(await failure(client.suggest("x")));
      }
      return failures;
    """)
    assert {failure["name"] for failure in failures} == {"PromptgenError"}
    assert [(failure["status"], failure["code"]) for failure in failures] == [
        (503, "some_code"), (502, ""), (200, "unexpected_answer"), (0, "unreachable"),
        (409, "superseded"), (0, "interrupted"), (200, "unexpected_answer"), (0, "interrupted"),
        (500, ""), (500, ""), (500, ""), (200, "unexpected_answer"), (500, ""),
    ]  # fmt: skip
    assert all(failure["message"] for failure in failures)
    assert failures[0] | {"message": "not now", "param": "seed", "retryAfter": 7, "requestId": "r1"} == failures[0]


@pytest.mark.parametrize(
    ("header", "low", "high"), [("0", 0, 0), ("12", 12, 12), ("in_a_minute", 55, 61), ("long_ago", 0, 0)]
)
def test_retry_after_may_be_a_date(run: Any, header: str, low: float, high: float) -> None:
    seconds = run(f"""
      const at = ms => new Date(Date.now() + ms).toUTCString();
      const header = {{in_a_minute: at(60_000), long_ago: at(-60_000)}}[{header!r}] ?? {header!r};
      globalThis.fetch = async () => new Response("", {{status: 503, headers: {{"Retry-After": header}}}});
      return (await failure(client.suggest("x"))).retryAfter;
    """)
    assert low <= seconds <= high


def test_retry_after_that_is_neither_is_none(run: Any) -> None:
    assert run("""
      globalThis.fetch = async () => new Response("", {status: 503, headers: {"Retry-After": "soon"}});
      return (await failure(client.suggest("x"))).retryAfter === null;
    """)


def test_an_abort_ends_the_call_here_and_in_the_service(run: Any, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["a b c d e f g h " * 6] * 2, between_s=0.5)
    name, updates = run("""
      const hurry = new AbortController();
      let updates = 0;
      const {name} = await failure(client.suggest("x", {signal: hurry.signal, onUpdate: () => { updates++; hurry.abort(); }}));
      return [name, updates];
    """)
    assert (name, updates) == ("AbortError", 1)
    end = time.monotonic() + 20
    while not scripted.left and time.monotonic() < end:
        time.sleep(0.01)
    assert [fields["context"] for fields in scripted.left] == ["x"]


def test_an_abort_while_a_refusal_is_read_is_an_abort(run: Any) -> None:
    name = run("""
      const hurry = new AbortController();
      globalThis.fetch = async (url, {signal}) => new Response(
        new ReadableStream({start: c => signal.addEventListener("abort", () => c.error(signal.reason))}), {status: 503});
      setTimeout(() => hurry.abort(), 20);
      return (await failure(client.suggest("x", {signal: hurry.signal}))).name;
    """)
    assert name == "AbortError"


def test_a_signal_that_is_aborted_already_asks_nothing(run: Any, scripted: ScriptedService) -> None:
    assert run('return (await failure(client.suggest("x", {signal: AbortSignal.abort()}))).name;') == "AbortError"
    assert scripted.calls == []


def test_the_newer_call_of_a_session_ends_the_older(run: Any, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply([fields["context"]], before_s=5 if fields["context"] == "old" else 0)
    outcome = run("""
      const session = client.session();
      const old = failure(session.suggest("old"));
      await new Promise(resolve => setTimeout(resolve, 50));
      const [{text}] = await session.suggest("new");
      const third = failure(session.suggest("old"));
      session.cancel();
      return [(await old).name, text, (await third).name];
    """)
    assert outcome == ["AbortError", "new", "AbortError"]


def test_the_key_is_sent(run: Any, scripted: ScriptedService) -> None:
    scripted.key = "open sesame"
    assert run('return (await failure(client.suggest("x"))).status;') == 401
    assert run('return new Promptgen(origin + "/", {key: "open sesame"}).suggest("x");') == []


def test_session_ids_are_long_and_differ(run: Any) -> None:
    ids = run("return Array.from({length: 50}, () => newSessionId());")
    assert len(set(ids)) == 50
    assert {len(i) for i in ids} == {32}


def test_the_wait_follows_the_latency(run: Any) -> None:
    waits = run("""
      const {Pace} = await import(origin + "/pages/pace.js");
      const after = (...latencies) => { const pace = new Pace(); latencies.forEach(ms => pace.noteAnswer(ms)); return pace.waitMs; };
      const givenUp = new Pace();
      for (let n = 0; n < 9; n++) givenUp.noteGivenUp(5);
      const quick = givenUp.waitMs;
      for (let n = 0; n < 9; n++) givenUp.noteGivenUp(400);
      return [after(), after(...Array(9).fill(15)), after(...Array(9).fill(200)), after(...Array(99).fill(5000)), quick, givenUp.waitMs];
    """)
    first, fast, slow, slowest, quick, given_up = waits
    assert (first, fast, slowest, quick) == (0, 0, 300, 0)
    assert 60 < slow < 120
    assert 150 < given_up < 250


@pytest.mark.parametrize(
    ("text", "completion", "word"),
    [
        ("how to", " travel cheaply", " travel"),
        ("how to tr", "avel cheaply", "avel"),
        ("高血", "压要注意饮食", "压"),
        ("高血压", "，控制饮食", "，控制"),
        ("好", "。", "。"),
        ("", "one", "one"),
        ("x", "\n\ny z", "\n\ny"),
        ("😀" * 30, " ok then", " ok"),
        ("it", "'s fine", "'s"),
    ],
)
def test_the_next_word(run: Any, text: str, completion: str, word: str) -> None:
    got = run(f"""
      const {{nextWord}} = await import(origin + "/pages/segments.js");
      return nextWord({text!r}, {completion!r});
    """)
    assert got == word


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        ("How can I lower my risk of", "…lower my risk of"),
        ("first line\nsecond", "second"),
        ("first line\n", ""),
        ("word " * 9, "…word word word "),
        ("一二三四五六七八九十" * 3 + "高血压", None),
        ("x" * 40, "x" * 40),
    ],
)
def test_the_last_words(run: Any, text: str, shown: str | None) -> None:
    got = run(f"""
      const {{lastWords}} = await import(origin + "/pages/segments.js");
      return lastWords({text!r}, 16);
    """)
    if shown is None:
        assert got.startswith("…")
        assert 8 < len(got) <= 17
        assert got.endswith("高血压")
    else:
        assert got == shown


def test_ask_gives_pieces_then_the_answer_and_the_history(run: Any, scripted: ScriptedService) -> None:
    scripted.answer = lambda fields: Reply(["one two", "other"])
    pieces, first, second = run("""
      const pieces = [];
      const first = await client.ask("x", {onPiece: text => pieces.push(text), samples: 2});
      const second = await client.ask("y", {history: first.history});
      return [pieces, first, second];
    """)
    assert "".join(pieces) == first["answer"] == "one two"
    assert [candidate["text"] for candidate in first["candidates"]] == ["one two", "other"]
    assert [message["content"] for message in second["history"]] == ["x", "one two", "y", "one two"]
    assert scripted.calls == [
        {"question": "x", "history": [], "samples": 2, "stream": True},
        {"question": "y", "history": first["history"], "stream": True},
    ]


def test_a_history_that_was_left_out_is_put_together(run: Any) -> None:
    history = run("""
      window.fetch = async () => stream(event({answer: "b", history: null}), "event: end\\ndata: [DONE]\\n\\n");
      return (await client.ask("a", {history: [{role: "user", content: "q"}, {role: "assistant", content: "r"}]})).history;
    """)
    assert [message["content"] for message in history] == ["q", "r", "a", "b"]


@pytest.mark.parametrize(
    ("portions", "code"),
    [
        ('event({text: "a"})', "interrupted"),
        ('event({text: "a"}) + event({error: {message: "m", code: "engine_failure"}})', "engine_failure"),
        ('"data: {"', "interrupted"),
    ],
)
def test_an_answer_that_breaks_off_is_a_failure(run: Any, portions: str, code: str) -> None:
    failure = run(f"window.fetch = async () => stream({portions}); return failure(client.ask('a'));")
    assert (failure["name"], failure["code"]) == ("PromptgenError", code)
