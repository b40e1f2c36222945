// The menu is open on a wide window, and folded up on a narrow one.
const menu = document.querySelector(".menu");
menu.open = !matchMedia("(max-width: 860px)").matches;
menu.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });

// A button copies a block of code: of one with prompts, the commands. A browser has a clipboard only with HTTPS or on the same
// machine.
for (const pre of navigator.clipboard ? document.querySelectorAll("article pre") : []) {
  const around = document.createElement("div");
  around.className = "code";
  pre.replaceWith(around);
  around.append(pre, copyButton(pre));
}

function copyButton(pre) {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = "Copy";
  let before;
  button.addEventListener("click", async () => {
    clearTimeout(before);
    const copied = await navigator.clipboard.writeText(commands(pre.textContent)).then(() => true, () => false);
    button.textContent = copied ? "Copied" : "Not copied";
    before = setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  return button;
}

// commands returns the lines with a prompt, without it, and those with which such a line goes on; or the whole text if it has
// no prompt.
function commands(text) {
  if (!/^\$ /m.test(text)) return text;
  let goesOn = false;
  const lines = text.split("\n").filter((line) => {
    const isCommand = goesOn || line.startsWith("$ ");
    goesOn = isCommand && /(\\|\||&&)\s*$/.test(line);
    return isCommand;
  });
  return lines.map((line) => line.replace(/^\$ /, "") + "\n").join("");
}

// The search loads its index when it is used first.
const root = new URL("../", import.meta.url);
const input = document.querySelector(".search input");
const results = document.querySelector("#search-results");
let loading;
let loads = 0;

async function load() {
  const again = loads++ ? `?${loads}` : ""; // a browser does not load a module again whose load has failed
  const [{ default: MiniSearch }, entries] = await Promise.all([
    import(`./minisearch.js${again}`),
    fetch(new URL("search.json", root)).then((response) => (response.ok ? response.json() : Promise.reject(response.statusText))),
  ]);
  const index = new MiniSearch({
    fields: ["heading", "page", "text"],
    storeFields: ["heading", "page", "text"],
    searchOptions: { boost: { heading: 4, page: 3 }, prefix: true, fuzzy: (term) => (term.length > 4 ? 0.2 : 0), combineWith: "AND" },
  });
  index.addAll(entries);
  return index;
}

async function search() {
  const query = input.value.trim();
  if (!query) return show([]);
  const index = await (loading ??= load().catch(() => (loading = undefined))); // the next search loads it again
  if (query !== input.value.trim()) return; // typed on meanwhile
  if (!index) return show([], "The search could not be loaded.");
  show(index.search(query).slice(0, 12).map((hit) => item(hit)), "Nothing found.");
}

function item({ id, page, heading, text, terms }) {
  const link = document.createElement("a");
  link.href = new URL(id, root);
  const title = document.createElement("strong");
  title.textContent = heading ? `${page}: ${heading}` : page;
  link.append(title, extract(text, terms));
  return link;
}

// extract returns the text around the first of the terms.
function extract(text, terms) {
  const at = Math.min(...terms.map((term) => text.toLowerCase().indexOf(term)).filter((i) => i >= 0), text.length);
  const start = at === text.length || at < 60 ? 0 : text.indexOf(" ", at - 60) + 1;
  return (start ? "…" : "") + text.slice(start, start + 140).trim() + "…";
}

function show(items, otherwise = "") {
  if (!items.length && otherwise) {
    const nothing = document.createElement("p");
    nothing.textContent = otherwise;
    items = [nothing];
  }
  results.replaceChildren(...items.map((content) => {
    const entry = document.createElement("li");
    entry.append(content);
    return entry;
  }));
  results.hidden = !items.length;
}

input.addEventListener("input", search);
input.addEventListener("focus", search);
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea")) {
    event.preventDefault();
    input.focus();
  }
  if (event.key === "Escape") show([]);
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp" || results.hidden) return;
  const stops = [input, ...results.querySelectorAll("a")];
  const at = stops.indexOf(document.activeElement);
  if (at < 0) return;
  event.preventDefault();
  stops.at((at + (event.key === "ArrowDown" ? 1 : -1)) % stops.length).focus();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".search")) show([]);
});
