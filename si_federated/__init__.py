"""Federated learning with scale-invariant language models.

The map of the package. A room imports from lower levels only, and within level
2 from the rooms above it; `tests/test_layering.py` has the whole table.

0 config           what an experiment is: frozen records, JSON both ways
  files            atomic writes and the cache folder
  signatures       functions that accept the options of others
  layers           Keras layers and activations; needs TensorFlow alone
  privacy          participation, matrices, sensitivity, accounting
1 models           MODELS and TRANSFORMS: functional Keras models by name
  tasks            TASKS and VOCABULARIES: client populations, loss, metrics
  aggregators      AGGREGATORS: how updates are combined, privately or not
  algorithms       ALGORITHMS and OPTIMIZERS: TFF learning processes
  compression      COMPRESSORS: quantised updates and models, bytes counted
  runtime          RUNTIMES: TFF execution contexts, in process, Ray, TFF's own
  training         the round loop, sampling, evaluation, checkpoints, run folder
  personalization  fine-tuning and experts of single clients
  sweeps           many runs from one description
  reporting        tables, figures and pages from run folders
  preparation      client data from dumps and tables
  help_texts       what --help says about the flags of an experiment
  flags            absl flags to ExperimentConfig
2 weights          weights in files: checkpoints, Keras files, adapters
  diagnostics      DIAGNOSTICS: measurements of a model while it trains
  assembly         from names to parts; its README.md draws the flow
  pretraining      central training to start a federated run from
3 experiment       build and run: one page from configuration to results
  inference        trained models: next words, export
"""

from __future__ import annotations

import atexit
import importlib
import sys
from typing import Any

# Former places of modules that users import.
_MOVED = {
  'adapter_files': 'si_federated.weights.adapter_files',
  'trained_model': 'si_federated.inference.trained_model',
}


@atexit.register
def _drop_tff_context() -> None:
  """Drops TFF's default context while the modules that it needs still exist.

  Importing TFF creates it with a `ServiceManager`, whose destructor prints a
  traceback if Python has already cleared the module `subprocess` for it. This
  is the one module that every program imports, whichever room it uses.
  """
  if 'tensorflow_federated' in sys.modules:
    from tensorflow_federated.python.core.impl.context_stack import (
      context_stack_impl,
      runtime_error_context,
    )

    context_stack_impl.context_stack.set_default_context(
      runtime_error_context.RuntimeErrorContext()
    )


def __getattr__(name: str) -> Any:
  if name in _MOVED:
    return importlib.import_module(_MOVED[name])
  # Read on request: metadata are slow, and a plain checkout has none.
  if name == '__version__':
    from importlib import metadata

    try:
      return metadata.version('si_federated')
    except metadata.PackageNotFoundError:
      return '0.0.0'
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
