// Tables whose rows stay the same elements while their key does, so that focus and selection are kept.

import {el, empty, say} from "./dom.js";

export class Table {
  // columns: [{head, cell(row) -> text or node, kind?: "number" | "name" | "bar", hide?: true on narrow screens}]
  constructor(host, {label, columns, key, none, rows = 0}) {
    this.columns = columns;
    this.key = key;
    this.known = new Map();
    this.body = el("tbody");
    this.none = empty(none);
    this.none.hidden = true;
    const heads = columns.map(one => el("th", {scope: "col", class: classes(one)}, one.head));
    this.table = el("table", {"aria-label": label}, el("thead", {}, el("tr", {}, heads)), this.body);
    this.host = scrolled(label, this.table, this.none);
    this.reserved = rows ? `${2.2 + rows * 2.15}rem` : "";
    host.append(this.host);
  }

  update(rows) {
    this.none.hidden = rows.length > 0;
    this.table.hidden = rows.length === 0;
    this.host.style.minHeight = rows.length ? this.reserved : "";
    const before = this.known;
    this.known = new Map();
    const shown = rows.map(row => {
      const key = this.key(row);
      const line = before.get(key) ?? el("tr", {}, this.columns.map(one => el("td", {class: classes(one)})));
      this.known.set(key, line);
      this.columns.forEach((one, index) => put(line.children[index], one.cell(row)));
      return line;
    });
    const same = shown.length === this.body.children.length && shown.every((line, at) => this.body.children[at] === line);
    if (!same) this.body.replaceChildren(...shown);
  }
}

// A narrow screen scrolls a wide table, by keyboard too.
const scrolled = (label, ...content) => el("div", {class: "table", tabindex: 0, role: "region", "aria-label": label}, ...content);

// A table that is made once. heads: [[text, class]]; rows: lists of texts and nodes.
export const fixedTable = (label, heads, rows) =>
  scrolled(
    label,
    el(
      "table", {"aria-label": label},
      el("thead", {}, el("tr", {}, heads.map(([text, kind]) => el("th", {scope: "col", class: kind}, text)))),
      el("tbody", {}, rows.map(cells => el("tr", {}, cells.map((cell, at) => el("td", {class: heads[at][1]}, cell))))),
    ),
  );

const classes = one => [one.kind ?? "", one.hide ? "hide" : ""].join(" ").trim() || null;

const put = (cell, content) => {
  if (!(content instanceof Node)) {
    say(cell, content ?? "");
  } else if (cell.firstChild?.isEqualNode?.(content) !== true) {
    cell.replaceChildren(content);
  }
};

// A share as a bar behind its number.
export const bar = (share, text, tone = "") => {
  const filled = el("i", {class: `filled ${tone}`});
  filled.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("span", {class: "share"}, el("span", {class: "track"}, filled), el("span", {class: "value"}, text));
};
