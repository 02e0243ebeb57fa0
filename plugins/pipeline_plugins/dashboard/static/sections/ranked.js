// Models and keys by their part of the calls.

import {count, exact, ms, percent, usd} from "../format.js";
import {Table, bar} from "../table.js";

const calls = all => ({
  head: "Calls", kind: "bar", cell: row => bar(all().calls ? row.calls / all().calls : 0, count(row.calls)),
});
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
    this.totals = {calls: 0};
    this.table = new Table(host, {
      label: "Models", key: row => row.model ?? "\0", none: "No model was called in this range", rows: 4,
      columns: [{head: "Model", kind: "name", cell: row => others(row) ?? (row.model || "cache or none")}, calls(() => this.totals), ...TIMES, failed(true), ...SUMS],
    });
  }

  update({models, totals}) {
    this.totals = totals;
    this.table.update(models);
  }
}

export class Keys {
  constructor(host) {
    this.totals = {calls: 0};
    this.table = new Table(host, {
      label: "Keys", key: row => `${row.owner}/${row.key}`, none: "No key was used in this range", rows: 4,
      columns: [
        {head: "Owner", kind: "name", cell: row => row.owner},
        {head: "Key", kind: "name", hide: true, cell: row => row.key},
        calls(() => this.totals),
        failed(false),
        ...SUMS,
      ],
    });
  }

  update({keys, totals}) {
    this.totals = totals;
    this.table.update(keys);
  }
}
