"""Functions that accept the options of others, and list them as their own.

Registries check options, and `--help_models` lists them, by signature.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Container, Iterable
from typing import Any, Callable


def options_of(
  function: Callable, *, without: Container[str] = (), **defaults: Any
) -> list[inspect.Parameter]:
  """Returns the keyword-only parameters of a function or dataclass.

  Args:
    function: The function.
    without: The names of parameters to leave out.
    **defaults: Defaults that differ from those of the function.
  """
  return [
    parameter.replace(default=defaults.get(name, parameter.default))
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in without
  ]


def wrap(
  function: Callable, call: Callable, parameters: Iterable[inspect.Parameter]
) -> Callable:
  """Returns `call` with the name and docstring of a function, and a signature.

  Args:
    function: The function that names and describes the result.
    call: Takes all `parameters`, those left out with their defaults.
    parameters: The parameters of the result.

  >>> def base(*, units: int = 8, dropout: float = 0.0): ...
  >>> def build(**options): return options
  >>> wrap(build, build, options_of(base, dropout=0.5))(units=3)
  {'units': 3, 'dropout': 0.5}
  """
  signature = inspect.signature(function).replace(parameters=[*parameters])

  @functools.wraps(function)
  def wrapped(*args: Any, **options: Any) -> Any:
    try:
      bound = signature.bind(*args, **options)
    except TypeError as error:
      raise TypeError(f'{function.__name__}() {error}') from None
    bound.apply_defaults()
    return call(*bound.args, **bound.kwargs)

  setattr(wrapped, '__signature__', signature)  # noqa: B010
  return wrapped
