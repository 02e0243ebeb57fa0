// Charts over time: lines, or bars on top of each other, with a legend that tells what the cursor is on.

import uPlot from "./vendor/uPlot.esm.js";
import {el, say} from "./dom.js";
import {minute, day, step as stepName} from "./format.js";

const AXIS = 56;
const FONT = "11px system-ui, sans-serif";
const charts = new Set();

// A colour of the theme in force, as the canvas understands it.
const probe = el("i", {hidden: true});
const colour = name => {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
};

const swatch = name => {
  const found = el("i", {class: "swatch"});
  found.style.background = `var(--${name})`;
  return found;
};

const times = (plot, splits) => {
  const long = plot.scales.x.max - plot.scales.x.min > 2 * 86_400;
  return splits.map(at => (long ? day(at) : minute(at)));
};

const DAYS = [86_400, 2 * 86_400, 5 * 86_400, 7 * 86_400];
const TIMES = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, ...DAYS];

const alone = (plot, index) => {
  const values = plot.data[index];
  const found = [];
  values.forEach((value, at) => {
    if (value !== null && values[at - 1] == null && values[at + 1] == null) found.push(at);
  });
  return found;
};

export class Chart {
  // series: [{name, label, colour, note?}]; form: a value as text; stacked: bars rather than lines.
  constructor(host, {title, series, form, stacked = false, none}) {
    this.series = series;
    this.form = form;
    this.stacked = stacked;
    this.values = series.map(() => el("span", {class: "value"}));
    this.when = el("span", {class: "when"});
    this.note = el("p", {class: "empty over", hidden: true}, none);
    this.canvas = el("div", {class: "canvas", tabindex: 0, role: "img"}, this.note);
    this.title = title;
    const keys = series.map((one, index) =>
      el("li", {}, swatch(one.colour), el("span", {}, one.label), this.values[index]),
    );
    host.append(el("div", {class: "legend"}, el("ul", {}, keys), this.when), this.canvas);
    this.canvas.addEventListener("keydown", event => this.walk(event));
    this.canvas.addEventListener("blur", () => this.point(null));
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    charts.add(this);
  }

  // time: seconds at which steps begin; columns: a list of values for each series; whole: texts for no cursor.
  update({time, step, since, until, columns, whole}) {
    Object.assign(this, {time, step, columns, whole, window: [since, until]});
    const nothing = columns.every(values => values.every(value => !value));
    this.note.hidden = !nothing;
    if (this.plot) {
      this.plot.batch(() => {
        this.plot.setData(this.data(), false);
        this.plot.setScale("x", {min: since, max: until});
      });
    } else {
      this.draw();
    }
    this.tell(this.plot.cursor.idx);
  }

  // uPlot draws in order: of a stack the highest sum first, and the parts below over it.
  data() {
    if (!this.stacked) return [this.time, ...this.columns];
    const sums = [];
    let below = this.time.map(() => 0);
    for (const values of this.columns) {
      below = below.map((sum, at) => sum + values[at]);
      sums.unshift(below);
    }
    return [this.time, ...sums];
  }

  draw() {
    this.plot?.destroy();
    const grid = {stroke: colour("line"), width: 1};
    const axis = {stroke: colour("soft"), font: FONT, grid, ticks: {show: false}};
    const order = this.stacked ? [...this.series].reverse() : this.series;
    const bars = uPlot.paths.bars({size: [0.78, 40], align: 1});
    this.plot = new uPlot(
      {
        width: Math.max(120, this.canvas.clientWidth),
        height: this.canvas.clientHeight,
        legend: {show: false},
        padding: [8, 24, 0, 0],
        cursor: {
          drag: {x: false, y: false, setScale: false},
          points: {show: !this.stacked, size: 6},
          y: false,
          sync: {key: "time"},
        },
        scales: {x: {time: true, range: () => this.window}, y: {range: (plot, low, high) => [0, (high || 1) * 1.08]}},
        axes: [
          {...axis, grid: {show: false}, values: times, incrs: TIMES, space: 64, size: 28},
          {...axis, size: AXIS, space: 36, values: (plot, splits) => splits.map(value => this.form(value))},
        ],
        series: [
          {},
          ...order.map(one => ({
            label: one.label,
            ...(this.stacked
              ? {fill: colour(one.colour), width: 0, paths: bars, points: {show: false}}
              : {stroke: colour(one.colour), width: 1.75, points: {show: true, size: 4, filter: alone}}),
          })),
        ],
        hooks: {setCursor: [plot => this.tell(plot.cursor.idx)]},
      },
      this.data(),
      this.canvas,
    );
  }

  resize() {
    const width = this.canvas.clientWidth;
    if (this.plot && width && width !== this.plot.width) this.plot.setSize({width, height: this.canvas.clientHeight});
  }

  tell(index) {
    const at = index === null || index === undefined ? null : index;
    this.columns.forEach((values, one) => say(this.values[one], at === null ? this.whole[one] : this.form(values[at])));
    say(this.when, at === null ? "" : stepName(this.time[at], this.step));
    const told = this.series.map((one, n) => `${one.label} ${this.values[n].textContent}`).join(", ");
    this.canvas.setAttribute("aria-label", `${this.title}, ${at === null ? "in all" : this.when.textContent}: ${told}. Arrow keys walk through time.`);
  }

  point(index) {
    if (!this.plot) return;
    const left = index === null ? -10 : this.plot.valToPos(this.time[index] + (this.stacked ? this.step / 2 : 0), "x");
    this.plot.setCursor({left, top: index === null ? -10 : 10});
  }

  walk(event) {
    const last = this.time ? this.time.length - 1 : -1;
    const now = this.plot?.cursor.idx ?? last + 1;
    const to = {ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: last}[event.key];
    if (event.key === "Escape") this.point(null);
    if (to === undefined || last < 0) return;
    event.preventDefault();
    this.point(Math.min(last, Math.max(0, to)));
  }
}

// Canvases do not follow the style sheet by themselves.
export const redraw = () => {
  for (const chart of charts) if (chart.plot) chart.draw();
};
