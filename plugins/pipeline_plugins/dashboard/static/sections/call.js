// One call: its path through the graph, step by step, and all that the ledger knows of it.

import {el, empty, say} from "../dom.js";
import {drawGraph} from "../drawing.js";
import {ask} from "../fetching.js";
import {exact, moment, ms, percent, usd} from "../format.js";
import {change} from "../state.js";
import {fixedTable} from "../table.js";
import {outcome} from "./calls.js";

const OK = ["ok", "running"];

export class Call {
  constructor(dialog, about) {
    this.dialog = dialog;
    this.about = about;
    this.title = el("h2", {id: "call-title"});
    this.body = el("div", {class: "call"});
    const close = el("button", {class: "plain", type: "button"}, "Close");
    close.addEventListener("click", () => dialog.close());
    dialog.append(el("div", {class: "head"}, this.title, close), this.body);
    dialog.addEventListener("close", () => this.id && change({call: ""}));
    dialog.addEventListener("click", event => event.target === dialog && dialog.close());
  }

  async show(id) {
    this.id = id;
    if (!id) {
      if (this.dialog.open) this.dialog.close();
      return;
    }
    say(this.title, id);
    this.body.replaceChildren(empty("Reading the ledger"));
    if (!this.dialog.open) this.dialog.showModal();
    try {
      const call = await ask(`calls/${encodeURIComponent(id)}`);
      if (this.id === id) this.body.replaceChildren(...this.parts(call));
    } catch (error) {
      if (this.id === id) this.body.replaceChildren(empty(error.message));
    }
  }

  parts(call) {
    return [
      el("p", {class: "lead"}, outcome(call), ` in ${ms(call.total_ms)}`),
      el("p", {class: "note"}, [moment(call.time), call.operation, call.streaming ? `stream of ${exact(call.chunks)} ${call.chunks === 1 ? "chunk" : "chunks"}` : "whole answer"].join(" · ")),
      ...this.path(call),
      el("h3", {}, "Attempts at models"),
      attempts(call.attempts),
      el("h3", {}, "What is known"),
      facts(call),
    ];
  }

  path(call) {
    const steps = call.path ?? [];
    if (!steps.length) return [el("h3", {}, "Path"), empty("It did not enter the graph")];
    const passed = new Map(steps.map(step => [`${step.from} ${step.to}`, step]));
    const seen = new Map(steps.map(step => [step.to, step]));
    const known = steps.every(step => this.about.stages.some(one => one.name === step.to));
    const width = this.body.clientWidth;
    const drawn = known && drawGraph(this.about, width, {
      label: `Path: ${steps.map(step => step.to).join(", ")}`,
      of: name => {
        const step = seen.get(name);
        return {
          text: step ? ms(step.ms) : "", share: step ? step.ms / Math.max(call.total_ms, 0.001) : 0, off: !step,
          tone: step && !OK.includes(step.outcome) ? "raised" : step ? "passed" : "", title: step ? `${name}: ${step.outcome}` : name,
        };
      },
      along: ({from, to}) => ({weight: passed.has(`${from} ${to}`) ? 0.5 : 0, off: !passed.has(`${from} ${to}`), text: ""}),
    });
    return [
      el("h3", {}, "Path through the graph"),
      drawn ? el("div", {class: "drawing"}, drawn) : el("p", {class: "note"}, "The graph has changed since."),
      waterfall(steps, call.total_ms),
    ];
  }
}

// Each passage along an edge as a bar from its beginning to its end.
const waterfall = (steps, whole) => {
  const scale = Math.max(whole, ...steps.map(step => step.at_ms + step.ms), 0.001);
  const heads = [["Stage", "name"], ["At", "number"], ["For", "number"], ["From beginning to end", "lane"], ["Came back", "name hide"]];
  const rows = steps.map(step => {
    const filled = el("i", {class: OK.includes(step.outcome) ? "filled" : "filled failed"});
    filled.style.marginLeft = `${(step.at_ms / scale) * 100}%`;
    filled.style.width = `${Math.max(0.4, (step.ms / scale) * 100)}%`;
    return [step.to, ms(step.at_ms), ms(step.ms), el("span", {class: "track"}, filled), step.outcome];
  });
  return fixedTable("Steps", heads, rows);
};

const attempts = found => {
  if (!found?.length) return empty("No model was asked");
  const heads = [["Stage", "name"], ["Model", "name"], ["Outcome", ""], ["First", "number"], ["Whole", "number"], ["Tokens", "number"], ["Cost", "number"]];
  const rows = found.map(one => [
    one.stage,
    one.model ?? "–",
    outcome({...one, cache: null}),
    ms(one.first_ms),
    ms(one.seconds === null ? null : one.seconds * 1000),
    one.prompt_tokens === null ? "–" : `${exact(one.prompt_tokens)} + ${exact(one.completion_tokens)}`,
    usd(one.usd) + (one.estimated ? " est." : ""),
  ]);
  return fixedTable("Attempts", heads, rows);
};

const pairs = found => (found && Object.keys(found).length ? Object.entries(found).map(([name, value]) => `${name}=${value}`).join(", ") : null);

const facts = call => {
  const rows = [
    ["Request", call.id],
    ["Answer", call.answer_id],
    ["Model asked for", call.model],
    ["Model used", call.used],
    ["Owner", call.owner],
    ["Key", call.key],
    ["Tags", pairs(call.tags)],
    ["Limit", call.admitted === null ? null : `${call.admitted ? "admitted" : "refused"}${call.limit_rule ? ` by ${call.limit_rule}` : ""}`],
    ["Cache", call.cache && (call.similarity ? `${call.cache}, similarity ${percent(call.similarity)}` : call.cache)],
    ["Route", call.route && (call.reason ? `${call.route}: ${call.reason}` : call.route)],
    ["Experiments", pairs(call.variants)],
    ["Checks", call.valid === null ? null : call.valid ? "passed" : `failed: ${(call.failed_checks ?? []).join(", ")}`],
    ["Scores", pairs(call.scores)],
    ["Retries for checks", call.retries ? exact(call.retries) : null],
    ["Finish reason", call.finish],
    ["Tokens", call.prompt_tokens === null ? null : `${exact(call.prompt_tokens)} prompt (${exact(call.cached_tokens ?? 0)} cached), ${exact(call.completion_tokens)} generated`],
    ["Cost", call.usd === null ? null : usd(call.usd)],
    ["Saved", call.saved_usd ? usd(call.saved_usd) : null],
    ["First chunk", call.first_ms === null ? null : ms(call.first_ms)],
    ["Between chunks", call.gap_ms === null ? null : `${ms(call.gap_ms)} on average`],
    ["Rating", call.feedback && [call.feedback.rating, call.feedback.label, call.feedback.comment].filter(Boolean).join(" · ")],
    ["Configuration", call.config],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {class: "facts"}, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value)))));
};
