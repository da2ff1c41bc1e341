"""TensorFlow's write errors as system errors that name the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Union

import tensorflow as tf


@contextlib.contextmanager
def named(path: Union[str, os.PathLike]) -> Iterator[None]:
  """Converts TensorFlow's write errors to `OSError`.

  Args:
    path: The file or folder that is written, for the message; TensorFlow itself
      names a temporary file.

  Raises:
    OSError: If TensorFlow can't write, for example if the disk is full.
  """
  try:
    yield
  except tf.errors.OpError as error:
    # The message is '{{node}} FILE; REASON [Op:NAME]'.
    reason = error.message.rpartition(';')[2].partition('[Op:')[0].strip()
    raise OSError(
      f'{os.fspath(path)} was not written ({reason}); check its disk.'
    ) from error
