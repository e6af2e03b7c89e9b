"""Localization metrics: compare maps with the place where the evidence must lie."""
