/** The candidates under the box: a listbox that the box steers, while the focus stays in the box. */

import { lastWords, nextWord } from "./segments.js";

const TYPED_CHARACTERS_SHOWN = 16;
const ENDS_A_SENTENCE = /[.!?…。！？]$/;

export class List {
  #box;
  #element;
  #onTake;
  #onSelect;
  #rows = new Map();
  #candidates = [];
  #selectedKey = null;
  #open = true;

  /** `onTake(candidate)` is called when one is clicked, `onSelect(candidate)` when another one is selected, or none (null). */
  constructor(box, element, { onTake, onSelect }) {
    this.#box = box;
    this.#element = element;
    this.#onTake = onTake;
    this.#onSelect = onSelect;
    element.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays in the box
  }

  /** Shows `candidates`, which continue `text`. While one is selected they do not change places; what is `held` comes back as it was. */
  show({ candidates, text, held }) {
    this.#candidates = this.selected ? inOrderOf(this.#candidates, candidates) : candidates;
    if (!this.selected && !held) this.#select(null);
    const typed = lastWords(text, TYPED_CHARACTERS_SHOWN);
    const rows = this.#candidates.map((candidate) => this.#rowOf(candidate));
    this.#candidates.forEach((candidate, place) => fill(rows[place], candidate, typed, text));
    this.#place(rows);
    this.#mark();
  }

  get isShown() {
    return this.#open && this.#candidates.length > 0;
  }

  /** Whether it is shown when there is something to show. */
  get open() {
    return this.#open;
  }

  set open(open) {
    this.#open = open;
    if (!open) this.#select(null);
    this.#mark();
  }

  /** The candidate that arrow keys chose, if any. */
  get selected() {
    return this.#candidates.find(({ key }) => key === this.#selectedKey);
  }

  /** The candidate that a key takes: the selected one, else the first. */
  get current() {
    return this.selected ?? this.#candidates[0];
  }

  /** Selects the next (1) or the previous one (-1). Before the first there is none, and after the last the last. */
  move(step) {
    const place = this.#candidates.indexOf(this.selected) + step;
    this.#select(this.#candidates[Math.min(place, this.#candidates.length - 1)]?.key ?? null);
    this.#mark();
    this.#rows.get(this.#selectedKey)?.scrollIntoView({ block: "nearest" });
  }

  #select(key) {
    if (key === this.#selectedKey) return;
    this.#selectedKey = key;
    this.#onSelect(this.selected ?? null);
  }

  #rowOf({ key }) {
    if (!this.#rows.has(key)) this.#rows.set(key, this.#newRow(key));
    return this.#rows.get(key);
  }

  #newRow(key) {
    const row = document.createElement("li");
    row.id = `candidate-${key.replace(".", "-")}`;
    row.setAttribute("role", "option");
    row.append(...["typed", "gap", "next", "rest"].map(newPart));
    row.firstChild.setAttribute("aria-hidden", "true");
    row.addEventListener("click", () => this.#onTake(this.#candidates.find((candidate) => candidate.key === key)));
    return row;
  }

  /** Rows that stay are not touched: they neither fade in again nor slip from under a finger. */
  #place(rows) {
    const before = [...this.#element.children];
    if (rows.length !== before.length || rows.some((row, place) => row !== before[place])) this.#element.replaceChildren(...rows);
    const keys = new Set(this.#candidates.map(({ key }) => key));
    for (const key of this.#rows.keys()) if (!keys.has(key)) this.#rows.delete(key);
  }

  #mark() {
    this.#element.hidden = !this.isShown;
    for (const [key, row] of this.#rows) {
      row.setAttribute("aria-selected", String(key === this.#selectedKey));
      row.classList.toggle("current", key === this.current?.key);
    }
    const selected = this.isShown && this.#rows.get(this.#selectedKey);
    if (selected) this.#box.setAttribute("aria-activedescendant", selected.id);
    else this.#box.removeAttribute("aria-activedescendant");
  }
}

function newPart(name) {
  const part = document.createElement("span");
  part.className = name;
  return part;
}

function fill(row, candidate, typed, text) {
  const next = nextWord(text, candidate.text);
  const gap = /^\s*/.exec(next)[0];
  const parts = [typed, gap, next.slice(gap.length), candidate.text.slice(next.length)];
  parts.forEach((part, place) => (row.children[place].textContent = part));
  row.classList.toggle("cut", candidate.finishReason === "length" && !ENDS_A_SENTENCE.test(candidate.text));
  row.style.setProperty("--share", candidate.score === null ? "0" : String(Math.exp(candidate.score)));
}

/** The candidates that were there before at their places, new ones behind them. */
function inOrderOf(before, candidates) {
  const places = new Map(before.map(({ key }, place) => [key, place]));
  const placeOf = ({ key }) => places.get(key) ?? before.length;
  return [...candidates].sort((a, b) => placeOf(a) - placeOf(b));
}
