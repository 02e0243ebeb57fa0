"""Building OpenAI responses, for stages that answer with a model of their own."""
