"""The OpenAI-compatible server: protocol, application, endpoints.

A request is received by `protocol`, dispatched by `app`, turned into a call by `calls`,
and answered by the graph.
"""
