"""Concepts: deep feature factorisation."""
