// What plugins have to show: a table each, with what there is to say of it.

import {el} from "../dom.js";
import {fixedTable} from "../table.js";

export class Panels {
  constructor(host) {
    this.host = host;
    this.shown = "";
  }

  // panels: [{title, columns, rows, note, alert}], all of it text.
  update(panels) {
    const text = JSON.stringify(panels);
    if (text === this.shown) return;
    this.shown = text;
    this.host.hidden = panels.length === 0;
    this.host.replaceChildren(...panels.map(panel));
  }
}

const panel = ({title, columns, rows, note, alert}) =>
  el(
    "div", {},
    el("h2", {}, title),
    alert ? el("p", {class: "trouble"}, alert) : "",
    rows.length ? fixedTable(title, columns.map((head, at) => [head, at ? "number" : "name"]), rows) : "",
    note ? el("p", {class: "note"}, note) : "",
  );
