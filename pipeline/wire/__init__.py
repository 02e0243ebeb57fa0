"""The OpenAI wire format: parsing, request models, responses, server-sent events."""
