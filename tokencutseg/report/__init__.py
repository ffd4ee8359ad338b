"""Notebooks, pages."""
