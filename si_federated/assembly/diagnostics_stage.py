"""Builds the recorder that `--diagnostics` names."""

from __future__ import annotations

from typing import Optional

from si_federated import config
from si_federated.assembly import learning_process, task_and_model
from si_federated.assembly.built_experiment import Experiment
from si_federated.assembly.registries import build_part
from si_federated.diagnostics.recorder import Recorder
from si_federated.tasks import Task

_BLENDING_WEIGHTS = 'blending_weights'


def build_recorder(built: Experiment, folder: str) -> Optional[Recorder]:
  """Builds the recorder of an experiment.

  Args:
    built: The experiment.
    folder: The run's folder.

  Returns:
    The recorder; None if there is nothing to measure.

  Raises:
    config.ConfigError: If an option is out of range, or the task has classes.
  """
  settings = built.config
  plan = build_part(settings, 'diagnostics')
  names = getattr(built.model, 'variable_names', ())
  if plan is None and not any(_BLENDING_WEIGHTS in name for name in names):
    return None
  if not isinstance(built.task, Task):
    raise config.ConfigError(
      f'--diagnostics={settings.diagnostics} measures language models; leave '
      f'it out with --task={settings.task}.'
    )
  model_arguments = built.task.model_arguments
  return Recorder(
    folder,
    plan=plan,
    build_keras_model=lambda: task_and_model.build_model(
      settings, **model_arguments
    ),
    client_optimizer=learning_process.build_client_optimizer(
      settings, built.model
    ),
    loss=built.task.loss,
    examples=built.validation_examples,
    seed=settings.client_seed,
    is_private=bool(built.ledger.summary().get('promised')),
  )
