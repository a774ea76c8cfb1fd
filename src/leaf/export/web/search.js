// The page: what is typed goes to the worker, and what it finds becomes text of a node, never markup.

const FIRST = 10, MOST = 100;
/** Answers as fast as this come while one types. */
const FAST_MS = 150, PAUSE_MS = 120;
/** Bytes of documents that are loaded unasked, so that the page needs no network any more. */
const KEPT_UNASKED = 32e6;

const $ = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const title = document.title;

let manifest = null; // of the folder, once the student is ready
let asked = { id: 0, question: "", k: FIRST };
let busy = false, waiting = false; // one question at a time, and of those that come meanwhile only the last
let broken = false; // the search could not be loaded
let lastMs = 0;
let pause = null;

$("alone").remove();

// ── The worker ───────────────────────────────────────────────────────────────

worker.onerror = ({ message }) => fail({ reason: message || "this browser has no module workers, which it needs" });
worker.onmessage = ({ data }) => {
  const { type, ...told } = data;
  ({ progress: showLoading, ready: start, found: answered, kept: showKept, failed: fail })[type](told);
};

function start(told) {
  manifest = told.manifest;
  $("progress").hidden = true;
  $("status").textContent = `Ready in ${told.seconds.toFixed(1)} s`;
  $("status").dataset.seconds = told.seconds;
  offerToKeep("Documents are loaded as they are found.");
  if (documentBytes() <= KEPT_UNASKED && !navigator.connection?.saveData) setTimeout(() => $("keep").click(), 1000);
  send();
}

function ask(question, k = FIRST) {
  clearTimeout(pause);
  document.title = question ? `${question} – ${title}` : title;
  $("empty").hidden = question !== "";
  if (question === asked.question && k === asked.k) return;
  asked = { id: asked.id + 1, question, k };
  if (question) return send();
  $("found").hidden = true;
  if (manifest) say("");
}

function send() {
  waiting = busy;
  if (busy || !manifest || !asked.question) return;
  busy = true;
  $("hits").setAttribute("aria-busy", "true");
  worker.postMessage({ type: "search", ...asked });
}

function answered(found) {
  busy = false;
  lastMs = found.encodeMs + found.searchMs;
  if (found.id === asked.id && asked.question) show(found);
  if (waiting) send();
}

function fail({ reason, keeping }) {
  if (keeping) return offerToKeep("Not all documents could be loaded.");
  busy = false;
  broken ||= manifest === null;
  $("progress").hidden = true;
  $("hits").setAttribute("aria-busy", "false");
  say(`The search is not possible: ${reason}.`, true);
  if (waiting) send();
  else asked.question = null; // the same one may be asked again
}

// ── Showing ──────────────────────────────────────────────────────────────────

const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const rounded = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const megabytes = (bytes) => `${bytes < 1e7 ? (bytes / 1e6).toFixed(1) : Math.round(bytes / 1e6)} MB`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children); // strings become text nodes
  return node;
}

function say(text, failed = false) {
  $("status").classList.toggle("failed", failed);
  if ($("status").textContent !== text) $("status").textContent = text; // else it is read out again
}

function showLoading({ loaded, total }) {
  if (broken) return; // of the files that were still on their way
  $("progress").hidden = false;
  Object.assign($("progress"), { max: total, value: loaded });
  say(`Loading the search, ${megabytes(total)} …`);
}

function show({ hits, encodeMs, searchMs }) {
  const list = $("hits");
  const before = asked.k > FIRST ? list.children.length : 0; // more of the same question
  if (!before) list.replaceChildren();
  list.append(...hits.slice(before).map((hit, at) => showHit(hit, before + at)));
  $("found").hidden = false;
  for (const hit of list.children) {
    // A button only where there is more to read.
    const text = hit.querySelector(".text:not(.whole)");
    if (text) hit.querySelector(".more").hidden = text.scrollHeight <= text.clientHeight + 1;
  }
  list.setAttribute("aria-busy", "false");
  list.dataset.question = asked.question;
  $("times").textContent = `encode ${rounded(encodeMs)} + search ${rounded(searchMs)}`;
  Object.assign($("times").dataset, { encodeMs, searchMs });
  say(`${counted(hits.length, "result")} of ${counted(manifest.documents, "document")}`);
  $("further").hidden = hits.length < asked.k || asked.k >= Math.min(MOST, manifest.documents);
  if (before) focusHit(before);
}

