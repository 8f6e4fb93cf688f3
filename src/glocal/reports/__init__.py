"""Figures of runs, searches and attention, and the HTML page of a report."""
