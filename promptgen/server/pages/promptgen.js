/**
 * The client of promptgen: several ways a text could go on, for a page of any origin. No dependency, no build step.
 *
 *     import { Promptgen } from "http://127.0.0.1:5005/promptgen.js";
 *
 *     const client = new Promptgen("http://127.0.0.1:5005", { key });
 *     const candidates = await client.suggest("高血压要", { samples: 5, maxlength: 15, onUpdate: show });
 *     const { answer, history } = await client.ask("高血压要注意什么？", { onPiece: append });
 *     const next = await client.ask("那饮食呢？", { history });
 *
 * A candidate is { index, text, finishReason, score }: `text` goes on where the context ends, `finishReason` is null until
 * it is complete, `score` (the mean log-probability of its words, higher is better) is null until the answer is.
 * docs/frontend.md says the rest.
 */

/**
 * Whatever goes wrong, but for an abort: that is a DOMException named "AbortError", as fetch has it.
 * `status` is that of HTTP, 0 if no answer came; `code` is the service's, or "unreachable", "interrupted",
 * "unexpected_answer"; `retryAfter` is in seconds, or null.
 */
export class PromptgenError extends Error {
  name = "PromptgenError";

  constructor(message, { status = 0, code = "", param = null, retryAfter = null, requestId = null, cause } = {}) {
    super(message, { cause });
    Object.assign(this, { status, code, param, retryAfter, requestId });
  }
}

export class Promptgen {
  #base;
  #headers;

  /** `baseUrl` is where the service is, by default where this module came from. `key` is sent if there is one. */
  constructor(baseUrl = new URL(".", import.meta.url), { key = "" } = {}) {
    this.#base = new URL(`${String(baseUrl).replace(/\/+$/, "")}/`, import.meta.url);
    this.#headers = new Headers({ "Content-Type": "application/json" });
    if (key) this.#headers.set("Authorization", `Bearer ${key}`);
  }

  /**
   * The candidates, best first. `onUpdate(candidates)` is called while they grow, then in the order of their indices.
   * `signal` ends the call, and the work in the service. Every other option is a field of POST /generate.
   * Throws PromptgenError, or AbortError.
   */
  async suggest(context, { signal, onUpdate, ...fields } = {}) {
    const body = JSON.stringify({ ...fields, context, stream: true, echo: false });
    const response = await this.#post("generate", body, signal);
    const answer = new Answer();
    for await (const events of readEvents(response, signal)) {
      for (const event of events) answer.add(event);
      if (!answer.complete) onUpdate?.(answer.candidates);
    }
    if (!answer.complete) throw interrupted();
    return answer.candidates;
  }

  /**
   * An answer to `question`, after `history`: the { role, content } of what was said before, which an earlier answer gave.
   * `onPiece(text)` is called as it comes. What is returned is that of POST /chat: { answer, candidates, history, ... }.
   * Throws PromptgenError, or AbortError.
   */
  async ask(question, { history = [], signal, onPiece, ...fields } = {}) {
    const body = JSON.stringify({ ...fields, question, history, stream: true });
    const response = await this.#post("chat", body, signal);
    let answer = null;
    for await (const events of readEvents(response, signal)) {
      for (const event of events) {
        if ("answer" in event) answer = event;
        else onPiece?.(event.text);
      }
    }
    if (!answer) throw interrupted();
    return { ...answer, history: answer.history ?? [...history, ...turn(question, answer.answer)] };
  }

  /** One text being typed: see Session. `fields` go with each of its calls. */
  session(fields = {}) {
    return new Session(this, fields);
  }

  async #post(path, body, signal) {
    let response;
    try {
      response = await fetch(new URL(path, this.#base), { method: "POST", headers: this.#headers, body, signal });
    } catch (cause) {
      signal?.throwIfAborted();
      throw new PromptgenError("the service cannot be reached", { code: "unreachable", cause });
    }
    if (!response.ok) throw await refusal(response, signal);
    if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) throw unexpected(response.status);
    return response;
  }
}

/** Of the calls of a session only the newest counts: a newer suggest() ends the older one, here and in the service. */
export class Session {
  #client;
  #fields;
  #session;
  #running = new AbortController();

  constructor(client, fields) {
    this.#client = client;
    this.#fields = fields;
    this.#session = newSessionId();
  }

  /** As Promptgen.suggest. The older call ends with AbortError. */
  suggest(context, { signal, ...options } = {}) {
    this.cancel();
    const own = this.#running.signal;
    const either = signal ? AbortSignal.any([signal, own]) : own;
    return this.#client.suggest(context, { ...this.#fields, ...options, session: this.#session, signal: either });
  }

