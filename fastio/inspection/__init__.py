"""``fastio inspect``: what a path is, what is in it, and how it would be read, without reading its values.

report      the answer, as values and as JSON
measure     a dataset -> the answer; sizes from a sample of the extents
preview     the first records, a line each
sniff       what some bytes look like; nothing is decoded or unpickled
render      the answer as tables
"""

from __future__ import annotations

from fastio.inspection.measure import inspect_dataset, report_on
from fastio.inspection.render import print_report
from fastio.inspection.report import FieldReport, Report, ShardReport, SizeBin, to_json
from fastio.inspection.sniff import sniff

__all__ = [
    "FieldReport",
    "Report",
    "ShardReport",
    "SizeBin",
    "inspect_dataset",
    "print_report",
    "report_on",
    "sniff",
    "to_json",
]
