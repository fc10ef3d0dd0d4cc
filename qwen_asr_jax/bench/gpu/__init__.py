"""One report that answers what is to be known of a GPU: its limits, how near the engine comes to them, and what to do next.

`scripts/gpu_report.py` runs it. A parent without JAX (`conductor`) goes through a list of steps (`plan`); each is a process of
its own (`child`) that runs a section's module and appends what it measures, line by line (`measurement`). Whatever is there in
the end becomes a page (`page`).
"""
