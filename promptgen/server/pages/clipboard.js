/**
 * Copies text, and says whether it did. Browsers keep navigator.clipboard from pages without TLS, as those of a service on the
 * local network are.
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text);
  }
}

/** The focus is where it was afterwards. */
function copyByCommand(text) {
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  field.className = "unseen";
  field.style.whiteSpace = "pre"; // what is copied has its line breaks
  field.value = text;
  document.body.append(field);
  field.focus({ preventScroll: true });
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  focused?.focus({ preventScroll: true });
  return isCopied;
}
