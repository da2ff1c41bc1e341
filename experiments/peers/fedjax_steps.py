"""Child process under FedJAX's Python: rounds of its federated averaging."""

from __future__ import annotations

import functools
import importlib.metadata
import time
from typing import Any, Dict, List

import jax
import jax.numpy as jnp
import numpy as np

# FedJAX 0.0.17 uses names that JAX has since dropped.
for _name in ('tree_map', 'tree_leaves'):
  setattr(jax, _name, getattr(jax.tree_util, _name))
vars(jnp).setdefault('NINF', -jnp.inf)

import fedjax  # noqa: E402
from fedjax.algorithms import fed_avg  # noqa: E402
from fedjax.models import stackoverflow  # noqa: E402

from experiments.benchmarking import protocol, workload  # noqa: E402


class _WithoutTanh:
  """`jax.numpy` for FedJAX's model, with tanh as the identity."""

  tanh = staticmethod(lambda x: x)

  def __getattr__(self, name: str) -> Any:
    return getattr(jnp, name)


def build_model(settings: workload.Settings, *, tanh: bool) -> fedjax.Model:
  """Builds FedJAX's own Stack Overflow model.

  Args:
    settings: The sizes.
    tanh: Whether to keep the tanh after the LSTM, which TFF's baseline lacks.

  Returns:
    The model. Its loss is the mean over sentences of the sum over tokens,
    divided by the sequence length: the mean over tokens for full sentences.
  """
  stackoverflow.jnp = jnp if tanh else _WithoutTanh()
  # Haiku looks up `tanh` when it traces the function, so trace it now.
  model = stackoverflow.create_lstm_model(
    settings.num_words,
    settings.embedding_size,
    settings.units,
    expected_length=float(settings.sequence_length),
  )
  jax.eval_shape(model.init, jax.random.PRNGKey(0))
  return model


def _swap_gates(kernel: np.ndarray) -> np.ndarray:
  """Swaps the forget and candidate blocks of the last axis."""
  i, second, third, o = np.split(kernel, 4, axis=-1)
  return np.concatenate([i, third, second, o], axis=-1)


def _forget_bias(units: int) -> np.ndarray:
  # Haiku adds one to the forget gate itself; its blocks are i, g, f, o.
  return np.repeat(np.array([0, 0, 1, 0], np.float32), units)


def to_params(weights: List[np.ndarray]) -> Dict[str, Dict[str, np.ndarray]]:
  """Maps Keras's weights to FedJAX's model."""
  embedding, kernel, recurrent, bias, w1, b1, w2, b2 = weights
  joined = _swap_gates(np.concatenate([kernel, recurrent]))
  return {
    'embed': {'embeddings': embedding},
    'lstm/linear': {
      'w': joined,
      'b': _swap_gates(bias) - _forget_bias(len(bias) // 4),
    },
    'linear': {'w': w1, 'b': b1},
    'linear_1': {'w': w2, 'b': b2},
  }


def from_params(params: Any) -> List[np.ndarray]:
  """Maps the weights of FedJAX's model to Keras's."""
  embedding = np.asarray(params['embed']['embeddings'])
  lstm = params['lstm/linear']
  bias = np.asarray(lstm['b'])
  joined = _swap_gates(np.asarray(lstm['w']))
  kernel, recurrent = np.split(joined, [embedding.shape[1]])
  return [
    embedding,
    kernel,
    recurrent,
    _swap_gates(bias + _forget_bias(len(bias) // 4)),
    *(np.asarray(params[n][k]) for n in ('linear', 'linear_1') for k in 'wb'),
  ]


def start(request: Dict[str, Any]) -> Dict[str, Any]:
  """Builds the algorithm and returns the commands; see `protocol.serve`."""
  settings = workload.Settings.from_json(request)
  initial = jax.device_put(
    to_params(workload.load_weights(workload.weights_file(settings, 'lstm')))
  )

  @functools.cache
  def algorithm(tanh: bool) -> fedjax.FederatedAlgorithm:
    return fed_avg.federated_averaging(
      fedjax.model_grad(build_model(settings, tanh=tanh)),
      fedjax.optimizers.sgd(settings.learning_rate),
      fedjax.optimizers.sgd(1.0),
      fedjax.ShuffleRepeatBatchHParams(
        batch_size=settings.batch_size, num_epochs=1, skip_shuffle=True
      ),
    )

  @functools.cache
  def clients(kind: str) -> List[Any]:
    return [
      (
        str(index),
        fedjax.ClientDataset({'x': client[:, :-1], 'y': client[:, 1:]}),
        jax.random.PRNGKey(index),
      )
      for index, client in enumerate(workload.load_cohort(settings, kind))
    ]

  def run_round(kind: str, *, tanh: bool) -> Any:
    learner = algorithm(tanh)
    state, _ = learner.apply(learner.init(initial), clients(kind))
    return jax.block_until_ready(state.params)

  def measure(model: str, kind: str) -> Dict[str, float]:
    del model
    began = time.perf_counter()
    run_round(kind, tanh=True)
    return {'seconds': time.perf_counter() - began}

  def update(model: str, kind: str, path: str) -> Dict[str, float]:
    workload.save_weights(path, from_params(run_round(kind, tanh=False)))
    return measure(model, kind)

  return {
    'about': {
      'fedjax': importlib.metadata.version('fedjax'),
      'jax': jax.__version__,
      'how': 'one process, XLA on all cores',
    },
    'measure': measure,
    'update': update,
  }


if __name__ == '__main__':
  protocol.serve(start)
