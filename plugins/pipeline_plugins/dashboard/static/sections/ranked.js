// Models and keys by their part of the calls.

import {count, exact, ms, percent, usd} from "../format.js";
import {Table, bar} from "../table.js";

const failed = hide => ({head: "Failed", kind: "number", hide, cell: row => (row.failed ? percent(row.failed / row.calls) : "0")});
const SUMS = [
  {head: "Tokens", kind: "number", hide: true, cell: row => count(row.prompt_tokens + row.completion_tokens)},
  {head: "Cost", kind: "number", cell: row => usd(row.usd)},
];
const TIMES = [
  {head: "Median", kind: "number", hide: true, cell: row => ms(row.total_ms.p50)},
  {head: "p95", kind: "number", cell: row => ms(row.total_ms.p95)},
];

const others = row => (row.others ? `${exact(row.others)} others` : null);

export class Models {
  constructor(host) {
    this.table = new Table(host, {
      label: "Models", key: row => row.model ?? "\0", none: "No model was called in this range", rows: 4,
      columns: [
        {head: "Model", kind: "name", cell: row => others(row) ?? (row.model || "cache or none")},
        {head: "Share of calls", kind: "bar", cell: row => bar(row.calls / this.calls, percent(row.calls / this.calls))},
        {head: "Calls", kind: "number", hide: true, cell: row => count(row.calls)},
        ...TIMES, failed(true), ...SUMS,
      ],
    });
  }

  update({models, totals}) {
    this.calls = Math.max(1, totals.calls);
    this.table.update(models);
  }
}

export class Keys {
  constructor(host) {
    this.table = new Table(host, {
      label: "Keys", key: row => `${row.owner}/${row.key}`, none: "No key was used in this range", rows: 4,
      columns: [
        {head: "Owner", kind: "name", cell: row => row.owner},
        {head: "Key", kind: "name", hide: true, cell: row => row.key},
        {head: "Calls", kind: "bar", cell: row => bar(row.calls / this.most, count(row.calls))},
        failed(false),
        ...SUMS,
      ],
    });
  }

  update({keys}) {
    this.most = Math.max(1, ...keys.map(row => row.calls));
    this.table.update(keys);
  }
}
