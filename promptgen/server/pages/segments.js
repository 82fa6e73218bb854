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

/** The last words of the last line of `text`, `length` characters at most unless the last word alone is longer. */
export function lastWords(text, length) {
  const line = text.slice(text.lastIndexOf("\n") + 1);
  const starts = Array.from(words.segment(line), ({ index }) => index);
  const start = starts.find((index) => line.length - index <= length) ?? starts.at(-1) ?? 0;
  return start > 0 ? `…${line.slice(start).trimStart()}` : line;
}
