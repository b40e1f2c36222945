// What the page shows: each function returns elements for a part of the state (internal/status), and changes nothing.

import { el } from "./dom.js";
import { picture } from "./picture.js";

// few is how many items of a list are shown before a button shows all.
const few = 25;

// list returns rows for those of the items that match the filter, at most few unless the list is shown whole.
function list(view, name, items, row, all = view.whole.has(name)) {
  const shown = all ? items : items.slice(0, few);
  return { rows: shown.map(row), more: items.length > few && moreButton(name, items.length, all) };
}

function moreButton(name, length, all) {
  return el("button", { type: "button", class: "more", "data-action": "whole", "data-value": name, "data-key": `more-${name}`, "aria-expanded": String(all) },
    all ? `Show only the first ${few}` : `Show all ${count(length)}`);
}

function matches(view, ...texts) {
  return view.filter === "" || texts.some((t) => t?.toLowerCase().includes(view.filter));
}

function count(n) {
  return n.toLocaleString("en");
}

function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

// ago returns an element that page.js keeps up to date.
export function ago(view, time, before = "", after = "") {
  return el("time", { datetime: time, title: new Date(time).toLocaleString(), "data-before": before, "data-after": after },
    before + span(view.now() - Date.parse(time)) + after);
}

// span returns a time of so many milliseconds in words.
export function span(ms) {
  const s = Math.max(0, ms / 1000);
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

// duration is span for the short times of a delivery.
function duration(ms) {
  if (ms < 1000) return `${Math.max(1, Math.round(ms))} ms`;
  return ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : span(ms);
}

function badge(level, text, title) {
  return el("span", { class: `badge ${level}`, title }, text);
}

// The states of a type of resources, the worst first, with what an operator reads.
const syncs = {
  refused: ["bad", "✕", "the Envoy refuses the last update"],
  stale: ["warn", "!", "the Envoy has not answered the last update"],
  waiting: ["warn", "…", "the Envoy keeps what it has until the source answers: what Usher has is from its state directory and may be older"],
  pending: ["busy", "…", "there is something to send"],
  synced: ["good", "✓", "the Envoy has everything"],
};

export function worstSync(envoy) {
  return Object.keys(syncs).find((s) => envoy.types.some((t) => t.sync === s)) ?? "pending";
}

const severities = { outage: "bad", degraded: "warn", notice: "info" };

// worstOf returns the severity of the worst problem of a gateway.
function worstOf(state, gateway) {
  return state.problems.find((p) => p.gateway === gateway)?.severity;
}

function sourceText({ type, answers }) {
  if (type === "files") return answers ? "reads files" : "The files cannot be read";
  return answers ? "Consul answers" : "Consul does not answer";
}

export function facts({ state }) {
  const { usher, source } = state;
  return [
    el("li", {}, usher.version, usher.commit && el("span", { class: "dim" }, ` ${usher.commit.slice(0, 8)}`)),
    el("li", {}, usher.ready ? badge("good", "ready") : badge("bad", "not ready", usher.reason)),
    el("li", {}, badge(source.answers ? "good" : "bad", sourceText(source))),
  ];
}

// The modes in force with how bad they are.
const modeLevels = { "held back": "bad", strict: undefined, permissive: undefined, off: undefined, "not in use": undefined };

export function summary(view) {
  const { state } = view;
  const listeners = state.gateways.flatMap((g) => g.listeners);
  const byMode = tally(listeners, (l) => l.inForce || (l.built === "held_back" ? "held back" : "not in use"));
  const bySync = tally(state.envoys, worstSync);
  const bySeverity = tally(state.problems, (p) => p.severity);
  const last = state.changes[0];
  const { usher, source } = state;
  const lines = [
    !usher.ready && ["bad", "Usher is not ready", usher.reason],
    !source.answers && ["bad", sourceText(source), [source.error, source.since && [", ", ago(view, source.since, "for ")], ". Envoys keep the last valid configuration."]],
    ...(usher.warnings ?? []).map((w) => ["warn", "Warning", w]),
  ].filter(Boolean);
  return [
    lines.length > 0 && el("ul", { class: "alerts", "data-key": "alerts" }, lines.map(([level, what, text]) => el("li", { class: level }, el("strong", {}, what), " ", text))),
    tile("problems", "Problems", count(state.problems.length), parts(bySeverity, Object.keys(severities)) || "none", worst(bySeverity, severities) ?? "good"),
    tile("gateways", "Gateways", count(state.gateways.length), plural(state.gateways.reduce((n, g) => n + g.instances, 0), "registered instance")),
    tile("listeners", "Listeners", count(listeners.length), parts(byMode, Object.keys(modeLevels)) || "none", worst(byMode, modeLevels)),
    tile("envoys", "Envoys", count(state.envoys.length), parts(bySync, Object.keys(syncs)) || "none is connected", worst(bySync, mapOf(syncs, (s) => s[0])), bar(bySync)),
    tile("delivery", "Last change", last ? delivery(last).text : "–", last ? [ago(view, last.time, "", " ago")] : "none since Usher started", last && delivery(last).level),
  ].filter(Boolean);
}

function mapOf(object, f) {
  return Object.fromEntries(Object.entries(object).map(([k, v]) => [k, f(v)]));
}

function tally(items, of) {
  const result = {};
  for (const item of items) result[of(item)] = (result[of(item)] ?? 0) + 1;
  return result;
}

function parts(counts, order) {
  return order.filter((k) => counts[k]).map((k) => `${count(counts[k])} ${k}`).join(" · ");
}

// worst returns the level of the first that there is.
function worst(counts, levels) {
  return levels[Object.keys(levels).find((k) => counts[k])];
}

function tile(key, name, value, detail, level, extra) {
  return el("div", { class: `tile ${level ?? ""}`, "data-key": key }, el("h2", {}, name), el("p", { class: "value" }, value), el("p", { class: "dim" }, detail), extra);
}

// bar shows how many Envoys are in which state.
function bar(bySync) {
  const total = Object.values(bySync).reduce((a, b) => a + b, 0);
  if (total === 0) return undefined;
  let x = 0;
  const rects = Object.keys(syncs).filter((s) => bySync[s]).map((s) => {
    const width = Math.max(1, (100 * bySync[s]) / total);
    const rect = el("rect", { x, y: 0, width, height: 4, class: syncs[s][0] });
    x += width;
    return rect;
  });
  return el("svg", { class: "bar", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" }, rects);
}

export function problems(view) {
  const found = view.state.problems.filter((p) => matches(view, p.gateway, p.where, p.what, p.severity));
  const urgent = found.filter((p) => p.severity !== "notice");
  const notices = found.filter((p) => p.severity === "notice");
  const { rows, more } = list(view, "problems", urgent, problemRow);
  return [
    urgent.length > 0 && el("h2", { "data-key": "title" }, "Problems"),
    urgent.length > 0 && el("ul", { class: "problems", "data-key": "urgent" }, rows),
    more,
    notices.length > 0 && el("details", { class: "notices", "data-key": "notices" },
      el("summary", {}, plural(notices.length, "notice"), el("span", { class: "dim" }, " that may be meant")),
      el("ul", { class: "problems" }, notices.map(problemRow))),
  ].filter(Boolean);
}

function problemRow(p) {
  return el("li", { class: severities[p.severity], "data-key": `${p.gateway}\n${p.where}\n${p.what}` },
    badge(severities[p.severity], p.severity),
    el("div", {},
      el("p", { class: "where" }, p.gateway && [el("a", { href: linkTo(p.gateway) }, p.gateway), " "], el("code", {}, p.where)),
      el("p", {}, p.what)));
}

export function linkTo(gateway, port) {
  return `#/${encodeURIComponent(gateway)}${port ? `/${port}` : ""}`;
}

// matchesGateway reports whether a gateway or anything of it matches the filter.
function matchesGateway(view, g) {
  return matches(view, g.name, ...g.listeners.flatMap((l) => [String(l.port), l.inForce, ...(l.services ?? []).map((s) => s.name)])) ||
    view.envoysOf(g.name).some((e) => matchesEnvoy(view, e));
}

export function gateways(view) {
  const { state, selected } = view;
  const found = state.gateways.filter((g) => matchesGateway(view, g));
  const { rows, more } = list(view, "gateways", found, (g) => {
    const envoys = view.envoysOf(g.name);
    const behind = envoys.filter((e) => worstSync(e) !== "synced").length;
    const level = severities[worstOf(state, g.name)] ?? (behind ? "busy" : envoys.length ? "good" : "none");
    return el("li", { "data-key": g.name },
      el("a", { href: linkTo(g.name), "aria-current": g.name === selected.gateway?.name && "true" },
        el("span", { class: `dot ${level}`, "aria-hidden": "true" }), el("strong", {}, g.name),
        el("span", { class: "dim" }, `${plural(g.listeners.length, "listener")} · ${plural(envoys.length, "Envoy")}${behind ? ` · ${count(behind)} not in sync` : ""}`)));
  });
  return [
    el("h2", { "data-key": "title" }, "Gateways"),
    el("ul", { "data-key": "list" }, rows),
    found.length === 0 && el("p", { class: "dim empty", "data-key": "empty" }, state.gateways.length ? "No gateway matches the filter." : "Usher watches no gateway: no Envoy is connected, and --gateway names none."),
    more,
  ].filter(Boolean);
}

export function gateway(view) {
  const g = view.selected.gateway;
  if (!g) return [];
  const missing = !g.known ? "The source has not delivered this gateway yet." : !g.entry ? "There is no ingress-gateway config entry for it, so it has no listeners." : undefined;
  return [
    el("h2", { "data-key": "name" }, g.name, " ", el("span", { class: "dim" }, `${plural(g.instances, "registered instance")}, ${plural(g.envoys, "Envoy")} connected here`)),
    missing && el("p", { class: "empty", "data-key": "missing" }, missing),
    g.listeners.length > 0 && el("div", { class: "card", "data-key": "listeners" }, el("h3", {}, "Listeners"), listenerTable(view, g)),
    view.selected.listener && el("div", { class: "card", "data-key": "listener" }, listener(view, g, view.selected.listener)),
    el("div", { class: "card", "data-key": "envoys" }, envoys(view, g)),
  ].filter(Boolean);
}

const built = {
  current: ["good", "as configured"],
  kept: ["warn", "last valid version", "it cannot be built; Envoys keep the last valid version"],
  held_back: ["bad", "held back", "it cannot be built and never could: Usher neither sends nor removes it"],
};

function listenerTable(view, g) {
  return el("table", {},
    el("thead", {}, el("tr", {}, ["Port", "Protocol", "Mode", "Set in", "State"].map((h) => el("th", { scope: "col" }, h)))),
    el("tbody", {}, g.listeners.map((l, i) => el("tr", { "data-key": `${l.port}-${i}`, class: l === view.selected.listener && "selected" },
      el("td", { "data-label": "Port" }, el("a", { href: linkTo(g.name, l.port), "aria-current": l === view.selected.listener && "true" }, String(l.port)),
        l.instances && el("span", { class: "dim" }, ` ${l.instances.map((in_) => in_.serviceId).join(", ")}`)),
      el("td", { "data-label": "Protocol" }, l.protocol, l.tls && " TLS"),
      el("td", { "data-label": "Mode" }, mode(l), l.unconfirmed && [" ", badge("warn", "not accepted yet", "an Envoy has not accepted this listener, or not yet")], l.graceEnd && [" ", badge("busy", ["grace, ", countdown(view, l.graceEnd)])]),
      el("td", { "data-label": "Set in" }, el("code", {}, l.place || "not known")),
      el("td", { "data-label": "State" }, badge(...built[l.built])))))) ;
}

function mode(l) {
  const force = l.inForce ? badge(l.inForce === "off" ? "plain" : "mode", l.inForce) : badge("warn", "not sent");
  return l.asked && l.asked !== l.inForce ? [el("span", { class: "dim" }, `${l.asked} → `), force] : force;
}

// countdown is an element that page.js keeps up to date.
function countdown(view, time) {
  return el("time", { datetime: time, "data-left": true }, `${span(Date.parse(time) - view.now())} left`);
}

function listener(view, g, l) {
  const asked = l.asked || "not known";
  const services = (l.services ?? []).filter((s) => matches(view, s.name, ...(s.hosts ?? [])));
  const { rows, more } = list(view, "services", services, (s) =>
    el("li", { "data-key": s.name }, el("strong", {}, s.name), s.hosts && el("span", { class: "dim" }, ` ${s.hosts.join(", ")}`)));
  const settings = (l.settings ?? []).filter((s) => s.place);
  return [
    el("h3", {}, `Listener ${l.port}`, " ", el("span", { class: "dim" }, `asked for: ${asked}; in force: ${l.inForce || "nothing"}`)),
    l.reason && el("p", { class: "reason", "data-key": "reason" }, l.reason, l.graceEnd && [" (", countdown(view, l.graceEnd), ")"]),
    picture(l, view.picture),
    settings.length > 0 && [el("h4", { "data-key": "h-settings" }, "Where its settings come from"), el("table", { "data-key": "settings" },
      el("thead", {}, el("tr", {}, ["Setting", "Value", "Set in"].map((h) => el("th", { scope: "col" }, h)))),
      el("tbody", {}, settings.map((s) => el("tr", { "data-key": s.setting },
        el("td", { "data-label": "Setting" }, el("code", {}, s.setting)), el("td", { "data-label": "Value" }, el("code", {}, s.value)), el("td", { "data-label": "Set in" }, el("code", {}, s.place))))))],
    l.services && [el("h4", { "data-key": "h-services" }, plural(l.services.length, "service"), services.length < l.services.length && el("span", { class: "dim" }, `, ${count(services.length)} match the filter`)),
      el("ul", { class: "services", "data-key": "services" }, rows), more],
  ].flat().filter(Boolean);
}

function matchesEnvoy(view, e) {
  return matches(view, e.serviceId, e.node, e.address, e.release, worstSync(e), ...e.types.map((t) => t.error));
}

// The columns of types in the order in which Usher sends them.
const types = [["cluster", "Clusters"], ["endpoint", "Endpoints"], ["listener", "Listeners"], ["route", "Routes"], ["secret", "Secrets"], ["token_bucket", "Rate limits"]];

const natural = new Intl.Collator("en", { numeric: true });

function envoys(view, g) {
  const all = view.envoysOf(g.name);
  const order = Object.keys(syncs);
  const found = (matches(view, g.name) ? all : all.filter((e) => matchesEnvoy(view, e))).toSorted((a, b) =>
    order.indexOf(worstSync(a)) - order.indexOf(worstSync(b)) || natural.compare(a.serviceId, b.serviceId));
  const columns = types.filter(([type]) => all.some((e) => e.types.some((t) => t.type === type)));
  const { rows, more } = list(view, "envoys", found, (e) => envoyRow(view, e, columns));
  return [
    el("h3", {}, plural(all.length, "Envoy"), found.length < all.length && el("span", { class: "dim" }, `, ${count(found.length)} match the filter`)),
    all.length === 0 && el("p", { class: "empty", "data-key": "empty" }, "No Envoy of this gateway is connected to this Usher."),
    found.length > 0 && el("table", { class: "envoys", "data-key": "table" },
      el("thead", {}, el("tr", {}, ["Instance", "Address", "Envoy"].map((h) => el("th", { scope: "col" }, h)),
        columns.map(([, name]) => el("th", { scope: "col", class: "type" }, name)), el("th", { scope: "col" }, "Since"))),
      el("tbody", {}, rows)),
    more,
  ].filter(Boolean);
}

function envoyRow(view, e, columns) {
  const worst = worstSync(e);
  const troubled = e.types.find((t) => t.sync === worst);
  const latest = e.types.map((t) => t.since).toSorted().at(-1);
  const refused = e.types.filter((t) => t.sync === "refused");
  return el("tr", { "data-key": e.key, class: syncs[worst][0] },
    el("td", { "data-label": "Instance" }, el("strong", {}, e.serviceId), e.node && el("span", { class: "dim" }, ` on ${e.node}`),
      refused.map((t) => el("p", { class: "error" }, `It refuses ${t.refused?.join(", ") || "the last update"}: ${t.error}`,
        t.missing && ` It has no version of ${t.missing.join(", ")}.`))),
    el("td", { "data-label": "Address" }, el("code", {}, e.address || "unix socket")),
    el("td", { "data-label": "Envoy" }, e.release, el("span", { class: "dim" }, ` ${e.dataplane ? "dataplane" : e.protocol}`)),
    columns.map(([type, name]) => {
      const t = e.types.find((t) => t.type === type);
      if (!t) return el("td", { class: "type", "data-label": name }, el("span", { class: "dim" }, "–"));
      const [level, glyph, text] = syncs[t.sync];
      return el("td", { class: "type", "data-label": name },
        el("span", { class: `sync ${level}`, title: `${t.sync}: ${text}; version ${t.version || "none"}` }, el("span", { "aria-hidden": "true" }, glyph), " ",
          t.sync === "synced" ? count(t.resources) : t.sync, t.sync === "synced" && el("span", { class: "hidden" }, " synced")));
    }),
    el("td", { "data-label": "Since" }, ago(view, worst === "synced" ? latest : troubled?.since ?? e.connected)));
}

// delivery says how far a change has come.
function delivery(c) {
  const waiting = c.envoys - c.acknowledged - c.refused - c.disconnected;
  if (c.refused > 0) return { level: "bad", text: `${count(c.refused)} refused` };
  if (waiting > 0) return { level: "busy", text: `${count(waiting)} waiting` };
  if (c.acknowledged === 0) return { level: "gone", text: `${count(c.disconnected)} disconnected` };
  return { text: duration(c.milliseconds) };
}

export function changes(view) {
  const { state } = view;
  const found = state.changes.filter((c) => matches(view, c.gateway, ...c.resources.flatMap((r) => [r.type, ...r.names])));
  return [
    el("h2", { "data-key": "title" }, "Last changes"),
    found.length === 0 && el("p", { class: "dim empty", "data-key": "empty" }, state.changes.length ? "No change matches the filter." : "Nothing has changed for a connected Envoy since Usher started."),
    el("ol", { "data-key": "list" }, found.map((c) => changeRow(view, c))),
  ].filter(Boolean);
}

function changeRow(view, c) {
  const d = delivery(c);
  return el("li", { "data-key": String(c.number), class: d.level },
    el("p", { class: "meta" }, ago(view, c.time, "", " ago"), " ", el("a", { href: linkTo(c.gateway) }, c.gateway)),
    el("ul", {}, c.resources.map((r) => el("li", {}, ...changed(r)))),
    el("p", { class: "delivery" }, el("strong", {}, d.text), el("span", { class: "dim" }, d.level ? ` of ${plural(c.envoys, "Envoy")}` : ` until ${c.acknowledged === 1 ? "the Envoy" : `all ${plural(c.acknowledged, "Envoy")}`} had it`,
      d.level !== "gone" && c.disconnected > 0 && `; ${count(c.disconnected)} disconnected before`), lag(c)));
}

// changed says what became of the resources of a type.
function changed(r) {
  const words = ["added", "changed", "removed"].filter((w) => r[w]);
  const total = r.added + r.changed + r.removed;
  const more = total - r.names.length;
  return [
    el("span", { class: "dim" }, `${r.type.replace("token_bucket", "rate limit")} `), r.names.map((n, i) => [i > 0 && ", ", el("code", { title: n }, short(n))]), more > 0 && ` and ${count(more)} more`,
    el("span", { class: "dim" }, ` ${words.map((w) => (words.length > 1 ? `${count(r[w])} ${w}` : w)).join(", ")}`)];
}

// short leaves out the end of a cluster's name, which is the same for all.
function short(name) {
  return name.replace(/\.internal\.[0-9a-f-]{36}\.consul$/, "");
}

// lag shows a delivery time on a logarithmic scale from 1 ms to 10 s.
function lag(c) {
  if (delivery(c).level) return undefined;
  const width = 4 + 96 * Math.min(1, Math.log10(Math.max(1, c.milliseconds)) / 4);
  return el("svg", { class: "lag", viewBox: "0 0 100 3", preserveAspectRatio: "none", "aria-hidden": "true" }, el("rect", { width, height: 3, x: 0, y: 0 }));
}
