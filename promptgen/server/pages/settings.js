/** The settings form: what it shows goes with each call, what is empty is left to the model. The form itself says what is allowed. */

import { kept } from "./store.js";

export class Settings {
  #form;
  #onChange;

  constructor(form, onChange) {
    this.#form = form;
    this.#onChange = onChange;
    for (const [name, value] of Object.entries(kept.get("settings", {}))) {
      if (form.elements[name]) form.elements[name].value = value;
    }
    this.#showOutputs();
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => this.#changed());
    form.addEventListener("reset", () => setTimeout(() => this.#changed())); // the fields are reset after this event
  }

  /** The valid ones that are not empty, by the names of POST /generate. */
  get fields() {
    const filled = this.#inputs.filter(({ value, validity }) => value !== "" && validity.valid);
    return Object.fromEntries(filled.map(({ name, valueAsNumber }) => [name, valueAsNumber]));
  }

  get #inputs() {
    return [...this.#form.querySelectorAll("input")];
  }

  #changed() {
    kept.set("settings", this.fields);
    this.#showOutputs();
    this.#onChange();
  }

  #showOutputs() {
    for (const output of this.#form.querySelectorAll("output")) output.value = this.#form.elements[output.htmlFor.value].value;
  }
}
