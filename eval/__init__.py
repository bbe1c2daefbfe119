"""Accuracy, latency, budgets, one report."""
