// The graph as it was compiled: from left to right, or from top to bottom where there is no room.

import {svg} from "./dom.js";

const HIGH = 62;
const LEAST = 92;
const MOST = 176;
const GAP = 26;
const ROWS = 16;
const DOWN = 30;
const EDGE = 2;

const place = ({stages}, width) => {
  const columns = Math.max(...stages.map(one => one.column)) + 1;
  const rows = Math.max(...stages.map(one => one.row)) + 1;
  const room = (width - EDGE * 2 - (columns - 1) * GAP) / columns;
  if (room >= LEAST) {
    const wide = Math.min(MOST, room);
    const gap = columns > 1 ? (width - EDGE * 2 - columns * wide) / (columns - 1) : 0;
    return {
      wide, down: false, size: [width, rows * (HIGH + ROWS) - ROWS + EDGE * 2],
      at: one => [EDGE + one.column * (wide + gap), EDGE + one.row * (HIGH + ROWS)],
    };
  }
  const wide = Math.min(220, (width - EDGE * 2 - (rows - 1) * ROWS) / rows);
  return {
    wide, down: true, size: [width, columns * (HIGH + DOWN) - DOWN + EDGE * 2],
    at: one => [EDGE + one.row * (wide + ROWS), EDGE + one.column * (HIGH + DOWN)],
  };
};

const curve = ([x1, y1], [x2, y2], down) => {
  if (down) {
    const bend = (y2 - y1) / 2;
    return `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`;
  }
  const bend = (x2 - x1) / 2;
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
};

const shorten = (text, wide) => {
  const most = Math.max(6, Math.floor((wide - 18) / 6.6));
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
};

// of(stage) -> {text, share: 0 to 1, tone, title, off}; along(edge) -> {weight: 0 to 1, text, off}.
export const drawGraph = (about, width, {of, along, label}) => {
  const {wide, down, size, at} = place(about, width);
  const named = new Map(about.stages.map(one => [one.name, one]));
  const outOf = name => {
    const [x, y] = at(named.get(name));
    return down ? [x + wide / 2, y + HIGH] : [x + wide, y + HIGH / 2];
  };
  const into = name => {
    const [x, y] = at(named.get(name));
    return down ? [x + wide / 2, y] : [x, y + HIGH / 2];
  };
  const edges = about.edges.map(edge => {
    const {weight, text, off} = along(edge);
    const [from, to] = [outOf(edge.from), into(edge.to)];
    const line = svg("path", {class: off ? "edge off" : "edge", d: curve(from, to, down), "stroke-width": 1 + 3 * weight});
    const words = text && svg("text", {class: "on-edge", x: (from[0] + to[0]) / 2, y: (from[1] + to[1]) / 2 - 4, "text-anchor": "middle"}, text);
    return [line, words];
  });
  const nodes = about.stages.map(one => {
    const {text, share, tone, title, off} = of(one.name);
    const [x, y] = at(one);
    return svg(
      "g", {class: `stage ${tone ?? ""} ${off ? "off" : ""}`, transform: `translate(${x} ${y})`},
      svg("title", {}, title),
      svg("rect", {class: "box", width: wide, height: HIGH, rx: 6}),
      svg("rect", {class: "heat", x: 1, y: HIGH - 5, width: Math.max(0, (wide - 2) * share), height: 4, rx: 2}),
      svg("text", {class: "title", x: 9, y: 20}, shorten(one.name, wide)),
      svg("text", {class: "plugin", x: 9, y: 34}, shorten(one.plugin, wide)),
      svg("text", {class: "time", x: 9, y: 50}, text),
    );
  });
  return svg(
    "svg", {class: "graph", viewBox: `0 0 ${size[0]} ${size[1]}`, width: size[0], height: size[1], role: "img", "aria-label": label},
    edges.map(([line]) => line), edges.map(([, words]) => words), nodes,
  );
};
