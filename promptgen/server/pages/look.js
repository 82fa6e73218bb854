/** Light or dark, Chinese or English: as the system has it until someone chooses, then as chosen. Shared by all pages. */

import { kept } from "./store.js";

const ENGLISH = "en";
const CHINESE = "zh-CN";
const root = document.documentElement;

/** Turns the button into a switch between light and dark. */
export function switchTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  const chosen = kept.get("theme");
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  show();
  system.addEventListener("change", show);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept.set("theme", root.dataset.theme);
    show();
  });
}

/**
 * The words of a page in the reader's language: `dictionaries` is { en: {name: words}, "zh-CN": {name: words} }. Elements
 * say what they want: data-word (their text), data-label (aria-label and title), data-placeholder.
 */
export class Language {
  #dictionaries;
  #button;
  #onChange;

  constructor(dictionaries, button, onChange) {
    this.#dictionaries = dictionaries;
    this.#button = button;
    this.#onChange = onChange;
    const chosen = kept.get("language");
    root.lang = chosen in dictionaries ? chosen : navigator.language.startsWith("zh") ? CHINESE : ENGLISH;
    button.addEventListener("click", () => this.#change());
    this.#apply();
  }

  /** The words called `name`, with `{place}` filled in. */
  say(name, places = {}) {
    return this.#dictionaries[root.lang][name].replace(/\{(\w+)\}/g, (_, place) => places[place]);
  }

  #change() {
    root.lang = this.#other;
    kept.set("language", root.lang);
    this.#apply();
    this.#onChange();
  }

  get #other() {
    return root.lang === ENGLISH ? CHINESE : ENGLISH;
  }

  #apply() {
    document.title = this.say("title");
    for (const element of document.querySelectorAll("[data-word]")) element.textContent = this.say(element.dataset.word);
    for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = this.say(element.dataset.placeholder);
    for (const element of document.querySelectorAll("[data-label]")) {
      element.setAttribute("aria-label", this.say(element.dataset.label));
      element.title = this.say(element.dataset.label);
    }
    this.#button.lang = this.#other; // it is named in the language it leads to
  }
}
