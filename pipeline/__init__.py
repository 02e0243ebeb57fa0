"""Declarative LLM gateways: a graph of stages, written in YAML, served as one API.

What a plugin needs is here; see `pipeline.stage.Stage` for the contract.
"""

from pipeline.call import ANONYMOUS, Call, Record, Step, Tenant
from pipeline.hookspecs import Metric, Panel, Route, hookimpl
from pipeline.price import Charge, Price, Spent
from pipeline.reply import ChunkStream, End, Reply
from pipeline.stage import DEFAULT_NAMES, Edge, Edges, Model, Stage
from pipeline.wire.usage import Usage

__all__ = [
    "ANONYMOUS",
    "DEFAULT_NAMES",
    "Call",
    "Charge",
    "ChunkStream",
    "Edge",
    "Edges",
    "End",
    "Metric",
    "Model",
    "Panel",
    "Price",
    "Record",
    "Reply",
    "Route",
    "Spent",
    "Stage",
    "Step",
    "Tenant",
    "Usage",
    "hookimpl",
]
