/** The talk as bubbles. A turn that has not changed keeps its elements, so that nothing jumps and a selection stays. */

const NEAR_PX = 120; // whoever has scrolled up further than this is reading, and is left alone

export class Bubbles {
  #list;
  #say;
  #turns = []; // those that are shown, and their elements
  #elements = [];
  #pending = null;

  /** `say(name, places)` gives words; `onChoose(index)`, `onAgain()` and `onCopy(text, button)` are called from the buttons. */
  constructor(list, say, { onChoose, onAgain, onCopy }) {
    this.#list = list;
    this.#say = say;
    list.addEventListener("click", ({ target }) => {
      const button = target.closest("button");
      if (button?.matches(".other")) onChoose(Number(button.dataset.index));
      if (button?.matches(".again")) onAgain();
      if (button?.matches(".copy")) onCopy(button.closest(".answer").querySelector("p").textContent, button);
    });
  }

  show({ turns, pending }) {
    const isNear = document.documentElement.scrollHeight - innerHeight - scrollY < NEAR_PX;
    const shown = pending?.replaces ? turns.slice(0, -1) : turns;
    const hasGrown = shown.length > this.#turns.length || (pending && !this.#pending);
    this.#drop(shown);
    const lastOf = pending ? -1 : shown.length - 1;
    for (let at = this.#turns.length; at < shown.length; at++) this.#add(shown[at]);
    this.#elements.forEach((element, at) => element.classList.toggle("last", at === lastOf));
    this.#showPending(pending);
    if (isNear || hasGrown) scrollTo({ top: document.documentElement.scrollHeight });
  }

  /** In another language. */
  again(view) {
    this.#drop([]);
    this.#showPending(null);
    this.show(view);
  }

  /** Takes away what is shown from the first difference on. */
  #drop(turns) {
    let same = 0;
    while (same < this.#turns.length && this.#turns[same] === turns[same]) same++;
    for (const element of this.#elements.splice(same)) element.remove();
    this.#turns.length = same;
  }

  #add(turn) {
    const element = this.#newTurn(turn.question, turn.answers[turn.chosen]);
    element.querySelector(".answer").append(...this.#newTools(turn));
    if (this.#pending) this.#pending.before(element);
    else this.#list.append(element);
    this.#turns.push(turn);
    this.#elements.push(element);
  }

  #showPending(pending) {
    if (!pending) {
      this.#pending?.remove();
      this.#pending = null;
      return;
    }
    if (!this.#pending) {
      this.#pending = this.#newTurn(pending.question, "");
      this.#pending.classList.add("pending");
      this.#pending.querySelector(".answer").setAttribute("aria-busy", "true");
      this.#list.append(this.#pending);
    }
    const text = this.#pending.querySelector(".answer p");
    if (text.textContent !== pending.text) text.textContent = pending.text;
  }

  #newTurn(question, answer) {
    const element = make("li", "turn");
    element.append(this.#newBubble("question", "you", question), this.#newBubble("answer", "model", answer));
    return element;
  }

  #newBubble(kind, speaker, text) {
    const bubble = make("div", kind);
    bubble.append(make("span", "unseen", this.#say(speaker)), make("p", "", text));
    return bubble;
  }

  /** Copying for every answer; another one, and those that were drawn beside it, for the last. */
  #newTools(turn) {
    const tools = make("div", "tools");
    tools.append(this.#newButton("copy", "icon-copy", "icon-done"), this.#newButton("again", "icon-again"));
    const others = turn.answers.map((text, index) => ({ text, index })).filter(({ index }) => index !== turn.chosen);
    if (others.length === 0) return [tools];
    const details = make("details", "others");
    const list = make("ul");
    for (const { text, index } of others) {
      const button = make("button", "other", text);
      button.type = "button";
      button.dataset.index = index;
      const entry = make("li");
      entry.append(button);
      list.append(entry);
    }
    const count = others.length;
    details.append(make("summary", "", this.#say(count === 1 ? "othersOne" : "others", { count })), list);
    return [tools, details];
  }

  #newButton(name, ...icons) {
    const button = make("button", `quiet icon ${name}`);
    button.type = "button";
    button.title = this.#say(name);
    button.setAttribute("aria-label", this.#say(name));
    for (const icon of icons) {
      const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
      picture.setAttribute("aria-hidden", "true");
      use.setAttribute("href", `#${icon}`);
      picture.append(use);
      button.append(picture);
    }
    return button;
  }
}

function make(name, kind = "", text = "") {
  const element = document.createElement(name);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  return element;
}
