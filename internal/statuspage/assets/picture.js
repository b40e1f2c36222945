// The way of a connection from the client to the service, and which address is seen at each hop.

import { el } from "./dom.js";

const client = "203.0.113.7";
const balancer = "10.0.0.5";

export const modes = ["off", "permissive", "strict"];

// outcome returns what a listener does with a connection: mode is its mode, and header whether the load balancer sends one.
// seen is the address in the access log, and forwarded what the service gets; both are undefined if it gets nothing.
// docs/client-address.md has the same table.
export function outcome({ protocol, mode, header, upstream }) {
  const tcp = protocol === "tcp";
  if (mode === "off" && header) {
    return tcp
      ? { level: "bad", seen: balancer, forwarded: "the PROXY header, as data", text: "The service gets the header as data, in front of what the client sends." }
      : { level: "bad", end: "answers 400", text: "Every request is answered with 400: Envoy reads the header as a broken request." };
  }
  if (mode === "strict" && !header) {
    return { level: "bad", end: "closes it", text: "Envoy closes the connection, because it does not begin with a PROXY header." };
  }
  const seen = header ? client : balancer;
  const forwarded = tcp ? (upstream ? `PROXY ${upstream}: ${seen}` : "no address of a client") : mode === "off" ? "no X-Forwarded-For" : `X-Forwarded-For: ${seen}`;
  return header
    ? { level: "good", seen, forwarded, text: tcp && !upstream ? "The access log shows the client." : "The access log and the service see the client." }
    : { level: "warn", seen, forwarded, text: "The access log shows the load balancer in place of the client." };
}

// picture returns the elements of the picture.
export function picture(listener, { mode, header }) {
  const settings = new Map((listener.settings ?? []).map((s) => [s.setting, s.value]));
  const upstream = unquoted(settings.get("proxy_protocol.upstream"));
  const o = outcome({ protocol: listener.protocol, mode, header, upstream: upstream === "none" ? undefined : upstream });
  const served = !o.end;
  const trusted = mode !== "off" && settings.get("proxy_protocol.trusted_cidrs");
  return el("figure", { class: "picture", "data-key": "picture" },
    el("div", { class: "choices" },
      choice("mode", "Mode", modes.map((m) => [m, m === listener.inForce ? `${m}, in force` : m]), mode),
      choice("header", "The balancer sends", [["yes", "a PROXY header"], ["no", "none"]], header ? "yes" : "no")),
    el("ol", { class: "hops" },
      hop("client", "Client", line("its address", address(client))),
      wire("TCP", undefined, true),
      hop("balancer", "Load balancer", line("sees", address(client))),
      wire("TCP", header && ["PROXY ", address(client)], true),
      hop("gateway", `Gateway :${listener.port}`, line("connection from", address(balancer)),
        served ? line("access log", address(o.seen)) : line("then it", el("strong", { class: "bad" }, o.end))),
      wire(listener.protocol, undefined, served),
      hop(served ? "service" : "service absent", "Service", line("gets", served ? withAddress(o.forwarded) : "nothing"))),
    el("figcaption", {},
      el("p", { class: `outcome ${o.level}` }, o.text),
      trusted && trusted !== '"any"' && el("p", { class: "dim" },
        `This is so for balancers in trusted_cidrs, ${trusted}. From other addresses, `,
        mode === "strict" ? "Envoy closes every connection." : "Envoy ignores headers and shows the connecting address."),
      el("p", { class: "dim" }, "The addresses are examples: ", address(client), " is a client, and the load balancer connects from ", address(balancer), ".")));
}

function unquoted(json) {
  return json?.replace(/^"(.*)"$/, "$1");
}

function choice(name, label, values, chosen) {
  return el("div", { class: "choice", role: "group", "aria-label": label },
    el("span", { class: "dim", "aria-hidden": "true" }, label),
    el("span", { class: "segments" }, values.map(([value, text]) =>
      el("button", { type: "button", "data-action": name, "data-value": value, "aria-pressed": String(value === chosen) }, text))));
}

function hop(type, name, ...lines) {
  return el("li", { class: `hop ${type}` }, el("strong", { class: "name" }, icon(type), name), lines);
}

function line(what, ...value) {
  return el("span", { class: "line" }, el("span", { class: "dim" }, what), " ", el("span", {}, value));
}

// wire is the connection between two hops, with what is written in front of it.
function wire(protocol, header, open) {
  return el("li", { class: open ? "wire" : "wire broken" },
    el("span", { class: "dim" }, protocol),
    el("svg", { viewBox: "0 0 40 12", "aria-hidden": "true" },
      el("path", { d: "M0 6h36", class: "shaft" }),
      open ? el("path", { d: "M32 2l5 4-5 4" }) : el("path", { d: "M14 1l10 10M24 1l-10 10" })),
    header && el("span", { class: "header" }, header));
}

function address(text) {
  return el("code", { class: text === client ? "of-client" : "of-balancer" }, text);
}

function withAddress(text) {
  const at = [client, balancer].find((a) => text.endsWith(a));
  return at ? [text.slice(0, -at.length), address(at)] : text;
}

const icons = {
  client: "M4 5h16v10H4zM2 19h20",
  balancer: "M3 12h6M9 12l5-6h7M9 12l5 6h7M9 12h12",
  gateway: "M5 21V5l7-3 7 3v16M9 21v-9h6v9",
  service: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
};

function icon(type) {
  return el("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, el("path", { d: icons[type.split(" ")[0]] }));
}
