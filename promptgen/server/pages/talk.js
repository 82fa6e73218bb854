/** What was said, and the answer that is being given. Kept in this browser across reloads, for all its tabs. Knows no document. */

import { kept } from "./store.js";

const SAMPLES = 4; // answers to choose from
const MOST_TURNS = 100; // kept
const TURNS_SENT = 6; // the service reads the newest few

/**
 * @typedef {{question: string, answers: string[], chosen: number}} Turn   never changed: another one takes its place
 * @typedef {{turns: Turn[], pending: ?{question: string, text: string, replaces: ?Turn}, fault: ?Error, isBack: boolean}} View
 *   `isBack`: the question that failed went back to who asked; it did not if an older answer to it stays.
 */

export class Talk {
  #client;
  #onView;
  #onReturn;
  #turns = [];
  #pending = null;
  #running = null;
  #fault = null;
  #isBack = false;

  /** `onView(view, what)` is called whenever there is something else to show; `onReturn(question)` when it was not answered. */
  constructor(client, { onView, onReturn }) {
    this.#client = client;
    this.#onView = onView;
    this.#onReturn = onReturn;
    this.#turns = this.#read();
    kept.watch("talk", () => this.#takeOver());
  }

  get isAnswering() {
    return this.#pending !== null;
  }

  useClient(client) {
    this.#client = client;
    this.#show("", { fault: null });
  }

  /** Shows what was said before this page was opened. */
  show() {
    this.#show("");
  }

  ask(question) {
    return this.#answer({ question, text: "", replaces: null }, this.#turns);
  }

  /** Another answer to the last question; the older ones can still be chosen. */
  again() {
    const last = this.#turns.at(-1);
    return last && this.#answer({ question: last.question, text: "", replaces: last }, this.#turns.slice(0, -1));
  }

  /** What came of the answer stays; without a word of it the question goes back to who asked. */
  stop() {
    this.#running?.abort();
  }

  /** Another of the last turn's answers takes the place of the one that is shown. */
  choose(index) {
    if (this.isAnswering) return;
    const last = this.#turns.at(-1);
    this.#keep(replaced(this.#read(), last, { ...last, chosen: index }));
    this.#show("chosen");
  }

  clear() {
    this.stop();
    this.#running = this.#pending = null; // nothing of it comes back
    this.#keep([]);
    this.#show("cleared", { fault: null });
  }

  async #answer(pending, before) {
    if (this.isAnswering) return;
    const running = (this.#running = new AbortController());
    const isCurrent = () => this.#running === running;
    this.#pending = pending;
    this.#show("answering", { fault: null });
    try {
      const { answer, candidates = [] } = await this.#client.ask(pending.question, {
        history: before.slice(-TURNS_SENT).flatMap(saidIn),
        samples: SAMPLES,
        signal: running.signal,
        onPiece: (text) => isCurrent() && this.#grow(text),
      });
      if (!isCurrent()) return;
      const answers = [answer, ...candidates.map(({ text }) => text)];
      this.#finish(answers.filter(isNew), answer === "" ? "noAnswer" : "answered");
    } catch (fault) {
      if (isCurrent()) this.#fail(fault);
    }
  }

  #grow(text) {
    this.#pending = { ...this.#pending, text: this.#pending.text + text };
    this.#show("growing");
  }

  /** Another tab may have added a turn meanwhile, or cleared the talk: this one is put into what is kept by now. */
  #finish(answers, what) {
    const { question, replaces } = this.#pending;
    this.#pending = null;
    this.#turns = this.#read();
    if (answers.length > 0) {
      const older = replaces && this.#turns.findLast((turn) => isSameTurn(turn, replaces));
      const turn = { question, answers: [...answers, ...(older?.answers ?? [])].filter(isNew), chosen: 0 };
      this.#keep(older ? replaced(this.#turns, older, turn) : [...this.#turns, turn]);
    } else if (!replaces) {
      this.#onReturn(question);
    }
    this.#show(what);
  }

  #fail(fault) {
    const isStopped = fault.name === "AbortError";
    const { question, text, replaces } = this.#pending;
    if (isStopped && text !== "") {
      this.#finish([text], "stopped");
      return;
    }
    this.#pending = null;
    this.#turns = this.#read();
    this.#isBack = !replaces;
    if (this.#isBack) this.#onReturn(question);
    this.#show(isStopped ? "stopped" : "failed", { fault: isStopped ? null : fault });
  }

  /** What is kept by now. Turns that are as they were stay the same objects. */
  #read() {
    const known = new Map(this.#turns.map((turn) => [JSON.stringify(turn), turn]));
    const turns = [kept.get("talk")].flat().filter(isTurn);
    return turns.map((turn) => known.get(JSON.stringify(turn)) ?? turn);
  }

  /** Another tab has kept something else. While an answer comes nothing moves: #finish() and #fail() look for it. */
  #takeOver() {
    if (this.isAnswering) return;
    this.#turns = this.#read();
    this.#show("");
  }

  #keep(turns) {
    this.#turns = turns.slice(-MOST_TURNS);
    kept.set("talk", this.#turns.length > 0 ? this.#turns : null);
  }

  #show(what, { fault = this.#fault } = {}) {
    this.#fault = fault;
    this.#onView({ turns: this.#turns, pending: this.#pending, fault, isBack: this.#isBack }, what);
  }
}

function saidIn({ question, answers, chosen }) {
  return [
    { role: "user", content: question },
    { role: "assistant", content: answers[chosen] },
  ];
}

/** The last one that is `turn` gives way to `other`. */
function replaced(turns, turn, other) {
  const place = turns.lastIndexOf(turn);
  return turns.map((one, at) => (at === place ? other : one));
}

/** Whether it is still that turn, with more answers perhaps, or another one chosen. */
function isSameTurn(turn, { question, answers }) {
  return turn.question === question && turn.answers.some((text) => answers.includes(text));
}

function isNew(text, index, all) {
  return text !== "" && all.indexOf(text) === index;
}

/** Whether what was kept is what this version would keep. */
function isTurn(turn) {
  const { question, answers, chosen } = turn ?? {};
  return typeof question === "string" && Array.isArray(answers) && answers.every((text) => typeof text === "string") && chosen in answers;
}