function showHit(hit, at) {
  const text = make("p", { class: "text" }, hit.text);
  const more = make("button", { class: "link more", type: "button", "aria-expanded": "false" }, "Read on");
  more.addEventListener("click", () => {
    const whole = text.classList.toggle("whole");
    more.setAttribute("aria-expanded", whole);
    more.textContent = whole ? "Less" : "Read on";
  });
  const chips = Object.entries(hit.metadata).filter(([, value]) => value !== null).map(([name, value]) =>
    make("li", {}, `${name} `, isLink(value)
      ? make("a", { href: value, rel: "noopener noreferrer", target: "_blank" }, value) : make("b", {}, String(value))));
  const heading = make("h3", {}, hit.title || hit.id, hit.title && hit.title !== hit.id ? make("small", {}, hit.id) : "");
  return make("li", { class: "hit", tabindex: at ? -1 : 0, "data-id": hit.id, "data-score": hit.score },
    make("span", { class: "rank" }, make("span", { class: "unseen" }, "Rank "), String(at + 1)),
    make("div", {}, make("div", { class: "name" }, heading,
      make("span", { class: "score", title: manifest.similarity }, hit.score.toFixed(3))),
      text, more, make("ul", { class: "marks" }, ...chips)));
}

function isLink(value) {
  return typeof value === "string" && /^https?:\/\/\S+$/i.test(value);
}

function offerToKeep(text) {
  $("offline").textContent = text;
  $("keep").textContent = `Load all of them, ${megabytes(documentBytes())}, to search without a network`;
  $("keep").hidden = false;
}

function showKept({ loaded, total }) {
  $("keep").hidden = true;
  $("offline").textContent = loaded < total
    ? `Loading all documents, ${Math.floor((100 * loaded) / total)} % …`
    : "Everything is loaded: from here on this page needs no network.";
}

function documentBytes() {
  const folder = manifest.chunks.name.split("{}")[0];
  const names = Object.keys(manifest.files).filter((name) => name.startsWith(folder));
  return names.reduce((sum, name) => sum + manifest.files[name].bytes, 0);
}

// ── The address and the keyboard ─────────────────────────────────────────────

function writeAddress(push) {
  const question = $("query").value.trim();
  const address = question ? `?${new URLSearchParams({ q: question })}` : location.pathname;
  if (address === (location.search || location.pathname)) return;
  history[push ? "pushState" : "replaceState"](null, "", address);
}

function readAddress() {
  $("query").value = new URLSearchParams(location.search).get("q") ?? "";
  ask($("query").value.trim());
}

function step(from, by) {
  const at = [...$("hits").children].indexOf(from);
  if (from && at + by < 0) return $("query").focus();
  focusHit(from ? at + by : 0);
}

function focusHit(at) {
  const all = [...$("hits").children];
  const hit = all[Math.min(at, all.length - 1)];
  if (!hit || $("found").hidden) return;
  for (const each of all) each.tabIndex = each === hit ? 0 : -1;
  hit.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const hit = event.target.closest?.(".hit");
  const typing = event.target === $("query");
  const actions = {
    Escape: () => { $("query").value = ""; $("query").focus(); writeAddress(false); ask(""); },
    "/": !typing && (() => { $("query").focus(); $("query").select(); }),
    j: !typing && (() => step(hit, 1)),
    k: hit && (() => step(hit, -1)),
    ArrowDown: (hit || typing) && (() => step(hit, 1)),
    ArrowUp: hit && (() => step(hit, -1)),
    Enter: hit === event.target && (() => { const more = hit.querySelector(".more"); if (!more.hidden) more.click(); }),
  };
  const action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  writeAddress(true);
  ask($("query").value.trim());
});
$("query").addEventListener("input", (event) => {
  clearTimeout(pause);
  if (event.isComposing || lastMs > FAST_MS) return;
  pause = setTimeout(() => { writeAddress(false); ask($("query").value.trim()); }, PAUSE_MS);
});
$("further").addEventListener("click", () => ask(asked.question, Math.min(MOST, asked.k + FIRST)));
$("keep").addEventListener("click", () => { showKept({ loaded: 0, total: 1 }); worker.postMessage({ type: "keep" }); });
window.addEventListener("popstate", readAddress);
readAddress();
