/** The page: a box, the candidates under it, two drawers. Wires the parts; each of them does one thing. */

import { Promptgen } from "../promptgen.js";
import { Box } from "./box.js";
import { copyText } from "./clipboard.js";
import { List } from "./list.js";
import { Language, switchTheme } from "./look.js";
import { Notices } from "./notices.js";
import { nextWord } from "./segments.js";
import { Settings } from "./settings.js";
import { keptInTab } from "./store.js";
import { Suggester } from "./suggester.js";
import { Taken } from "./taken.js";
import { words } from "./words.js";

const COPIED_FOR_MS = 1500;

const element = (id) => document.getElementById(id);
let view = null;
let walking = null; // the candidate whose next word is being written

switchTheme(element("theme"));
const language = new Language(words, element("language"), () => view && show(view));
const say = (name, places) => language.say(name, places);
const notices = new Notices(say);
const taken = new Taken(element("taken"), (prompt) => (box.text = prompt));
const settings = new Settings(element("settings-form"), () => suggester.again());
const suggester = new Suggester(newSession(), { fields: () => settings.fields, onView: show });
const list = new List(element("box"), element("candidates"), { onTake: takeAll, onSelect: (candidate) => suggester.choose(candidate) });
const box = new Box(element("box"), { onText: (text) => suggester.type(text, walking), onHold: () => suggester.hold() });

element("box").addEventListener("keydown", onKey);
element("box").addEventListener("input", () => (list.open = true));
element("examples").addEventListener("click", ({ target }) => target.matches("button") && (box.text = target.textContent));
element("clear").addEventListener("click", () => (box.text = ""));
element("copy").addEventListener("click", copy);
element("key-form").addEventListener("submit", useKey);
addEventListener("online", () => view?.fault?.status === 0 && suggester.again());
box.report(); // the browser may have brought back what was written here before

function newSession() {
  return new Promptgen(new URL("..", import.meta.url), { key: keptInTab.get("key", "") }).session();
}

function show(newest) {
  view = newest;
  list.show(view);
  notices.show(view);
  element("took").textContent = view.tookMs === null ? "" : say("took", { ms: Math.round(view.tookMs) });
  element("examples").hidden = box.text !== "";
  element("tools").hidden = box.text === "";
}

/** What each key does; true if that was all it should do. With the list closed, all keys are the box's own. */
const actions = {
  Tab: () => list.isShown && takeWord(list.current),
  // Enter starts no line while the list is open (Shift+Enter does): a few milliseconds must not decide what a key does.
  Enter: () => list.open && (!list.isShown || takeAll(list.current)),
  ArrowDown: () => select(1),
  ArrowUp: () => list.selected !== undefined && select(-1),
  Escape: () => list.isShown && close(),
};

function onKey(event) {
  if (box.isComposing(event) || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (actions[event.key]?.()) event.preventDefault();
}

function takeWord(candidate) {
  walking = candidate;
  box.append(nextWord(box.text, candidate.text));
  walking = null;
  taken.add(box.text);
  return true;
}

function takeAll(candidate) {
  box.append(candidate.text);
  taken.add(box.text);
  notices.announce(say("taken", { text: candidate.text }));
  return true;
}

function select(step) {
  list.open = true;
  if (list.isShown) list.move(step);
  return list.isShown;
}

function close() {
  list.open = false;
  return true;
}

async function copy() {
  const isCopied = await copyText(box.text);
  taken.add(box.text);
  if (!isCopied) {
    notices.tell(say("notCopied"));
    return;
  }
  notices.announce(say("copied"));
  element("copy").classList.add("done");
  setTimeout(() => element("copy").classList.remove("done"), COPIED_FOR_MS);
}

function useKey(event) {
  event.preventDefault();
  keptInTab.set("key", element("key").value);
  element("key").value = "";
  suggester.again(newSession());
  element("box").focus();
}
