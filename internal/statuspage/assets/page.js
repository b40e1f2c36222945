// The status page: it keeps the state that Usher sends, and shows it again when it changes.

import { fill } from "./dom.js";
import * as show from "./view.js";

// The parts of the state by their keys, as status/events sends them.
const parts = new Map();

const view = {
  state: undefined,
  filter: "",
  whole: new Set(), // the lists that are shown whole
  picture: { mode: "off", header: false },
  selected: { gateway: undefined, listener: undefined },
  skew: 0, // of the browser's clock, in milliseconds
  byGateway: new Map(), // the Envoys
  now() {
    return Date.now() - this.skew;
  },
  envoysOf(gateway) {
    return this.byGateway.get(gateway) ?? [];
  },
};

// assemble builds the state from its parts.
function assemble() {
  const state = { ...parts.get("usher"), problems: parts.get("problems"), changes: parts.get("changes"), gateways: [], envoys: [] };
  view.byGateway = new Map();
  for (const [key, part] of [...parts].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (key.startsWith("gateway/")) state.gateways.push(part);
    if (!key.startsWith("envoy/")) continue;
    part.key = key;
    state.envoys.push(part);
    if (!view.byGateway.has(part.gateway)) view.byGateway.set(part.gateway, []);
    view.byGateway.get(part.gateway).push(part);
  }
  return state;
}

// decode reads a part of the address, which a user may have damaged.
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

// select finds what the address names: "#/GATEWAY/PORT". Without a name, the gateway is the one with the worst problem.
function select() {
  const [, name, port] = location.hash.split("/").map(decode);
  const { gateways, problems } = view.state;
  const gateway = gateways.find((g) => g.name === name) ?? gateways.find((g) => g.name === problems[0]?.gateway) ?? gateways[0];
  const listener = gateway?.listeners.find((l) => String(l.port) === port) ?? gateway?.listeners[0];
  const before = view.selected;
  view.selected = { gateway, listener };
  if (before.gateway?.name !== gateway?.name || before.listener?.port !== listener?.port || before.listener?.inForce !== listener?.inForce) {
    view.picture = { mode: listener?.inForce || "off", header: Boolean(listener?.inForce && listener.inForce !== "off") };
  }
}

let scheduled = false;

// render shows the state with the next frame.
function render() {
  if (scheduled || !view.state) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const begin = performance.now();
    select();
    for (const section of ["facts", "summary", "problems", "gateways", "gateway", "changes"]) {
      fill(document.getElementById(section), show[section](view));
    }
    const worst = view.state.problems.filter((p) => p.severity !== "notice").length;
    document.title = worst ? `(${worst}) Usher` : "Usher";
    document.body.classList.toggle("single", view.state.gateways.length < 2);
    performance.clearMeasures("render");
    performance.measure("render", { start: begin });
  });
}

// apply takes a message of status/events.
function apply(message) {
  if (message.all) parts.clear();
  for (const [key, part] of Object.entries(message.parts ?? {})) parts.set(key, part);
  for (const key of message.removed ?? []) parts.delete(key);
  view.skew = Date.now() - Date.parse(message.time);
  view.state = assemble();
  render();
}

const live = document.getElementById("live");
let stream;
let attempts = 0;

// A connection can be dead without an error, such as that of a port-forward. Usher always sends something.
let watchdog;

function say(level, text) {
  live.className = `live script ${level}`;
  if (live.textContent !== text) live.textContent = text;
}

// connect opens the stream of changes. A page that is hidden has none: Usher serves few at the same time.
function connect() {
  if (stream || document.hidden) return;
  stream = new EventSource("status/events");
  watch();
  stream.onmessage = (event) => {
    watch();
    attempts = 0;
    say("good", "live");
    apply(JSON.parse(event.data));
  };
  stream.onerror = reconnect;
}

function watch() {
  clearTimeout(watchdog);
  watchdog = setTimeout(reconnect, Number(live.dataset.quiet));
}

function reconnect() {
  disconnect();
  say("bad", view.state ? "not connected; this is the last state" : "not connected");
  setTimeout(connect, Math.min(500 * 2 ** attempts++, 10000));
}

function disconnect() {
  clearTimeout(watchdog);
  stream?.close();
  stream = undefined;
}

document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
addEventListener("hashchange", () => {
  render();
  if (location.hash.startsWith("#/") && !document.activeElement?.matches("a")) document.getElementById("gateway").focus();
});

const actions = {
  whole: (value) => (view.whole.has(value) ? view.whole.delete(value) : view.whole.add(value)),
  mode: (value) => (view.picture.mode = value),
  header: (value) => (view.picture.header = value === "yes"),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-action]");
  if (!button) return;
  actions[button.dataset.action](button.dataset.value);
  render();
});

const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  view.filter = filter.value.trim().toLowerCase();
  render();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && document.activeElement !== filter && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    filter.focus();
  }
  if (event.key === "Escape" && document.activeElement === filter) {
    filter.value = "";
    filter.dispatchEvent(new Event("input"));
  }
});

// Times go on by themselves.
setInterval(() => {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const at = Date.parse(time.dateTime);
    const text = "left" in time.dataset ? `${show.span(at - view.now())} left` : (time.dataset.before ?? "") + show.span(view.now() - at) + (time.dataset.after ?? "");
    if (time.textContent !== text) time.textContent = text;
  }
}, 1000);

say("busy", "connecting");
connect();
