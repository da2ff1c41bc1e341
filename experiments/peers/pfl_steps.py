"""Child process under pfl-research's Python: rounds of its FedAvg on PyTorch.

With several processes, this one starts the others, and all take part in each
round, as in pfl's own simulations.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List

import numpy as np
import pfl
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDatasetBase
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops.selector import get_default_framework_module
from pfl.model.pytorch import PyTorchModel

from experiments.benchmarking import protocol, workload


class LSTM(torch.nn.Module):
  """TFF's Stack Overflow baseline in PyTorch, with pfl's `loss`."""

  def __init__(self, settings: workload.Settings):
    """Builds the layers."""
    super().__init__()
    size, units = settings.embedding_size, settings.units
    self.embedding = torch.nn.Embedding(settings.vocab_size, size)
    self.lstm = torch.nn.LSTM(size, units, batch_first=True)
    # PyTorch has two biases where Keras has one: the second stays at zero.
    self.lstm.bias_hh_l0.requires_grad_(False)
    self.projection = torch.nn.Linear(units, size)
    self.logits = torch.nn.Linear(size, settings.vocab_size)

  def forward(self, ids: torch.Tensor) -> torch.Tensor:
    """Returns logits `[B, T, V]` of ids `[B, T]`."""
    return self.logits(self.projection(self.lstm(self.embedding(ids))[0]))

  def loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of the labels that are not padding."""
    self.train()
    return torch.nn.functional.cross_entropy(
      self(ids).flatten(0, 1), labels.flatten(), ignore_index=0
    )

  def metrics(self, ids: torch.Tensor, labels: torch.Tensor) -> Dict[str, Any]:
    """Returns no metrics; pfl requires the method."""
    return {}

  def keras_order(self) -> List[torch.Tensor]:
    """Returns the parameters in the order of `workload.save_weights`."""
    return [
      self.embedding.weight,
      self.lstm.weight_ih_l0,
      self.lstm.weight_hh_l0,
      self.lstm.bias_ih_l0,
      self.projection.weight,
      self.projection.bias,
      self.logits.weight,
      self.logits.bias,
    ]

  def set_weights(self, weights: List[np.ndarray]) -> None:
    """Takes Keras's weights; the gates' order is the same."""
    with torch.no_grad():
      self.lstm.bias_hh_l0.zero_()
      for index, parameter in enumerate(self.keras_order()):
        value = torch.from_numpy(weights[index])
        if value.ndim == 2 and index:
          value = value.T
        parameter.copy_(value)

  def weights(self) -> List[np.ndarray]:
    """Returns Keras's weights."""
    arrays = [p.detach().numpy().copy() for p in self.keras_order()]
    return [
      array.T.copy() if array.ndim == 2 and index else array
      for index, array in enumerate(arrays)
    ]


class Cohort(FederatedDatasetBase):
  """A fixed cohort, distributed over the processes.

  Each client, the largest first, goes to the least loaded process, as in pfl's
  `FederatedDataset` with clients' sizes. That class draws its users in another
  process, which would outlive this one.
  """

  def __init__(self, clients: List[np.ndarray]):
    """Assigns the clients."""
    super().__init__()
    distributed = get_default_framework_module().distributed
    loads = [0] * distributed.world_size
    self._mine = []
    for index in sorted(range(len(clients)), key=lambda i: -len(clients[i])):
      rank = loads.index(min(loads))
      loads[rank] += len(clients[index])
      if rank == distributed.global_rank:
        ids = torch.from_numpy(clients[index]).long()
        self._mine.append(
          (ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), str(index))
        )

  def __next__(self) -> Any:
    raise NotImplementedError('Ask for the whole cohort.')

  def get_cohort(self, cohort_size: int) -> Any:
    """Yields this process's users, each with a seed."""
    for ids, labels, name in self._mine:
      yield PyTorchTensorDataset((ids, labels), user_id=name), 0


