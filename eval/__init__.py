"""Evaluation: transcription with every runtime, accuracy, latency against device budgets, the report and a web page."""
