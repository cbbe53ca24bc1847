"""World Models (Ha & Schmidhuber 2018): V, M, C and the dream. Every module here is exported from a notebook in `nbs/`."""

__version__ = "0.1.0"
