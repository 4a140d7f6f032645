"""Evaluation as the papers and challenges define it: metrics, conventions, tables, statistics, reports."""
