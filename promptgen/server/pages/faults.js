/** Which words tell a person what went wrong: the name of an entry of words.js. */

export function wordFor({ status, code, param }) {
  if (code === "context_length_exceeded") return "tooLong";
  if (status === 0) return "unreachable";
  if (status === 429 || status === 503) return "busy";
  if (status === 401) return "keyWanted";
  if (status === 403) return "forbidden";
  if (status === 504) return "late";
  return status === 400 && param ? "setting" : "broken";
}
