"""Basics that every other package uses: errors, logs, progress, atomic files, model folders and model shapes."""
