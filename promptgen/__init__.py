"""promptgen: several ways a prompt could go on, in milliseconds, from a small GPT-2 of your own."""

__version__ = "0.1.0"
