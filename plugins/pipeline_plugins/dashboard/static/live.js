// Server-sent events, while the page is seen. Where none are to be had, `poll` is called now and then.

const EVENTS = new URL("../events", import.meta.url);
const AGAIN = 15_000;

export const follow = ({now, status, poll, out}) => {
  let source = null;
  let timer = null;

  const close = () => {
    source?.close();
    source = null;
    clearTimeout(timer);
  };

  const open = () => {
    close();
    source = new EventSource(EVENTS);
    source.addEventListener("now", event => {
      status("live");
      now(JSON.parse(event.data));
    });
    source.addEventListener("trouble", () => status("trouble"));
    source.addEventListener("out", out);
    source.addEventListener("error", () => {
      if (source?.readyState !== EventSource.CLOSED) {
        status("lost");
        return;
      }
      // Refused: too many pages follow, or the session has ended, which `poll` finds out.
      status("polling");
      poll();
      timer = setTimeout(open, AGAIN);
    });
  };

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  open();
};
