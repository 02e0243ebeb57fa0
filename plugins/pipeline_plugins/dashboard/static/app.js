// The page: its address says what to show; figures come when it changes, and again as calls come in.

import {redraw} from "./chart.js";
import {byId, el, say} from "./dom.js";
import {ask} from "./fetching.js";
import {clock} from "./format.js";
import {follow} from "./live.js";
import {LISTINGS, RANGES, THEMES, change, onChange, state} from "./state.js";
import {Call} from "./sections/call.js";
import {Calls} from "./sections/calls.js";
import {Cost} from "./sections/cost.js";
import {Panels} from "./sections/panels.js";
import {Experiments, Quality} from "./sections/quality.js";
import {Gauges, Pulse} from "./sections/pulse.js";
import {Graph} from "./sections/graph.js";
import {Headline} from "./sections/headline.js";
import {Keys, Models} from "./sections/ranked.js";
import {Errors, Latency, Tokens, Traffic} from "./sections/traffic.js";

// How long figures of a range may be shown while new calls come in, in ms.
const STALE = {"15m": 4000, "1h": 6000, "24h": 20_000, "7d": 60_000, "30d": 60_000};

let sections = [];
let pulse, gauges, calls, call, panels;
let shown = null;
let revision = null;
let asking = null;
let loaded = 0;

const trouble = message => {
  const place = byId("trouble");
  place.hidden = !message;
  say(place, message ?? "");
};

const refresh = async () => {
  asking?.abort();
  const mine = (asking = new AbortController());
  const {range, listing} = state();
  document.body.dataset.busy = shown?.range === range ? "" : "yes";
  try {
    const [figures, list] = await Promise.all([
      ask("figures", {range}, mine.signal),
      ask("calls", {range, listing}, mine.signal),
    ]);
    shown = figures;
    loaded = performance.now();
    for (const section of sections) section.update(figures);
    calls.update(list);
    trouble(null);
    // What plugins show may take its time: nothing waits for it.
    ask("panels", {}, mine.signal).then(found => panels.update(found), () => {});
  } catch (error) {
    if (error.name === "AbortError") return;
    trouble(error.message);
    loaded = performance.now();
  } finally {
    if (asking === mine) {
      asking = null;
      document.body.dataset.busy = "";
    }
  }
};

// Asks anew once there is something new, or time has gone on by a step.
const perhaps = event => {
  const {range} = state();
  const age = performance.now() - loaded;
  const moved = shown && event.now >= shown.until;
  const news = event.revision !== undefined && event.revision !== revision;
  if (asking || age < STALE[range] || !(news || moved || age > 60_000)) return;
  revision = event.revision;
  refresh();
};

const status = word => {
  const texts = {live: "Live", lost: "Reconnecting", polling: "Not live", trouble: "Ledger not read"};
  const place = byId("status");
  place.dataset.state = word;
  say(place, texts[word]);
};

const choices = (host, name, values) => {
  for (const [value, label] of Object.entries(values)) {
    const input = el("input", {type: "radio", name, value, id: `${name}-${value}`});
    input.addEventListener("change", () => change({[name]: value}));
    host.append(input, el("label", {for: input.id}, label));
  }
};

const mark = now => {
  byId(`range-${now.range}`).checked = true;
  byId(`listing-${now.listing}`).checked = true;
  document.documentElement.dataset.theme = now.theme;
  say(byId("theme-name"), THEMES[now.theme]);
  byId("theme").setAttribute("aria-label", `Theme: ${THEMES[now.theme]}`);
};

const nextTheme = () => {
  const names = Object.keys(THEMES);
  return names[(names.indexOf(state().theme) + 1) % names.length];
};

const start = async () => {
  choices(byId("ranges"), "range", RANGES);
  choices(byId("listings"), "listing", LISTINGS);
  mark(state());
  byId("theme").addEventListener("click", () => change({theme: nextTheme()}, {replace: true}));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let about;
  try {
    about = await ask("about");
  } catch (error) {
    trouble(error.message);
    setTimeout(() => location.reload(), 5000);
    return;
  }
  byId("logout").hidden = !about.login;
  say(byId("about"), `llm-pipeline ${about.version}`);
  pulse = new Pulse(byId("pulse"));
  gauges = new Gauges(byId("gauges"));
  calls = new Calls(byId("calls"));
  panels = new Panels(byId("panels"));
  call = new Call(byId("call"), about);
  sections = [
    new Headline(byId("headline")),
    new Traffic(byId("traffic")),
    new Errors(byId("errors")),
    new Latency(byId("first"), byId("total")),
    new Graph(byId("graph"), about),
    new Tokens(byId("tokens")),
    new Cost(byId("cost"), byId("spending")),
    new Models(byId("models")),
    new Keys(byId("keys")),
    new Quality(byId("quality")),
    new Experiments(byId("experiments")),
  ];
  onChange((now, before) => {
    mark(now);
    if (now.theme !== before.theme) redraw();
    if (now.range !== before.range || now.listing !== before.listing) refresh();
    if (now.call !== before.call) call.show(now.call);
  });
  if (about.ledger) await refresh();
  byId("hint").hidden = about.ledger;
  byId("main").classList.toggle("bare", !about.ledger);
  byId("main").classList.remove("unready");
  call.show(state().call);
  follow({
    now: event => {
      byId("status").title = `At ${clock(event.now)}`;
      pulse.update(event);
      gauges.update(event);
      if (about.ledger) perhaps(event);
    },
    status,
    poll: () => about.ledger && refresh(),
    out: () => location.reload(),
  });
};

start();
