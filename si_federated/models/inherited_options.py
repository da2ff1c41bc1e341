"""Sharing of options between builders, with all of them in each signature."""

from __future__ import annotations

import inspect
from typing import Any, Callable

import tensorflow as tf

from si_federated import signatures

Builder = Callable[..., tf.keras.Model]


def inherit_options(base: Callable, **defaults: Any) -> Callable:
  """Decorates a builder that passes its `**options` on to another function.

  The decorated builder's signature lists the keyword-only options of `base` and
  then its own, in place of `**options`.

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
  inherited = signatures.options_of(base, **defaults)

  def decorate(function: Builder) -> Builder:
    own = [*inspect.signature(function).parameters.values()][:-1]  # No options.
    first = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    return signatures.wrap(
      function, function, [*first, *inherited, *own[len(first) :]]
    )

  return decorate
