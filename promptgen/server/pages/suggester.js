/**
 * What to show for the text being typed, and when to ask for it. Knows no document.
 *
 * Whatever it shows continues exactly the text it shows it for. After a key, candidates that agree with what was typed stay,
 * shortened; the others are gone at once, and new ones come when the pace allows. One that was chosen stays as long as it agrees.
 */

import { Pace } from "./pace.js";

const ANSWERS_REMEMBERED = 100;
const FIRST_RETRY_S = 1;
const LONGEST_RETRY_S = 16;

/**
 * @typedef {{key: string, call: number, text: string, score: ?number, finishReason: ?string}} Candidate   `key`: no other ever has it
 * @typedef {{text: string, candidates: Candidate[], settled: boolean, held: boolean,
 *   tookMs: ?number, fault: ?Error, retryAt: ?number}} View
 *   `settled`: nothing more will come for this text; `held`: until type(), see hold(); `retryAt`: on the clock of performance.now().
 */

export class Suggester {
  #session;
  #fields;
  #onView;
  #pace = new Pace();
  #answers = new Map();
  #view = { text: "", candidates: [], settled: true, held: false, tookMs: null, fault: null, retryAt: null };
  #latest = { text: "", candidates: [] }; // the newest candidates, also while they are not shown
  #chosenKey = null;
  #walkedKey = null;
  #call = { number: 0, startedAt: null };
  #timer = 0;
  #retryS = FIRST_RETRY_S;

  /** `fields()` gives the fields that go with each call; `onView(view)` is called whenever there is something else to show. */
  constructor(session, { fields, onView }) {
    this.#session = session;
    this.#fields = fields;
    this.#onView = onView;
  }

  /** The text is `text` now. `walked`, a candidate that is being taken word by word, stays the first. */
  type(text, walked = null) {
    if (text === this.#view.text && !this.#view.held) return;
    this.#end();
    this.#walkedKey = walked?.key ?? null;
    const isBlank = text.trim() === "";
    const candidates = agreeingWith(text, this.#latest);
    this.#show({ text, candidates, settled: isBlank, held: false, tookMs: null, fault: this.#faultFor(isBlank) });
    if (isBlank) return;
    const known = this.#answers.get(text);
    if (known) this.#settle(known, null);
    else this.#askIn(this.#pace.waitMs);
  }

  /** The text is being composed, or the caret is elsewhere: nothing is asked and nothing shown until type(). */
  hold() {
    this.#end();
    this.#show({ candidates: [], settled: false, held: true });
  }

  /** `candidate` was chosen among those that are shown, or none (null). */
  choose(candidate) {
    this.#chosenKey = candidate?.key ?? null;
  }

  /** Asks anew for the same text: the settings have changed, the service may be back, a key was given. */
  again(session = this.#session) {
    this.#end();
    this.#session = session;
    this.#answers.clear();
    const isBlank = this.#view.text.trim() === "";
    this.#show({ settled: isBlank, fault: null, retryAt: null });
    if (!isBlank && !this.#view.held) this.#askIn(0);
  }

  /** The fault, if it lasts: a key is wanted whatever the text is, and what is tried again by itself concerns any text but a blank one. */
  #faultFor(isBlank) {
    const { fault, retryAt } = this.#view;
    return fault?.status === 401 || (retryAt !== null && !isBlank) ? fault : null;
  }

  /** Ends what runs and what waits. Nothing of it is shown afterwards. */
  #end() {
    clearTimeout(this.#timer);
    if (this.#call.startedAt !== null) this.#pace.noteGivenUp(performance.now() - this.#call.startedAt);
    this.#call = { number: this.#call.number + 1, startedAt: null };
    this.#session.cancel();
  }

  #askIn(waitMs) {
    if (this.#view.fault?.status === 401) return;
    const untilRetryMs = (this.#view.retryAt ?? 0) - performance.now();
    this.#timer = setTimeout(() => this.#ask(), Math.max(waitMs, untilRetryMs));
  }

  async #ask() {
    const call = { number: this.#call.number + 1, startedAt: performance.now() };
    const isNewest = () => this.#call.number === call.number;
    const toOurs = (candidates) => candidates.map((candidate) => toCandidate(candidate, call.number));
    this.#call = call;
    try {
      const candidates = await this.#session.suggest(this.#view.text, {
        ...this.#fields(),
        onUpdate: (growing) => isNewest() && this.#grow(toOurs(growing)),
      });
      if (!isNewest()) return;
      const tookMs = performance.now() - call.startedAt;
      this.#call.startedAt = null;
      this.#pace.noteAnswer(tookMs);
      this.#remember(toOurs(candidates));
      this.#settle(toOurs(candidates), tookMs);
    } catch (fault) {
      if (!isNewest()) return;
      this.#call.startedAt = null;
      if (fault.code !== "superseded") this.#fail(fault); // only a newer call supersedes, and its answer is what counts
    }
  }

  /** The first word of a new answer takes the place of what was left of the old one. */
  #grow(candidates) {
    if (candidates.some(({ text }) => text !== "")) this.#show({ candidates: withKept(this.#kept, candidates) });
  }

  /** What was chosen, else what is being taken word by word. Not one of the running call: that grows by itself, or is withdrawn. */
  get #kept() {
    const older = this.#view.candidates.filter(({ call }) => call !== this.#call.number);
    const keyed = (wanted) => older.find(({ key }) => key === wanted);
    return keyed(this.#chosenKey) ?? keyed(this.#walkedKey);
  }

  #settle(candidates, tookMs) {
    this.#retryS = FIRST_RETRY_S;
    this.#show({ candidates: withKept(this.#kept, candidates), settled: true, tookMs, fault: null, retryAt: null });
  }

