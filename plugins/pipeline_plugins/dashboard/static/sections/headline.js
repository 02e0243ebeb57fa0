// The figures to look at first, each beside the same stretch of time before.

import {el, say} from "../dom.js";
import {change, count, exact, ms, percent, rate, usd} from "../format.js";

const part = (some, all) => (all ? some / all : null);
const saved = totals => totals.saved_cache_usd + totals.saved_route_usd;

const FIGURES = [
  {
    label: "Calls",
    value: now => count(now.calls),
    note: (now, before) => [rate(part(now.calls, now.seconds)), change(now.calls, before.calls)],
  },
  {
    label: "Failed",
    value: now => percent(part(now.failed, now.calls)),
    bad: now => now.failed > 0,
    note: now => [`${count(now.failed)} failed`, `${count(now.refused)} refused`],
  },
  {
    label: "First token, median",
    value: now => ms(now.first_ms.p50),
    note: now => [`p95 ${ms(now.first_ms.p95)}`, `p99 ${ms(now.first_ms.p99)}`],
  },
  {
    label: "Answer, median",
    value: now => ms(now.total_ms.p50),
    note: now => [`p95 ${ms(now.total_ms.p95)}`, `p99 ${ms(now.total_ms.p99)}`],
  },
  {
    label: "Tokens",
    value: now => count(now.prompt_tokens + now.completion_tokens),
    note: now => [`${rate(part(now.completion_tokens, now.seconds))} generated`],
  },
  {
    label: "From cache",
    value: now => percent(part(now.cached, now.completed + now.cached)),
    note: now => [`${exact(now.cached)} of ${exact(now.completed + now.cached)}`],
  },
  {
    label: "Cost",
    value: now => usd(now.usd),
    note: (now, before) => [saved(now) ? `${usd(saved(now))} saved` : "nothing saved", change(now.usd, before.usd)],
  },
];

export class Headline {
  constructor(host) {
    this.places = FIGURES.map(() => ({value: el("dd", {class: "figure"}, "–"), note: el("dd", {class: "note"}, "\u00a0")}));
    host.append(
      el("dl", {class: "headline"}, FIGURES.map((one, at) =>
        el("div", {}, el("dt", {}, one.label), this.places[at].value, this.places[at].note))),
    );
  }

  update({totals, before}) {
    FIGURES.forEach((one, at) => {
      const {value, note} = this.places[at];
      say(value, one.value(totals));
      value.classList.toggle("bad", Boolean(one.bad?.(totals)));
      say(note, one.note(totals, before).filter(Boolean).join(" · ") || "\u00a0");
      note.title = note.textContent;
    });
  }
}
