"""Recipes (YAML files that each describe one student), their schema, and the engine that runs their stages."""
