"""Sharing of options between builders, with all of them in each signature."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

import tensorflow as tf

Builder = Callable[..., tf.keras.Model]


def inherit_options(base: Callable, **defaults: Any) -> Callable:
  """Decorates a builder that passes its `**options` on to another function.

  The decorated builder's signature lists the keyword-only options of `base` and
  then its own, in place of `**options`. Registries check options, and
  `--help_models` lists them, by signature.

  Args:
    base: The function whose keyword-only options the builder accepts.
    **defaults: Defaults of options of `base` that differ here.

  Returns:
    The decorator.

  >>> def base(*, units: int = 8, dropout: float = 0.0): ...
  >>> @inherit_options(base, dropout=0.5)
  ... def build(vocab_size: int, *, slope: float = 0.1, **options): ...
  >>> [*inspect.signature(build).parameters]
  ['vocab_size', 'units', 'dropout', 'slope']
  """
  inherited = [
    parameter.replace(default=defaults.get(parameter.name, parameter.default))
    for parameter in inspect.signature(base).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
  ]

  def decorate(function: Builder) -> Builder:
    signature = inspect.signature(function)
    own = list(signature.parameters.values())[:-1]  # Without `**options`.
    first = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    signature = signature.replace(
      parameters=[*first, *inherited, *own[len(first) :]]
    )

    @functools.wraps(function)
    def build(*args: Any, **options: Any) -> tf.keras.Model:
      try:
        bound = signature.bind(*args, **options)
      except TypeError as error:
        raise TypeError(f'{function.__name__}() {error}') from None
      bound.apply_defaults()
      return function(*bound.args, **bound.kwargs)

    setattr(build, '__signature__', signature)  # noqa: B010
    return build

  return decorate
