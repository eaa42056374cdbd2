"""Reports: one self-contained HTML file that reads well on a phone and asks nobody for anything."""

from fewstep.report.blocks import (
    Block,
    Code,
    Column,
    FactList,
    Figure,
    Highlights,
    ImageGrid,
    LinkList,
    Note,
    Table,
    TableRow,
    TokenStrip,
)
from fewstep.report.page import Page, render, save_page
from fewstep.report.plans import plan_table
from fewstep.report.terminal import to_rich

__all__ = [
    "Block",
    "Code",
    "Column",
    "FactList",
    "Figure",
    "Highlights",
    "ImageGrid",
    "LinkList",
    "Note",
    "Page",
    "Table",
    "TableRow",
    "TokenStrip",
    "plan_table",
    "render",
    "save_page",
    "to_rich",
]
