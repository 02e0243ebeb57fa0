// What was spent and saved over time, and what day and month come to.

import {Chart} from "../chart.js";
import {el, say} from "../dom.js";
import {percent, usd} from "../format.js";
import {frame} from "./traffic.js";

const PARTS = [
  {name: "usd", label: "Spent", colour: "completed"},
  {name: "saved_cache_usd", label: "Saved by cache", colour: "cached"},
  {name: "saved_route_usd", label: "Saved by routing", colour: "saved"},
];

export class Cost {
  constructor(chart, sums) {
    this.chart = new Chart(chart, {
      title: "Cost and savings", series: PARTS, form: usd, stacked: true, none: "Nothing was spent in this range",
    });
    this.places = {};
    const names = {today: "Today (UTC)", month: "This month", projected: "Month projected", saved: "Saved in this range"};
    const items = Object.entries(names).map(([name, label]) => {
      const value = el("dd", {class: "figure"}, "–");
      const note = el("dd", {class: "note"}, "\u00a0");
      this.places[name] = {value, note};
      return el("div", {}, el("dt", {}, label), value, note);
    });
    sums.append(el("dl", {class: "headline small"}, items));
  }

  update(figures) {
    const {series, totals, cost} = figures;
    this.chart.update({
      ...frame(figures),
      columns: PARTS.map(one => series[one.name]),
      whole: PARTS.map(one => usd(totals[one.name])),
    });
    const saved = totals.saved_cache_usd + totals.saved_route_usd;
    const without = totals.usd + saved;
    this.put("today", usd(cost.today), "\u00a0");
    this.put("month", usd(cost.month), "since its first day");
    if (cost.projected) {
      const {usd: middle, low, high, days} = cost.projected;
      this.put("projected", usd(middle), `80 % within ${usd(low)} to ${usd(high)}, from ${days} days`);
    } else {
      this.put("projected", "–", `needs ${cost.least} whole days with spend`);
    }
    this.put("saved", usd(saved), without ? `${percent(saved / without)} of what it would have been` : "\u00a0");
  }

  put(name, value, note) {
    say(this.places[name].value, value);
    say(this.places[name].note, note);
  }
}
