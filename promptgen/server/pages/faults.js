/** Which words tell a person what went wrong: the name of an entry of words.js. */

export function wordFor({ status, code, param, requestId }) {
  if (code === "context_length_exceeded" || status === 413) return "tooLong";
  if (status === 0) return "unreachable";
  if (status === 429 || status === 503) return "busy";
  if (status === 401) return "keyWanted";
  if (status === 403) return "forbidden";
  if (status === 504) return "late";
  if (status === 400 && param) return "setting";
  return requestId ? "broken" : "brokenNameless"; // a proxy's own answer has no id
}
