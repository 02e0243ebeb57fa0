"""Where plugins keep what outlives the process, unless they are told otherwise.

Defaults of config fields: `vars` of the configuration decides, and what is here where a
configuration has no `vars`.
"""

from __future__ import annotations

STATE = "${oc.select:vars.state,'~/.local/state/pipeline'}"
"""The folder of files, in which each plugin has a name of its own."""

REDIS = "${oc.select:vars.redis,'redis://127.0.0.1:6379/0'}"
"""URL of the Redis that plugins share."""
