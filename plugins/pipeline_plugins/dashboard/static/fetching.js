// Asking the server. A session that has ended leads to the form.

const API = new URL("../api/", import.meta.url);

class Trouble extends Error {}

export const ask = async (path, query = {}, signal = undefined) => {
  const url = new URL(path, API);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let answer;
  try {
    answer = await fetch(url, {signal, headers: {accept: "application/json"}});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The server can't be reached. Trying again.");
  }
  if (answer.status === 401) {
    location.assign(new URL("../login", API));
    throw new Trouble("The session has ended.");
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const trouble = new Trouble(body.error?.message || `The server answered ${answer.status}.`);
    trouble.code = body.error?.code;
    throw trouble;
  }
  return body;
};
