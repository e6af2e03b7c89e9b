"""Concepts: deep feature factorization."""
