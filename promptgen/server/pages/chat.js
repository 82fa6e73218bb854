/** The chat page: what was said above, a box below. Wires the parts; each of them does one thing. */

import { Promptgen } from "../promptgen.js";
import { Box } from "./box.js";
import { Bubbles } from "./bubbles.js";
import { words } from "./chat-words.js";
import { copyText } from "./clipboard.js";
import { wordFor } from "./faults.js";
import { Live } from "./live.js";
import { Language, switchTheme } from "./look.js";
import { keptInTab } from "./store.js";
import { Talk } from "./talk.js";

const COPIED_FOR_MS = 1500;

const element = (id) => document.getElementById(id);
let view = null;

switchTheme(element("theme"));
const language = new Language(words, element("language"), () => view && show(view, "translated"));
const say = (name, places) => language.say(name, places);
const box = new Box(element("box"), { onText: () => {}, onHold: () => {} });
const talk = new Talk(newClient(), { onView: show, onReturn: (question) => box.putBefore(question) });
const live = new Live(element("live"));
const bubbles = new Bubbles(element("talk"), say, { onChoose: choose, onAgain: answerAnew, onCopy: copy });

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
element("box").addEventListener("keydown", onKey);
document.addEventListener("keydown", onEscape); // wherever the focus is
element("stop").addEventListener("click", () => talk.stop());
element("clear").addEventListener("click", () => {
  talk.clear();
  element("box").focus();
});
element("welcome").addEventListener("click", ({ target }) => target.matches(".example") && sendExample(target));
element("key-form").addEventListener("submit", useKey);
talk.show();

function newClient() {
  return new Promptgen(new URL("..", import.meta.url), { key: keptInTab.get("key", "") });
}

function send() {
  const question = box.text.trim();
  if (question === "" || talk.isAnswering) return;
  box.text = "";
  talk.ask(question);
}

/**
 * What stands in the box stays there. The button that was pressed is gone: the focus goes to the one that stops. (In the box it
 * would open a phone's keyboard.)
 */
function sendExample({ textContent }) {
  talk.ask(textContent);
  element("stop").focus();
}

function answerAnew() {
  talk.again();
  element("stop").focus(); // as after an example
}

function onEscape(event) {
  if (event.key === "Escape" && talk.isAnswering && !box.isComposing(event)) talk.stop();
}

function onKey(event) {
  if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey || box.isComposing(event)) return;
  event.preventDefault();
  send();
}

function choose(index) {
  talk.choose(index);
  element("talk").querySelector(".last .again")?.focus(); // the button that was pressed is gone
}

function show(newest, what) {
  view = newest;
  const { turns, pending, fault } = view;
  if (what === "translated") bubbles.again(view);
  else bubbles.show(view);
  element("welcome").hidden = turns.length > 0 || pending !== null;
  element("clear").hidden = turns.length === 0;
  toggleSend(pending === null);
  element("notice").textContent = fault ? wordsOf(fault) : what === "noAnswer" ? say("noAnswer") : "";
  element("key-form").hidden = fault?.status !== 401;
  announce(what);
}

/** One button in one place; whoever was on it stays on it. */
function toggleSend(isReady) {
  const [shown, other] = isReady ? ["send", "stop"] : ["stop", "send"];
  const hadFocus = document.activeElement === element(other);
  element(shown).hidden = false;
  element(other).hidden = true;
  if (hadFocus) element(isReady ? "box" : "stop").focus();
}

/** For screen readers: what others see happen. */
function announce(what) {
  const last = view.turns.at(-1);
  const places = { text: last?.answers[last.chosen] };
  if (["answering", "answered", "chosen", "stopped", "cleared"].includes(what)) live.say(say(what, places));
}

function wordsOf(fault) {
  const word = wordFor(fault);
  const places = { message: fault.message, requestId: fault.requestId, advice: say(view.isBack ? "sendAgain" : "askAnother") };
  return say(word === "keyWanted" && keptInTab.get("key") ? "keyRefused" : word, places);
}

async function copy(text, button) {
  if (!(await copyText(text))) {
    element("notice").textContent = say("notCopied");
    return;
  }
  live.say(say("copied"));
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), COPIED_FOR_MS);
}

function useKey(event) {
  event.preventDefault();
  keptInTab.set("key", element("key").value);
  element("key").value = "";
  talk.useClient(newClient());
  element("box").focus();
}
