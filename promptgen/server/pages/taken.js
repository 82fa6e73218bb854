/** The prompts that were taken, newest first, in a drawer; kept in this browser alone. */

import { kept } from "./store.js";

const MOST = 50;

export class Taken {
  #drawer;
  #prompts = kept.get("taken", []);

  /** `onRecall(prompt)` is called when one is chosen again. */
  constructor(drawer, onRecall) {
    this.#drawer = drawer;
    drawer.addEventListener("beforetoggle", () => this.#show());
    drawer.addEventListener("click", ({ target }) => {
      if (target.matches(".forget")) this.#keep([]);
      if (!target.matches(".prompt")) return;
      drawer.hidePopover();
      onRecall(target.textContent);
    });
  }

  /** A prompt that goes on from the newest one takes its place: a walk word by word is one entry. */
  add(prompt) {
    const [newest, ...older] = this.#prompts;
    const others = newest !== undefined && prompt.startsWith(newest) ? older : this.#prompts;
    this.#keep([prompt, ...others.filter((other) => other !== prompt)].slice(0, MOST));
  }

  #keep(prompts) {
    this.#prompts = prompts;
    kept.set("taken", prompts.length > 0 ? prompts : null);
    this.#show();
  }

  #show() {
    this.#drawer.querySelector("ul").replaceChildren(...this.#prompts.map(newEntry));
    this.#drawer.querySelector(".none").hidden = this.#prompts.length > 0;
    this.#drawer.querySelector(".forget").hidden = this.#prompts.length === 0;
  }
}

function newEntry(prompt) {
  const [entry, button] = ["li", "button"].map((name) => document.createElement(name));
  button.type = "button";
  button.className = "prompt";
  button.textContent = prompt;
  entry.append(button);
  return entry;
}
