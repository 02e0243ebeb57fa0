// Charts of calls, latency and tokens over time, and what went wrong.

import {Chart} from "../chart.js";
import {el, say} from "../dom.js";
import {count, exact, ms, rate} from "../format.js";
import {Table} from "../table.js";

const OUTCOMES = [
  {name: "completed", label: "Completed", colour: "completed"},
  {name: "cached", label: "From cache", colour: "cached"},
  {name: "refused", label: "Refused", colour: "refused"},
  {name: "failed", label: "Failed", colour: "failed"},
  {name: "cancelled", label: "Cancelled", colour: "cancelled"},
];

const QUANTILES = [
  {name: "p50", label: "Median", colour: "p50"},
  {name: "p95", label: "p95", colour: "p95"},
  {name: "p99", label: "p99", colour: "p99"},
];

export const frame = ({series, step, since, until}) => ({time: series.time, step, since, until});

export class Traffic {
  constructor(host) {
    this.chart = new Chart(host, {
      title: "Calls by outcome", series: OUTCOMES, form: count, stacked: true, none: "No calls in this range",
    });
  }

  update(figures) {
    this.chart.update({
      ...frame(figures),
      columns: OUTCOMES.map(one => figures.series[one.name]),
      whole: OUTCOMES.map(one => exact(figures.totals[one.name])),
    });
  }
}

export class Latency {
  constructor(first, total) {
    this.charts = [["first_ms", first, "Time to the first token, of streams"], ["total_ms", total, "Time to the whole answer"]].map(
      ([name, host, title]) => {
        const head = document.createElement("h3");
        head.textContent = title;
        host.append(head);
        return [name, new Chart(host, {title, series: QUANTILES, form: ms, none: "Nothing was answered in this range"})];
      },
    );
  }

  update(figures) {
    for (const [name, chart] of this.charts) {
      chart.update({
        ...frame(figures),
        columns: QUANTILES.map(one => figures.series[name][one.name]),
        whole: QUANTILES.map(one => ms(figures.totals[name][one.name])),
      });
    }
  }
}

const TOKENS = [
  {name: "completion_tokens", label: "Generated", colour: "p50"},
  {name: "prompt_tokens", label: "Prompt", colour: "p95"},
];

export class Tokens {
  constructor(host) {
    this.chart = new Chart(host, {
      title: "Tokens per second", series: TOKENS, form: value => rate(value), none: "No tokens in this range",
    });
    this.pace = el("p", {class: "note"}, "\u00a0");
    host.append(this.pace);
  }

  update(figures) {
    const {series, step, until, now, totals} = figures;
    const last = series.time.length - 1;
    // The last step has not passed yet.
    const seconds = at => (at === last ? Math.max(1, step - (until - now)) : step);
    this.chart.update({
      ...frame(figures),
      columns: TOKENS.map(one => series[one.name].map((value, at) => value / seconds(at))),
      whole: TOKENS.map(one => rate(totals[one.name] / totals.seconds)),
    });
    const pace = totals.stream_tokens_per_second;
    say(this.pace, pace ? `A stream, once begun, gives ${rate(pace, "tokens")}.` : "\u00a0");
  }
}

const worst = row => (row.failed ? "failed" : row.refused ? "refused" : "cancelled");

export class Errors {
  constructor(host) {
    this.table = new Table(host, {
      label: "Errors",
      key: row => row.error,
      none: "No errors in this range",
      rows: 3,
      columns: [
        {head: "Error", kind: "name", cell: row => el("span", {class: `outcome ${worst(row)}`}, row.error === "0" ? "client left" : row.error)},
        {head: "Calls", kind: "number", cell: row => exact(row.calls)},
      ],
    });
  }

  update({errors}) {
    this.table.update(errors.slice(0, 4));
  }
}
