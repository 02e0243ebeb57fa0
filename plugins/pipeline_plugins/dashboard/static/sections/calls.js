// Lists of calls; each leads to what became of it.

import {el} from "../dom.js";
import {clock, exact, moment, ms, usd} from "../format.js";
import {address, change} from "../state.js";
import {Table} from "../table.js";

const NONE = {slowest: "No call was answered in this range", failed: "No call failed in this range", recent: "No calls in this range"};

export class Calls {
  constructor(host) {
    this.long = false;
    this.note = el("p", {class: "note", hidden: true}, "Of so many calls, the slowest of each model and time span are listed.");
    host.append(this.note);
    this.table = new Table(host, {
      label: "List of calls", key: row => row.id, none: NONE.slowest, rows: 12,
      columns: [
        {head: "Ended", kind: "name", cell: row => link(row, this.long)},
        {head: "Outcome", kind: "name", cell: outcome},
        {head: "Model", kind: "name", cell: row => row.used || row.model || "–"},
        {head: "Owner", kind: "name", hide: true, cell: row => row.owner},
        {head: "First", kind: "number", hide: true, cell: row => ms(row.first_ms)},
        {head: "Whole", kind: "number", cell: row => ms(row.total_ms)},
        {head: "Tokens", kind: "number", hide: true, cell: row => exact(row.prompt_tokens === null ? null : row.prompt_tokens + row.completion_tokens)},
        {head: "Cost", kind: "number", hide: true, cell: row => usd(row.usd)},
      ],
    });
  }

  update({range, listing, exact: all, calls}) {
    this.note.hidden = all;
    this.long = !["15m", "1h"].includes(range);
    this.table.none.textContent = NONE[listing];
    this.table.update(calls);
  }
}

export const outcome = row => {
  const cached = row.outcome === "completed" && ["hit", "semantic"].includes(row.cache);
  const word = cached ? "cached" : row.outcome;
  const why = row.error ? `${row.status} ${row.error}` : cached ? "from cache" : word;
  return el("span", {class: `outcome ${word}`}, why);
};

const link = (row, long) => {
  const found = el("a", {href: address({call: row.id})}, long ? moment(row.time) : clock(row.time));
  found.addEventListener("click", event => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    change({call: row.id});
  });
  return found;
};
