// Elements without innerHTML: what comes from Consul is only ever text.

const svg = "http://www.w3.org/2000/svg";
const svgTags = new Set(["svg", "path", "circle", "rect"]);

// el returns an element. An attribute that is false or undefined is left out; a child may be an element, a text, a list of
// those, or nothing.
export function el(tag, attributes, ...children) {
  const node = svgTags.has(tag) ? document.createElementNS(svg, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== undefined && c !== false && c !== ""));
  return node;
}

// fill makes the children of parent those in nodes. Nodes that are there already stay, so that the focus, a selection and
// what is open stay, too: those with the same data-key, and among the others those with the same tag.
export function fill(parent, nodes) {
  const wanted = new Set(nodes.map(keyOf).filter(Boolean));
  const keyed = new Map();
  for (const child of [...parent.childNodes]) {
    const key = keyOf(child);
    if (key && wanted.has(key) && !keyed.has(key)) keyed.set(key, child);
    else if (key) child.remove();
  }
  let at = parent.firstChild;
  for (const next of nodes) {
    const key = keyOf(next);
    const match = key ? keyed.get(key) : at && !keyOf(at) ? at : undefined;
    if (!match || match.nodeName !== next.nodeName) {
      parent.insertBefore(next, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else parent.insertBefore(match, at);
    change(match, next);
  }
  while (at) {
    const rest = at;
    at = at.nextSibling;
    rest.remove();
  }
}

function keyOf(node) {
  return node.dataset?.key;
}

// change makes node what next is.
function change(node, next) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== next.data) node.data = next.data;
    return;
  }
  for (const name of node.getAttributeNames()) {
    if (!next.hasAttribute(name) && !(name === "open" && node.tagName === "DETAILS")) node.removeAttribute(name);
  }
  for (const name of next.getAttributeNames()) {
    const value = next.getAttribute(name);
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  fill(node, [...next.childNodes]);
}
