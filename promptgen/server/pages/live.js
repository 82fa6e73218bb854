/**
 * What screen readers are told. A region whose text stays the same is not read out again, and browsers leave equal text alone:
 * so it is emptied first, and the words come a moment later.
 */

const PAUSE_MS = 100; // the emptying must be noticed

export class Live {
  #region;
  #timer = 0;

  constructor(region) {
    this.#region = region;
  }

  say(words) {
    clearTimeout(this.#timer);
    this.#region.textContent = "";
    this.#timer = setTimeout(() => (this.#region.textContent = words), PAUSE_MS);
  }
}
