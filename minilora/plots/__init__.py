"""Arrays in, figures out: charts in one style, and the planner as a page.

In reading order:

    style.py             colours, labels, one way to save
    charts.py            the charts: arrays in, ``Figure`` out
    parameter_charts.py  the charts of counts: parameters by rank, by model, by module
    analysis_charts.py   the charts of what a fine-tune changed
    evidence_charts.py   the chart of an experiment: the evidence over time
    panels.py            small multiples: panels that share their axes
    gallery.py           each chart with the figures it shows
    planner_page.py      the planner as one HTML file

Imports the library. matplotlib is loaded when a chart is drawn.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_imports

if TYPE_CHECKING:
    from .gallery import draw, write_gallery
    from .planner_page import write_planner
    from .style import save_figure

__all__ = ["draw", "save_figure", "write_gallery", "write_planner"]
if not TYPE_CHECKING:  # or a type checker would take every name for there
    __getattr__, __dir__ = lazy_imports(__name__)
