"""Run folders: what a command writes, whole or not at all, with a manifest; and their report."""

from tl_weighted_pca.runs.run_report import report

__all__ = ["report"]
