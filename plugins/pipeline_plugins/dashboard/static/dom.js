// Making elements. Text is always text: nothing here, or anywhere on the page, reads markup from data.

const SVG = "http://www.w3.org/2000/svg";

const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
};

export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

export const byId = id => document.getElementById(id);

// Sets text only where it differs, so that what a person has selected stays selected.
export const say = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

export const empty = text => el("p", {class: "empty"}, text);
