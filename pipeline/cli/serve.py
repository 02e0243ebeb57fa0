"""`pipeline serve`: the API."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli.options import overrides as with_overrides

EPILOG = """\b
Examples:
  pipeline serve
  pipeline serve server.port=8001 infer.slots=16
  pipeline serve infer=transformers infer.device=cuda
  pipeline serve infer=openai infer.base_url=https://llm.example.org/v1 'infer.api_key=${oc.env:API_KEY}'"""


@click.command("serve", epilog=EPILOG)
@with_overrides
def command(overrides: tuple[str, ...], config: Path | None) -> int:
    """Serve the graph as an OpenAI-compatible API until SIGTERM or Ctrl-C.

    Calls that run then are given `server.drain_timeout` seconds to end.
    """
    from pipeline import logging
    from pipeline.config import compose, pinned

    logging.configure()
    config = pinned(config)
    plan, settings = compose(overrides, config=config).plan()

    from pipeline.server.run import serve

    return serve(plan, settings, overrides, config)
