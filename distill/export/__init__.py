"""Students to files that devices run, each checked against torch."""
