"""Answers from documents: collections, and the stages that add their passages to the prompt."""
