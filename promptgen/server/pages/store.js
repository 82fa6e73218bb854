/** What the browser keeps for this page. A browser that keeps nothing (private windows, full disks) is no reason to fail. */

class Store {
  #storage;
  #unkept = new Map(); // what the browser did not take: it is here until the page is closed

  constructor(storage) {
    this.#storage = storage;
  }

  get(name, otherwise = null) {
    if (this.#unkept.has(name)) return this.#unkept.get(name) ?? otherwise;
    try {
      return JSON.parse(this.#storage().getItem(`promptgen.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  /** null forgets. */
  set(name, value) {
    this.#unkept.delete(name);
    try {
      if (value === null) this.#storage().removeItem(`promptgen.${name}`);
      else this.#storage().setItem(`promptgen.${name}`, JSON.stringify(value));
    } catch {
      this.#unkept.set(name, value);
    }
  }

  /** `onChange()` is called when another tab has kept something under `name`, or forgotten it. */
  watch(name, onChange) {
    addEventListener("storage", ({ key }) => {
      if (key !== `promptgen.${name}` && key !== null) return; // null: everything was forgotten
      this.#unkept.delete(name);
      onChange();
    });
  }
}

/** For good. */
export const kept = new Store(() => localStorage);
/** Until the tab is closed: what should not stay on a disk. */
export const keptInTab = new Store(() => sessionStorage);
