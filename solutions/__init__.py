"""Answers to the chapters' extend exercises, and the full-scale training code: `python -m solutions.NAME
--help`."""