  /** What passes by itself is tried again: after the time the service names, or after longer and longer pauses. */
  #fail(fault) {
    const passes = fault.status === 0 || fault.status === 429 || fault.status === 503;
    const pauseS = fault.retryAfter ?? this.#retryS;
    if (passes) this.#retryS = Math.min(LONGEST_RETRY_S, 2 * this.#retryS);
    this.#show({ settled: true, fault, retryAt: passes ? performance.now() + 1000 * pauseS : null });
    if (passes) this.#askIn(0);
  }

  #remember(candidates) {
    this.#answers.set(this.#view.text, candidates);
    if (this.#answers.size > ANSWERS_REMEMBERED) this.#answers.delete(this.#answers.keys().next().value);
  }

  #show(change) {
    this.#view = { ...this.#view, ...change };
    const { text, candidates } = this.#view;
    if (candidates.length > 0 || text.trim() === "") this.#latest = { text, candidates };
    this.#onView(this.#view);
  }
}

function toCandidate({ index, text, score, finishReason }, callNumber) {
  return { key: `${callNumber}.${index}`, call: callNumber, text, score, finishReason };
}

/** What is left of the candidates of another text that begin, or go on, as `text` does. */
function agreeingWith(text, latest) {
  return latest.candidates
    .map((candidate) => ({ candidate, whole: latest.text + candidate.text }))
    .filter(({ whole }) => text !== "" && whole.length > text.length && whole.startsWith(text))
    .map(({ candidate, whole }) => ({ ...candidate, text: whole.slice(text.length) }));
}

/** Candidates with something to take; the kept one first, and once: a new one that says the same lends it its score. */
function withKept(kept, candidates) {
  const full = candidates.filter(({ text }) => text !== "");
  if (!kept) return full;
  const isSame = ({ text, finishReason }) => (finishReason ? text === kept.text : kept.text.startsWith(text));
  const score = full.find(isSame)?.score ?? null;
  const others = full.filter((candidate) => !isSame(candidate));
  return [{ ...kept, score }, ...others].slice(0, Math.max(1, candidates.length));
}
