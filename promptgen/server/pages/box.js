/** The text being written: says what stands there, and never asks in the middle of a composition. */

export class Box {
  #field;
  #onText;
  #onHold;
  #composing = false;

  /** `onText(text)`: there is a text to go on from; `onHold()`: it is being composed, or the caret is not at its end. */
  constructor(field, { onText, onHold }) {
    this.#field = field;
    this.#onText = onText;
    this.#onHold = onHold;
    field.addEventListener("input", () => this.report());
    field.addEventListener("compositionstart", () => this.#compose(true));
    field.addEventListener("compositionend", () => this.#compose(false));
    document.addEventListener("selectionchange", () => document.activeElement === field && this.report());
  }

  get text() {
    return this.#field.value;
  }

  /** Replaces everything. As all changes here it can be undone with the browser's own keys. */
  set text(text) {
    this.#field.focus();
    this.#field.select();
    this.#insert(text);
  }

  append(text) {
    this.#field.focus();
    this.#field.setSelectionRange(this.text.length, this.text.length);
    this.#insert(text);
  }

  /**
   * Puts a line before what is being written, where the caret stays; into a blank box it comes alone.
   * A composition is waited for: writing beside it would break it off.
   */
  putBefore(line) {
    if (this.#composing) {
      this.#field.addEventListener("compositionend", () => setTimeout(() => this.putBefore(line)), { once: true });
    } else if (this.text.trim() === "") {
      this.text = line;
    } else {
      const { selectionStart, selectionEnd } = this.#field;
      const lengthBefore = this.text.length;
      this.#field.focus();
      this.#field.setSelectionRange(0, 0);
      this.#insert(`${line}\n`);
      const shift = this.text.length - lengthBefore;
      this.#field.setSelectionRange(selectionStart + shift, selectionEnd + shift);
    }
  }

  /** Whether a key belongs to the input method. Safari ends the composition before the key that ended it: 229 gives it away. */
  isComposing(event) {
    return this.#composing || event.isComposing || event.keyCode === 229;
  }

  #insert(text) {
    // The only way to write that the browser can undo; deprecated, and kept by every browser for this.
    const done = text === "" ? document.execCommand("delete") : document.execCommand("insertText", false, text);
    if (!done) {
      this.#field.setRangeText(text, this.#field.selectionStart, this.#field.selectionEnd, "end");
      this.report();
    }
  }

  #compose(composing) {
    this.#composing = composing;
    this.report();
  }

  /** Says what stands there now. */
  report() {
    this.#fit();
    const { selectionStart, selectionEnd, value } = this.#field;
    const atEnd = selectionStart === value.length && selectionEnd === value.length;
    if (this.#composing || !atEnd) this.#onHold();
    else this.#onText(value);
  }

  /** As tall as its text. */
  #fit() {
    if (CSS.supports("field-sizing", "content")) return;
    this.#field.style.height = "auto";
    this.#field.style.height = `${this.#field.scrollHeight}px`;
  }
}
