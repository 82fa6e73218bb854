/** What the page says about itself: kind words when something is wrong, and for screen readers what others see. */

import { wordFor } from "./faults.js";
import { Live } from "./live.js";
import { keptInTab } from "./store.js";

const ANNOUNCE_AFTER_MS = 700; // nobody is interrupted at every key
const COUNTDOWN_MS = 250;

export class Notices {
  #say;
  #notice = document.getElementById("notice");
  #countdown = document.getElementById("countdown");
  #live = new Live(document.getElementById("live"));
  #keyForm = document.getElementById("key-form");
  #retryAt = null;
  #announcing = 0;

  /** `say(name, places)` gives words in the reader's language. */
  constructor(say) {
    this.#say = say;
    setInterval(() => this.#count(), COUNTDOWN_MS);
  }

  show({ text, candidates, settled, fault, retryAt }) {
    const isEmpty = settled && text.trim() !== "" && candidates.length === 0;
    const words = fault ? this.#wordsOf(fault) : isEmpty ? this.#say("nothingToAdd") : "";
    if (this.#notice.textContent !== words) this.#notice.textContent = words;
    this.#keyForm.hidden = fault?.status !== 401;
    this.#retryAt = fault && retryAt;
    this.#count();
    clearTimeout(this.#announcing);
    if (settled && candidates.length > 0) this.#announcing = setTimeout(() => this.announceCount(candidates.length), ANNOUNCE_AFTER_MS);
  }

  /** For everyone, until there is something else to show. */
  tell(words) {
    this.#notice.textContent = words;
  }

  /** For screen readers alone. */
  announce(words) {
    this.#live.say(words);
  }

  announceCount(count) {
    this.announce(this.#say(count === 1 ? "countOne" : "count", { count }));
  }

  #wordsOf(fault) {
    const word = wordFor(fault);
    const isRefused = word === "keyWanted" && keptInTab.get("key");
    return this.#say(isRefused ? "keyRefused" : word, fault);
  }

  #count() {
    const seconds = Math.ceil(((this.#retryAt ?? 0) - performance.now()) / 1000);
    this.#countdown.textContent = this.#retryAt !== null && seconds > 0 ? this.#say("inSeconds", { seconds }) : "";
  }
}
