"""Transformers as base models: flow matching, joint attention, one file for each family."""
