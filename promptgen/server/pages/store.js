/** What the browser keeps for this page. A browser that keeps nothing (private windows, full disks) is no reason to fail. */

class Store {
  #storage;

  constructor(storage) {
    this.#storage = storage;
  }

  get(name, otherwise = null) {
    try {
      return JSON.parse(this.#storage().getItem(`promptgen.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  /** null forgets. */
  set(name, value) {
    try {
      if (value === null) this.#storage().removeItem(`promptgen.${name}`);
      else this.#storage().setItem(`promptgen.${name}`, JSON.stringify(value));
    } catch {
      // It is kept until the page is closed, by whoever asked.
    }
  }
}

/** For good. */
export const kept = new Store(() => localStorage);
/** Until the tab is closed: what should not stay on a disk. */
export const keptInTab = new Store(() => sessionStorage);
