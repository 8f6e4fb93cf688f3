"""Texts with labels to be fine-tuned on: a class, a tag for each word, an answer, a completion."""
