"""The three dashboards, as code; `generate.py` beside this folder writes them as JSON."""
