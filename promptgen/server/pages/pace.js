/** How long to wait after a key before asking: not at all while answers come between two keys, longer the slower they are. */

const UNNOTICED_MS = 40;
const LONGEST_WAIT_MS = 300;
const SHARE_OF_LATENCY = 0.6;
const WEIGHT_OF_NEWEST = 0.3;

export class Pace {
  #latencyMs = UNNOTICED_MS;

  get waitMs() {
    return Math.min(LONGEST_WAIT_MS, Math.max(0, this.#latencyMs - UNNOTICED_MS) * SHARE_OF_LATENCY);
  }

  noteAnswer(ms) {
    this.#latencyMs += WEIGHT_OF_NEWEST * (ms - this.#latencyMs);
  }

  /** A call that was given up after `ms` would have taken longer: it tells nothing of a fast service, but much of a slow one. */
  noteGivenUp(ms) {
    if (ms > this.#latencyMs) this.noteAnswer(ms);
  }
}
