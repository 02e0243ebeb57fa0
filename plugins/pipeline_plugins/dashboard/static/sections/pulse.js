// The last minute, second by second, and what stages say of themselves now.

import {byId, el, say, svg} from "../dom.js";
import {exact, rate} from "../format.js";
import {Table} from "../table.js";

const SECONDS = 60;
const HEIGHT = 44;

export class Pulse {
  constructor(host) {
    this.bars = Array.from({length: SECONDS}, (_, at) => [
      svg("rect", {x: at * 5, width: 4, y: HEIGHT - 1, height: 1, class: "calls"}),
      svg("rect", {x: at * 5, width: 4, y: HEIGHT, height: 0, class: "broken"}),
    ]);
    this.drawing = svg("svg", {viewBox: `0 0 ${SECONDS * 5} ${HEIGHT}`, preserveAspectRatio: "none", role: "img"}, this.bars.flat());
    this.text = el("p", {class: "note"}, "Waiting for the first event");
    host.append(el("div", {class: "pulse"}, this.drawing, this.text));
  }

  update({first, now, seconds}) {
    if (!seconds) {
      say(this.text, "No ledger is kept");
      return;
    }
    const found = new Map(seconds.map(([second, ...counts]) => [second, counts]));
    const shown = Array.from({length: SECONDS}, (_, at) => found.get(first + 1 + at) ?? [0, 0, 0]);
    const most = Math.max(5, ...shown.map(([calls]) => calls));
    shown.forEach(([calls, failed], at) => {
      const high = calls ? Math.max(2, (calls / most) * HEIGHT) : 1;
      const broken = calls ? (failed / calls) * high : 0;
      set(this.bars[at][0], high);
      set(this.bars[at][1], broken);
    });
    const sum = place => shown.reduce((all, counts) => all + counts[place], 0);
    const told = `${rate(sum(0) / SECONDS, "calls")} · ${rate(sum(2) / SECONDS, "tokens")} · ${exact(sum(1))} failed`;
    say(this.text, told);
    this.drawing.setAttribute("aria-label", `Calls in each of the last ${SECONDS} seconds: ${told}`);
  }
}

const set = (bar, high) => {
  bar.setAttribute("y", HEIGHT - high);
  bar.setAttribute("height", high);
};

export class Gauges {
  constructor(host) {
    this.table = new Table(host, {
      label: "State of the stages", key: row => `${row.name} ${row.where}`, none: "No stage reports a state",
      columns: [
        {head: "Gauge", kind: "name", cell: row => row.name},
        {head: "Of", kind: "name", cell: row => row.where},
        {head: "Now", kind: "number", cell: row => row.value.toLocaleString("en", {maximumFractionDigits: 3})},
        {head: "What it is", kind: "text", hide: true, cell: row => row.about},
      ],
    });
  }

  update({gauges}) {
    if (!byId("state").open) return;
    this.table.update(
      gauges.flatMap(({name, about, samples}) =>
        samples.map(([labels, value]) => ({name: name.replace(/^pipeline_/, "").replaceAll("_", " "), about, where: labels.join(", "), value}))),
    );
  }
}
