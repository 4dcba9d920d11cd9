"""The report: one self-contained HTML page that says what a circuit is, what it costs, and how far to trust it.

A manifest is all that a page is made of, so that `export-circuit report model.json` makes it again, byte for byte.
Each section is a module that turns the manifest into plain data, and a template of the same name that draws it.
"""

from exporter.outputs.report.page import SECTIONS, is_report, render_report, write_report

__all__ = ["SECTIONS", "is_report", "render_report", "write_report"]
