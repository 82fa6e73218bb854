/** Where words end, in any language. */

const words = new Intl.Segmenter(undefined, { granularity: "word" });
const LOOK_BACK = 40; // characters of the text before that may share a word with what follows

/** The part of `completion` that ends the next word after `text`, with the spaces and marks before it; all of it if no word is left. */
export function nextWord(text, completion) {
  const before = text.slice(-LOOK_BACK).replace(/^[\udc00-\udfff]/, "");
  for (const { segment, index, isWordLike } of words.segment(before + completion)) {
    const end = index + segment.length - before.length;
    if (isWordLike && end > 0) return completion.slice(0, end);
  }
  return completion;
}

/** The end of `text` to show before a continuation: `length` characters of its last line at most. */
export function tail(text, length) {
  const line = Array.from(text.slice(text.lastIndexOf("\n") + 1));
  return line.length > length ? `…${line.slice(-length).join("")}` : line.join("");
}
