"""Pseudo-labels: how the teacher makes them, how they are stored and exchanged, and how their quality is judged."""
