// What the page shows is in its address: to reload, to share, to go back.

export const RANGES = {"15m": "15 min", "1h": "1 h", "24h": "24 h", "7d": "7 d", "30d": "30 d"};
export const LISTINGS = {slowest: "Slowest", failed: "Failed", recent: "Recent"};
export const THEMES = {system: "System", light: "Light", dark: "Dark"};

const ALLOWED = {range: RANGES, listing: LISTINGS, theme: THEMES};
const DEFAULTS = {range: "1h", listing: "slowest", theme: "system", call: ""};

const listeners = [];

export const state = () => {
  const asked = new URLSearchParams(location.search);
  const found = {};
  for (const [name, value] of Object.entries(DEFAULTS)) {
    const given = asked.get(name);
    const allowed = given !== null && (!ALLOWED[name] || Object.hasOwn(ALLOWED[name], given));
    found[name] = allowed ? given : value;
  }
  return found;
};

export const address = changes => {
  const wanted = {...state(), ...changes};
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(wanted)) {
    if (value !== DEFAULTS[name]) query.set(name, value);
  }
  const text = query.toString();
  return text ? `?${text}` : location.pathname;
};

let last = state();

export const onChange = listener => listeners.push(listener);

const tell = before => {
  const now = state();
  for (const listener of listeners) listener(now, before);
};

export const change = (changes, {replace = false} = {}) => {
  const before = state();
  history[replace ? "replaceState" : "pushState"](null, "", address(changes));
  last = state();
  tell(before);
};

addEventListener("popstate", () => {
  const before = last;
  last = state();
  tell(before);
});
