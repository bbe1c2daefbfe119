"""Stages that turn audio into a table of utterances, label it with the teacher and choose the labels to train on."""
