"""Pages from templates."""

from __future__ import annotations

from typing import Any

import jinja2

from si_federated.reporting import plotting


def render(template: str, *, escape: bool, **values: Any) -> str:
  """Returns a page.

  Args:
    template: The name of a file in `templates/`.
    escape: Whether texts become HTML.
    **values: The template's variables; the colors of the page are added.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('si_federated.reporting'),
    autoescape=escape,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
  )
  return environment.get_template(template).render(
    palette=plotting.PALETTE,
    ink=plotting.INK,
    quiet=plotting.QUIET,
    grid=plotting.GRID,
    **values,
  )
