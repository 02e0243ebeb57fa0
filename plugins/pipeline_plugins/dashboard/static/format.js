// Numbers as people read them, each with its unit.

const NONE = "–";
const THIN = "\u202f";

const digits = (value, most) => value.toLocaleString("en", {maximumFractionDigits: most, minimumFractionDigits: 0});

const significant = value => digits(value, value >= 100 ? 0 : value >= 10 ? 1 : 2);

const missing = value => value === null || value === undefined || Number.isNaN(value);

export const count = value => {
  if (missing(value)) return NONE;
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e4]]) {
    if (value >= size) return `${significant(value / (unit === "k" ? 1e3 : size))}${THIN}${unit}`;
  }
  return digits(value, value % 1 ? 1 : 0);
};

export const exact = value => (missing(value) ? NONE : digits(value, 0));

export const ms = value => {
  if (missing(value)) return NONE;
  if (value >= 60_000) return `${digits(Math.floor(value / 60_000), 0)}${THIN}min ${digits((value % 60_000) / 1000, 0)}${THIN}s`;
  if (value >= 1000) return `${significant(value / 1000)}${THIN}s`;
  if (value >= 1) return `${significant(value)}${THIN}ms`;
  return value === 0 ? `0${THIN}ms` : `${significant(value * 1000)}${THIN}µs`;
};

export const usd = value => {
  if (missing(value)) return NONE;
  if (value === 0) return "$0";
  if (value >= 1000) return `$${digits(value, 0)}`;
  if (Number(value.toPrecision(2)) >= 0.1) return `$${value.toFixed(2)}`;
  if (value < 1e-7) return "<$0.0000001";
  return `$${value.toLocaleString("en", {maximumSignificantDigits: 2, maximumFractionDigits: 10})}`;
};

export const percent = value => {
  if (missing(value)) return NONE;
  const share = value * 100;
  if (share > 0 && share < 0.1) return `<0.1${THIN}%`;
  return `${digits(share, share < 10 && share > 0 ? 1 : 0)}${THIN}%`;
};

// A check's score, which its histogram knows within 1 %.
export const score = value => {
  if (missing(value)) return NONE;
  return digits(value <= 0.001 ? 0 : Number(value.toPrecision(2)), 3);
};

// How often something happens: by the second, or by the minute or hour where that is rarely.
export const rate = (value, what = "") => {
  if (missing(value)) return NONE;
  const of = what ? `${THIN}${what}` : "";
  if (value === 0) return `0${of}/s`;
  if (value >= 0.1) return `${count(value >= 10 ? value : Math.round(value * 100) / 100)}${of}/s`;
  if (value * 60 >= 0.1) return `${significant(value * 60)}${of}/min`;
  return `${significant(value * 3600)}${of}/h`;
};

export const change = (now, before) => {
  if (missing(now) || !before) return "";
  const share = now / before - 1;
  if (Math.abs(share) < 0.005) return "as before";
  if (share > 9.99) return `×${digits(now / before, 0)} before`;
  return `${share > 0 ? "+" : "−"}${digits(Math.abs(share) * 100, 0)}${THIN}%`;
};

const two = value => String(value).padStart(2, "0");

export const clock = seconds => {
  const at = new Date(seconds * 1000);
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
};

export const minute = seconds => clock(seconds).slice(0, 5);

export const day = seconds => new Date(seconds * 1000).toLocaleDateString("en", {month: "short", day: "numeric"});

export const moment = seconds => `${day(seconds)} ${clock(seconds)}`;

// A step of a chart, named by when it begins, as exactly as the step is long.
export const step = (seconds, length) => {
  if (length >= 3600) return `${day(seconds)} ${minute(seconds)}`;
  return length >= 60 ? minute(seconds) : clock(seconds);
};

export const interval = (pair, form) => (pair ? `${form(pair[0])} to ${form(pair[1])}` : NONE);
