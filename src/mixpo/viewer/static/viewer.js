"use strict";
// Keys, image zoom and formulas. Every page works without this file; nothing here asks the server for anything but links and images.

const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- formulas ---------------------------------------------------------------------------------------------------------------
// KaTeX builds elements (no HTML from text), trusts no command that could link or load, and gives up on runaway macros.

const source = new Map();
const DEEPEST = 300; // Elements inside each other; layout recurses, and from some 900 on a browser's tab crashes.
function isDeep(root) {
  let depth = 0;
  for (let level = [root]; level.length && depth <= DEEPEST; depth += 1) level = level.flatMap((element) => [...element.children]);
  return depth > DEEPEST;
}
function setFormula(part) {
  const room = document.createElement("span");
  try {
    katex.render(part.dataset.tex, room, { displayMode: "display" in part.dataset, trust: false, throwOnError: true, strict: "ignore", maxExpand: 200, maxSize: 20 });
  } catch {
    return; // What KaTeX cannot read stays as it was written.
  }
  if (isDeep(room)) return; // So does a fraction in a fraction in a fraction ..., which degenerate models write.
  source.set(part, part.textContent);
  part.replaceChildren(...room.childNodes);
  part.classList.add("set");
}
function formulas(set) {
  if (!set) {
    for (const [part, text] of source) { part.replaceChildren(text); part.classList.remove("set"); }
    source.clear();
  } else if (window.katex) {
    all(".tex").forEach(setFormula);
  }
}
const SOURCE_TEXT = "mixpo-formulas-as-source";
let memory = null; // Browsers that store nothing raise an error.
try { memory = localStorage; } catch { /* The choice is kept for this page only. */ }
formulas(memory?.getItem(SOURCE_TEXT) !== "1");
function toggleFormulas() {
  const written = source.size > 0;
  memory?.setItem(SOURCE_TEXT, written ? "1" : "0");
  formulas(!written);
}

// --- images -----------------------------------------------------------------------------------------------------------------

const zoom = one("#zoom"), room = one(".zoom-room"), picture = one("img", room), buttons = all(".zoomable");
let shown = 0, scale = 0;
function resize(next) {
  const fit = Math.min((room.clientWidth - 16) / picture.naturalWidth, (room.clientHeight - 16) / picture.naturalHeight);
  scale = next ? Math.min(Math.max(next, fit / 2), 64) : fit;
  picture.width = Math.round(picture.naturalWidth * scale);
  picture.height = Math.round(picture.naturalHeight * scale);
  picture.classList.toggle("crisp", scale >= 2);
  one(".zoom-of").textContent = `${buttons.length > 1 ? `image ${shown + 1} of ${buttons.length}, ` : ""}${picture.naturalWidth} × ${picture.naturalHeight}, ${Math.round(scale * 100)} %`;
}
function showImage(number) {
  shown = (number + buttons.length) % buttons.length;
  picture.alt = one("img", buttons[shown]).alt;
  picture.src = buttons[shown].dataset.full;
  for (const name of ["before", "after"]) one(`[data-zoom=${name}]`).disabled = buttons.length < 2;
  if (!zoom.open) zoom.showModal();
  room.focus();
}
picture.addEventListener("load", () => resize(0));
const ZOOM = {
  in: () => resize(scale * 1.4), out: () => resize(scale / 1.4), fit: () => resize(0), close: () => zoom.close(),
  before: () => showImage(shown - 1), after: () => showImage(shown + 1),
};
const ZOOM_KEYS = { "+": "in", "=": "in", "-": "out", "0": "fit", z: "close", ArrowLeft: "before", ArrowRight: "after" };
buttons.forEach((button, number) => button.addEventListener("click", () => showImage(number)));
all("[data-zoom]").forEach((button) => button.addEventListener("click", () => ZOOM[button.dataset.zoom]()));
picture.addEventListener("click", () => resize(scale * 1.4));
zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
// Small pictures are shown large with their pixels visible.
all(".zoomable img").forEach((image) => {
  const sharpen = () => image.classList.toggle("small-picture", image.naturalWidth > 0 && image.naturalWidth <= 112);
  image.complete ? sharpen() : image.addEventListener("load", sharpen);
});
// A small picture that is not there leaves its place empty.
all(".thumb img").forEach((image) => {
  if (image.complete && !image.naturalWidth) image.remove();
  image.addEventListener("error", () => image.remove());
});

// --- filters and keys -----------------------------------------------------------------------------------------------------------

all(".filter select").forEach((choice) => choice.addEventListener("change", () => choice.form.requestSubmit()));
all(".filter").forEach((form) => form.addEventListener("submit", () => {
  // Empty fields are omitted from the address.
  all("input, select", form).forEach((field) => { field.disabled = field.value === ""; });
}));
window.addEventListener("pageshow", () => all(".filter :disabled").forEach((field) => { field.disabled = false; }));

// A search that timed out before it filled a page continues by itself and shows its progress, unless the user is typing another one.
function continueSearch() {
  if (document.activeElement.matches("input, select")) setTimeout(continueSearch, 500);
  else location.reload();
}
if (one("[data-continue]")) setTimeout(continueSearch, 100);

const keys = one("#keys"), keysButton = one("[data-action=keys]");
keysButton.hidden = false;
keysButton.addEventListener("click", () => keys.showModal());

function moveRow(by) {
  const rows = all(".row:not(.head), .row-link");
  const at = rows.indexOf(document.activeElement);
  const next = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by];
  if (next) next.focus();
  return rows.length > 0;
}
// Back in a list, the keys start from the row of the page just left.
document.getElementById(location.hash.slice(1))?.closest(".row, .row-link")?.focus();
const ACTIONS = {
  "?": () => keys.showModal(),
  "/": () => { const field = one("[data-search]"); if (field) { field.closest("details")?.setAttribute("open", ""); field.focus(); field.select(); } },
  z: () => { if (buttons.length) showImage(shown); },
  m: toggleFormulas,
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (zoom.open) {
    const name = ZOOM_KEYS[event.key];
    if (name) { event.preventDefault(); ZOOM[name](); }
    return;
  }
  if (keys.open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  // A focused link or button keeps its own Enter.
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const target = one(`[data-key~="${CSS.escape(event.key)}"]`);
  const row = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (target) { event.preventDefault(); target.click(); }
  else if (row && (event.key.length === 1 || document.activeElement.matches(".row, .row-link"))) { if (moveRow(row)) event.preventDefault(); }
  else if (ACTIONS[event.key]) { event.preventDefault(); ACTIONS[event.key](); }
});
