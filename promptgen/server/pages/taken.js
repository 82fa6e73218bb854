/** The prompts that were taken, newest first, in a drawer; kept in this browser alone, for all its tabs. */

import { kept } from "./store.js";

const MOST = 50;

export class Taken {
  #drawer;

  /** `onRecall(prompt)` is called when one is chosen again. */
  constructor(drawer, onRecall) {
    this.#drawer = drawer;
    kept.watch("taken", () => this.#show());
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
    const prompts = this.#prompts;
    const [newest, ...older] = prompts;
    const others = newest !== undefined && prompt.startsWith(newest) ? older : prompts;
    this.#keep([prompt, ...others.filter((other) => other !== prompt)].slice(0, MOST));
  }

  /** As they are kept now: another tab may have added one, or forgotten all. */
  get #prompts() {
    return [kept.get("taken")].flat().filter((prompt) => typeof prompt === "string");
  }

  #keep(prompts) {
    kept.set("taken", prompts.length > 0 ? prompts : null);
    this.#show();
  }

  #show() {
    const prompts = this.#prompts;
    this.#drawer.querySelector("ul").replaceChildren(...prompts.map(newEntry));
    this.#drawer.querySelector(".none").hidden = prompts.length > 0;
    this.#drawer.querySelector(".forget").hidden = prompts.length === 0;
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
