"""Measuring the engine: workloads, floors, records, and what is made of records: tables, logs, plots, comparisons."""
