// What people and checks say of answers, and how the variants of experiments compare.

import {el, say} from "../dom.js";
import {exact, interval, ms, percent, score, usd} from "../format.js";
import {Table, bar} from "../table.js";

const NAMES = {1: "1 of 5", 2: "2 of 5", 3: "3 of 5", 4: "4 of 5", 5: "5 of 5", up: "Thumbs up", down: "Thumbs down"};

const ORDER = ["5", "4", "3", "2", "1", "up", "down"];

export class Quality {
  constructor(host) {
    this.sum = el("p", {class: "lead"});
    this.note = el("p", {class: "note"});
    host.append(this.sum, this.note);
    this.most = 1;
    this.ratings = new Table(host, {
      label: "Ratings", key: row => row.rating, none: "No call of this range was rated (POST /v1/feedback)",
      columns: [
        {head: "Rating", kind: "name", cell: row => NAMES[row.rating] ?? row.rating},
        {head: "Calls", kind: "bar", cell: row => bar(row.calls / this.most, exact(row.calls))},
      ],
    });
    this.checks = new Table(host, {
      label: "Failed checks", key: row => row.check, none: "No check failed in this range",
      columns: [
        {head: "Failed check", kind: "name", cell: row => row.check},
        {head: "Calls", kind: "number", cell: row => exact(row.calls)},
      ],
    });
    this.scores = new Table(host, {
      label: "Scores of checks", key: row => row.check, none: "No check gave a score in this range",
      columns: [
        {head: "Score of", kind: "name", cell: row => row.check},
        {head: "Calls", kind: "number", cell: row => exact(row.calls)},
        {head: "Mean", kind: "number", cell: row => score(row.mean)},
        {head: "Median", kind: "number", cell: row => score(row.median)},
        {head: "Lowest tenth", kind: "number", cell: row => `≤ ${score(row.tenth)}`},
      ],
    });
  }

  update({quality}) {
    const {ratings, checks, scores} = quality;
    const given = Object.entries(ratings.distribution).map(([rating, calls]) => ({rating, calls}));
    this.most = Math.max(1, ...given.map(row => row.calls));
    say(this.sum, ratings.ratings ? `${percent(ratings.positive)} positive` : "");
    const average = ratings.average === null ? "" : ` · ${ratings.average.toFixed(2)} of 5 on average`;
    say(this.note, ratings.ratings ? `95 % within ${interval([ratings.low, ratings.high], percent)} · ${exact(ratings.ratings)} ratings${average}` : "");
    this.ratings.update(given.sort((a, b) => ORDER.indexOf(a.rating) - ORDER.indexOf(b.rating)));
    this.checks.update(checks);
    this.scores.update(scores);
  }
}

export class Experiments {
  constructor(host) {
    this.table = new Table(host, {
      label: "Experiments", key: row => `${row.experiment} ${row.variant}`,
      none: "No call of this range took part in an experiment (route=ab)",
      columns: [
        {head: "Variant", kind: "name", cell: row => `${row.experiment} / ${row.variant}`},
        {head: "Calls", kind: "number", cell: row => exact(row.calls)},
        {head: "Failed", kind: "number", cell: row => within(row.failed, row.calls, row.failed_interval)},
        {head: "Positive", kind: "number", cell: row => within(row.positive, row.rated, row.positive_interval)},
        {head: "Median", kind: "number", cell: row => ms(row.total_ms.p50)},
        {head: "Cost a call", kind: "number", hide: true, cell: row => usd(row.calls ? row.usd / row.calls : null)},
      ],
    });
    this.note = el("p", {class: "note", hidden: true}, "Intervals are Wilson's of 95 %, for one look at the data. Differences that may be looked at at any time are below, or told by `pipeline ab status`.");
    host.append(this.note);
  }

  update({experiments}) {
    this.note.hidden = experiments.length === 0;
    this.table.update(experiments);
  }
}

const within = (some, all, pair) =>
  all ? el("span", {}, percent(some / all), el("small", {}, ` ${interval(pair, percent)}`)) : "–";
