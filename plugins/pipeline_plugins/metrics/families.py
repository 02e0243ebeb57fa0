"""What is counted of calls, by the names of OpenTelemetry's conventions where they have one.

Names and buckets are those of the conventions for generative AI (1.42, development), with
the dots and units as Prometheus writes them: `gen_ai.server.request.duration` in seconds is
`gen_ai_server_request_duration_seconds`. The gateway is the server of its clients and a
client of its models. An empty label is one that is not there.
"""

from __future__ import annotations

from pipeline_plugins.metrics.family import Family

OPERATIONS = {"completion": "text_completion", "embedding": "embeddings"}
"""The conventions' names of operations, where they differ from ours."""

DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(float(4**n) for n in range(14))
STAGE = (1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SPEED = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)

CALL = ("gen_ai_operation_name", "gen_ai_request_model")
ATTEMPT = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "target")

REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    "Seconds from a whole request to its answer's end.",
    "histogram",
    (*CALL, "error_type"),
    DURATION,
)
TIME_TO_FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "Seconds from a whole request to the first chunk of its stream.",
    "histogram",
    CALL,
    FIRST_TOKEN,
)
TIME_PER_OUTPUT_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "Seconds per token after the first of a stream.",
    "histogram",
    CALL,
    PER_TOKEN,
)
CALLS = Family("pipeline_calls_total", "Calls that ended, and how.", "counter", (*CALL, "outcome"))
REFUSED = Family(
    "pipeline_requests_refused_total",
    "Requests with a good key that were refused before they became calls.",
    "counter",
    ("gen_ai_operation_name", "error_type"),
)
IN_FLIGHT = Family("pipeline_calls_in_flight", "Calls under way.", "gauge", ("gen_ai_operation_name",))
STAGE_DURATION = Family(
    "pipeline_stage_duration_seconds",
    "Seconds that a stage took of a call until its reply began, without the stages that it asked.",
    "histogram",
    ("stage",),
    STAGE,
)
ROUTED = Family(
    "pipeline_route_calls_total", "Calls that a router sent to a target.", "counter", ("stage", "target")
)
VALIDATED = Family("pipeline_validate_calls_total", "Calls that were checked.", "counter", ("result",))
VALIDATE_RETRIES = Family("pipeline_validate_retries_total", "Retries for the sake of a check.", "counter")
SPENT = Family(
    "pipeline_target_cost_usd_total",
    "USD that calls cost, by target.",
    "counter",
    ("gen_ai_request_model", "target"),
)
SAVED = Family(
    "pipeline_saved_usd_total", "USD that calls were spared, by what saved it.", "counter", ("by",)
)

OPERATION_DURATION = Family(
    "gen_ai_client_operation_duration_seconds",
    "Seconds of an attempt at a model, to its answer's end.",
    "histogram",
    (*ATTEMPT, "error_type"),
    DURATION,
)
TIME_TO_FIRST_CHUNK = Family(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Seconds from the beginning of an attempt to its stream's first chunk.",
    "histogram",
    ATTEMPT,
    DURATION,
)
TIME_PER_CHUNK = Family(
    "gen_ai_client_operation_time_per_output_chunk_seconds",
    "Seconds between two chunks of an attempt's stream.",
    "histogram",
    ATTEMPT,
    DURATION,
)
TOKEN_USAGE = Family(
    "gen_ai_client_token_usage",
    "Tokens of an attempt, as its model counted them.",
    "histogram",
    (*ATTEMPT, "gen_ai_token_type"),
    TOKENS,
)
CACHED_TOKENS = Family(
    "pipeline_target_cached_tokens_total",
    "Prompt tokens that a model had in its own cache.",
    "counter",
    ATTEMPT,
)
TOKENS_PER_SECOND = Family(
    "pipeline_target_tokens_per_second",
    "Tokens per second of an attempt's answer, after the first chunk of a stream.",
    "histogram",
    ATTEMPT,
    SPEED,
)
