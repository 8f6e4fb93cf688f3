"""Sentences and their translations, for the Transformer."""
