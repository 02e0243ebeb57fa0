// The running graph, with the time that each stage takes of its own.

import {el, say} from "../dom.js";
import {drawGraph} from "../drawing.js";
import {exact, ms, percent} from "../format.js";
import {Table, bar} from "../table.js";

const NONE = {calls: 0, raised: 0, share: 0, p50: null, p95: null};

export class Graph {
  constructor(host, about) {
    this.about = about;
    this.stages = null;
    this.edges = new Map();
    this.place = el("div", {class: "drawing"});
    this.note = el("p", {class: "note"}, "\u00a0");
    host.append(this.note, this.place);
    this.table = new Table(host, {
      label: "Time by stage", key: row => row.name, none: "No call went through the graph in this range", rows: 4,
      columns: [
        {head: "Stage", kind: "name", cell: row => row.name},
        {head: "Part of the time", kind: "bar", cell: row => bar(row.share, percent(row.share))},
        {head: "Median", kind: "number", cell: row => ms(row.p50)},
        {head: "p95", kind: "number", cell: row => ms(row.p95)},
        {head: "Passages", kind: "number", hide: true, cell: row => exact(row.calls)},
        {head: "Raised", kind: "number", hide: true, cell: row => exact(row.raised)},
      ],
    });
    new ResizeObserver(() => this.draw()).observe(this.place);
  }

  update({graph, totals}) {
    this.stages = graph.stages;
    this.edges = new Map(graph.edges.map(one => [`${one.from} ${one.to}`, one.calls]));
    say(this.note, totals.calls ? "Each stage's own time, median and part of all, without what it waits for; a model's is its whole answer's." : "\u00a0");
    this.table.update(
      Object.entries(this.stages).map(([name, figures]) => ({name, ...figures})).sort((a, b) => b.share - a.share),
    );
    this.draw();
  }

  draw() {
    const width = this.place.clientWidth;
    if (!width) return;
    const entered = Math.max(1, ...Object.values(this.stages ?? {}).map(one => one.calls));
    const drawn = drawGraph(this.about, width, {
      label: "The graph's stages and edges; the table below has the same figures",
      of: name => {
        const found = this.stages?.[name] ?? NONE;
        const text = found.calls ? ms(found.p50) : this.stages ? "not used" : "";
        return {
          text, share: found.share, off: this.stages && !found.calls, tone: found.raised > found.calls / 20 ? "raised" : "",
          title: `${name}: median ${ms(found.p50)}, p95 ${ms(found.p95)}, ${exact(found.calls)} passages, ${exact(found.raised)} raised`,
        };
      },
      along: ({from, to, label}) => {
        const calls = this.edges.get(`${from} ${to}`) ?? 0;
        return {weight: calls / entered, off: this.stages && !calls, text: calls && calls < entered ? percent(calls / entered) : label};
      },
    });
    this.place.replaceChildren(drawn);
  }
}