class Simulation:
  """pfl's FedAvg with plain SGD on the clients and the mean on the server."""

  def __init__(self, settings: workload.Settings):
    """Builds the model and the algorithm."""
    self._settings = settings
    self._module = LSTM(settings)
    self._initial = workload.load_weights(
      workload.weights_file(settings, 'lstm')
    )
    self._module.set_weights(self._initial)
    trained = [p for p in self._module.parameters() if p.requires_grad]
    self._model = PyTorchModel(
      self._module,
      local_optimizer_create=torch.optim.SGD,
      central_optimizer=torch.optim.SGD(trained, lr=1.0),
    )
    self._algorithm = FederatedAveraging()
    self._local = NNTrainHyperParams(
      local_num_epochs=1,
      local_learning_rate=settings.learning_rate,
      local_batch_size=settings.batch_size,
    )
    self._backends: Dict[str, Any] = {}

  def _backend(self, kind: str) -> Any:
    if kind not in self._backends:
      clients = workload.load_cohort(self._settings, kind)
      cohort = Cohort(clients)
      self._backends[kind] = (
        SimulatedBackend(cohort, cohort, postprocessors=[WeightByDatapoints()]),
        len(clients),
      )
    return self._backends[kind]

  def run_round(self, kind: str) -> float:
    """Runs an iteration of `FederatedAlgorithm.run` from the initial weights.

    Args:
      kind: The kind of clients.

    Returns:
      The seconds it took.
    """
    backend, size = self._backend(kind)
    self._module.set_weights(self._initial)
    began = time.perf_counter()
    # Iteration 1, because pfl also evaluates on clients in iteration 0.
    (context,), model, _ = self._algorithm.get_next_central_contexts(
      self._model, 1, NNAlgorithmParams(1000, 1000, size, None), self._local
    )
    statistics, metrics = backend.gather_results(
      model, self._algorithm, central_context=context
    )
    self._algorithm.process_aggregated_statistics(
      context, metrics, model, statistics
    )
    return time.perf_counter() - began

  def weights(self) -> List[np.ndarray]:
    """Returns the server's weights in Keras's order."""
    return self._module.weights()


def _start_others(
  request: Dict[str, Any], processes: int
) -> List[subprocess.Popen]:
  """Starts the other processes of a simulation."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  os.environ['PFL_WORKER_ADDRESSES'] = ','.join(
    f'localhost:{port + rank}' for rank in range(processes)
  )
  others = []
  for rank in range(1, processes):
    other = subprocess.Popen(
      [sys.executable, '-m', 'experiments.peers.pfl_steps'],
      stdin=subprocess.PIPE,
      stdout=2,
      env={**os.environ, 'PFL_WORKER_RANK': str(rank)},
      text=True,
      preexec_fn=protocol.die_with_parent,
    )
    others.append(other)
    assert other.stdin is not None
    print(json.dumps(request), file=other.stdin, flush=True)
  os.environ['PFL_WORKER_RANK'] = '0'
  return others


def start(request: Dict[str, Any]) -> Dict[str, Any]:
  """Builds the simulation and returns the commands; see `protocol.serve`."""
  logging.disable(logging.WARNING)
  settings = workload.Settings.from_json(request)
  processes, threads = request['processes'], request['threads']
  torch.set_num_threads(threads)
  others: List[subprocess.Popen] = []
  if processes > 1 and 'PFL_WORKER_RANK' not in os.environ:
    others = _start_others(request, processes)
  simulation = Simulation(settings)

  def on_all(command: str, **fields: Any) -> None:
    for other in others:
      assert other.stdin is not None
      line = json.dumps({'command': command, **fields})
      print(line, file=other.stdin, flush=True)

  def measure(model: str, kind: str) -> Dict[str, float]:
    on_all('measure', model=model, kind=kind)
    return {'seconds': simulation.run_round(kind)}

  def update(model: str, kind: str, path: str) -> Dict[str, float]:
    answer = measure(model, kind)
    workload.save_weights(path, simulation.weights())
    return answer

  commands: Dict[str, Callable[..., Any]] = {
    'measure': measure,
    'update': update,
  }
  return {
    'about': {
      'pfl': pfl.__version__,
      'torch': torch.__version__,
      'how': f'{processes} x {threads} threads',
    },
    **commands,
  }


if __name__ == '__main__':
  protocol.serve(start)