  cancel() {
    this.#running.abort();
    this.#running = new AbortController();
  }
}

/** Takes the bytes of a stream of server-sent events in any portions, gives the data of each event that is complete. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #data = [];

  push(bytes) {
    const text = this.#rest + this.#decoder.decode(bytes, { stream: true });
    const lines = text.split(/\r\n|\n|\r(?!$)/); // a CR at the very end may be half of a CR LF
    this.#rest = lines.pop();
    return lines.flatMap((line) => this.#take(line));
  }

  #take(line) {
    if (line.startsWith("data:")) this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    if (line !== "" || this.#data.length === 0) return [];
    return [this.#data.splice(0).join("\n")];
  }
}

/** The events of one answer, put together. */
export class Answer {
  complete = false;
  #growing = new Map();
  #order = null;

  add(event) {
    if ("result" in event) this.#close(event);
    else if (event.reset) this.#growing.delete(event.index);
    else this.#grow(event);
  }

  /** As they are now; what is given stays as it was given. */
  get candidates() {
    const indices = this.#order ?? [...this.#growing.keys()].sort((a, b) => a - b);
    return indices.filter((index) => this.#growing.has(index)).map((index) => ({ ...this.#growing.get(index) }));
  }

  #grow({ index, text = "", finish_reason: finishReason = null }) {
    const before = this.#growing.get(index) ?? { index, text: "", finishReason: null, score: null };
    this.#growing.set(index, { ...before, text: before.text + text, finishReason });
  }

  #close({ result, order, scores }) {
    for (const [index, text] of (result ?? []).entries()) if (text === null) this.#growing.delete(index);
    for (const [place, index] of (order ?? []).entries()) {
      const candidate = this.#growing.get(index);
      if (candidate) candidate.score = scores?.[place] ?? null;
    }
    this.#order = order ?? null;
    this.complete = true;
  }
}

function turn(question, answer) {
  return [{ role: "user", content: question }, { role: "assistant", content: answer }];
}

/** An id that nobody guesses. randomUUID is kept from pages without TLS, getRandomValues is not. */
export function newSessionId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The events of a response, those of one portion at a time. Nothing is given after `signal`. */
async function* readEvents(response, signal) {
  const reader = response.body.getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      signal?.throwIfAborted();
      if (done) return;
      const events = parser.push(value).filter((data) => data !== "[DONE]");
      if (events.length > 0) yield events.map((data) => readEvent(data, response));
    }
  } catch (cause) {
    signal?.throwIfAborted();
    throw cause instanceof TypeError ? interrupted(cause) : cause;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Throws PromptgenError if the event is a failure, or none of the service's. What is returned is an object. */
function readEvent(data, { status, headers }) {
  let event;
  try {
    event = JSON.parse(data);
  } catch (cause) {
    throw unexpected(status, cause);
  }
  if (typeof event !== "object" || event === null) throw unexpected(status);
  if ("error" in event) throw failure(event.error, headers.get("X-Request-Id"));
  return event;
}

/** An answer other than 200, as an error. Its body need not be the service's own: a proxy may stand between. Throws after `signal`. */
async function refusal(response, signal) {
  const body = await response.json().catch(() => null);
  signal?.throwIfAborted();
  const error = body?.error;
  return new PromptgenError(error?.message ?? `the service answered ${response.status}`, {
    status: response.status,
    code: error?.code ?? "",
    param: error?.param ?? null,
    retryAfter: secondsFrom(response.headers.get("Retry-After")),
    requestId: response.headers.get("X-Request-Id"),
  });
}

/** A failure that came as an event: the status is what it would have been before the stream began. */
function failure(error, requestId) {
  const { message, code, param } = error ?? {};
  const status = { superseded: 409, overloaded: 503, deadline_exceeded: 504 }[code] ?? 500;
  return new PromptgenError(message ?? "the service failed", { status, code: code ?? "", param: param ?? null, requestId });
}

/** Retry-After is a number of seconds, or a date if a proxy wrote it. */
function secondsFrom(header) {
  if (!header) return null;
  const seconds = Number(header);
  const left = Number.isNaN(seconds) ? (Date.parse(header) - Date.now()) / 1000 : seconds;
  return Number.isNaN(left) ? null : Math.max(0, left);
}

function unexpected(status, cause) {
  return new PromptgenError("what answered is not promptgen", { status, code: "unexpected_answer", cause });
}

function interrupted(cause) {
  return new PromptgenError("the answer broke off", { code: "interrupted", cause });
}
