"""The OpenAI API over the same engine: bodies in, TextRequests to the engine, answers in OpenAI's shapes out. docs/openai.md has the table of fields."""
