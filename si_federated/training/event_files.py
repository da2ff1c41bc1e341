"""TensorBoard's event files of a run that resumes from a checkpoint."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from si_federated import files
from si_federated.training import write_errors

_SUFFIX = '.kept'


def remove_later_steps(folder: str, step: int) -> None:
  """Removes the steps that a killed run wrote after its last checkpoint.

  The resumed run repeats these steps, which would then appear twice. The other
  steps keep their times and go into one new file. A half-written event at the
  end of a file is left out.

  Args:
    folder: The folder of the event files.
    step: The last step to keep.
  """
  paths = sorted(glob.glob(os.path.join(folder, 'events.out.tfevents.*')))
  if not paths:
    return
  kept: dict[tuple[int, str], tf.compat.v1.Event] = {}
  for path in paths:
    try:
      for event in tf.compat.v1.train.summary_iterator(path):
        for value in event.summary.value:
          if event.step <= step:
            one = tf.compat.v1.Event(wall_time=event.wall_time, step=event.step)
            one.summary.value.append(value)
            kept[event.step, value.tag] = one
    except tf.errors.DataLossError:
      pass  # the process was killed while it wrote
  merged = f'{paths[0].removesuffix(_SUFFIX)}{_SUFFIX}'
  if kept:
    version = tf.compat.v1.Event(file_version='brain.Event:2')
    version.wall_time = min(event.wall_time for event in kept.values())
    files.write_atomically(merged, _records([version, *kept.values()]))
  for path in paths:
    if path != merged or not kept:
      os.remove(path)


def _records(events: Sequence[Any]) -> bytes:
  with tempfile.NamedTemporaryFile() as file:
    with (
      write_errors.named(file.name),
      tf.io.TFRecordWriter(file.name) as writer,
    ):
      for event in events:
        writer.write(event.SerializeToString())
    return file.read()
