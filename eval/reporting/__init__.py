"""The report: its data as read from the stages of a run, its plots and its HTML page."""
