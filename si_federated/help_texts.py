"""What `--help` says about the flags of an experiment."""

from __future__ import annotations

# By fields of `config.ExperimentConfig`.
HELP = {
  'experiment_name': 'The name of this run and of its folder. The same name '
  'and flags again resume it.',
  'task': 'The text to learn from: docstrings (real English from the '
  "installed Python packages, no download), stackoverflow (TFF's dataset, or "
  'any file of its format), shakespeare (speeches, by characters) or '
  'synthetic.',
  'data_dir': "The folder of the task's data: stackoverflow.sqlite for "
  'stackoverflow; speeches.jsonl, speeches.jsonl.xz or shakespeare.sqlite for '
  'shakespeare; where to keep the prepared text for docstrings. Not needed by '
  'default.',
  'vocabulary': 'The tokens: words (characters for shakespeare); '
  'sentencepiece, subwords learned from the training clients, as in '
  'sentencepiece:size=4096; or pretrained, the tokens of a pretrained BERT.',
  'model': 'The language model: lstm, gru, cifg, transformer or conformer, or '
  'one of these prefixed by si_ (train --help_models lists all).',
  'transform': 'A change to the model before training: none, lora, ffa_lora, '
  'or freeze, which neither trains nor sends variables whose names match a '
  'regular expression, as in freeze:variables=embedding|block_1/.',
  'initial_model': 'Start from a trained model: the folder of a run of train '
  'or pretrain (its newest checkpoint), one of its checkpoints, a file or '
  'folder that Keras wrote (.h5, .weights.h5, .keras, a SavedModel, a '
  'TensorFlow checkpoint), or an .npz file keyed by names of variables.',
  'reinitialized_variables': 'A regular expression: variables whose names '
  'contain a match start at random values instead of those of '
  '--initial_model.',
  'algorithm': 'The federated learning algorithm: fed_avg, fed_prox, fed_sgd, '
  'mime_lite; partial_training, in which each client trains part of the '
  'model, as in partial_training:fraction=0.4; or expert_personalization, '
  'federated averaging followed by experts that clients train for themselves.',
  'aggregator': "How the server combines the clients' updates: mean, or "
  'privately: gaussian, adaptive_gaussian, scaled_gaussian, tree, banded, '
  'banded_inverse, blt, dense or distributed_dp.',
  'compression': 'How updates and models are compressed: none; '
  'upload=uniform:bits=8, download=uniform:bits=16, or both separated by a '
  'comma; or ternary. Each takes the option rotation=hadamard.',
  'runtime': 'Where clients are simulated: local (in this process, on all '
  'processors), jax (many clients as one program, on a GPU or TPU), ray (on a '
  "cluster) or tff (TFF's own worker process).",
  'precision': 'The precision of the model: float32, or bfloat16 with float32 '
  'weights, losses and updates (faster if the processor has bfloat16 products, '
  'slower if not).',
  'client_optimizer': 'The optimizer on the clients, usually sgd.',
  'client_learning_rate': 'The learning rate of --client_optimizer.',
  'server_optimizer': 'The optimizer that applies the mean update: sgd, sgdm, '
  'adam, adamw, yogi or adagrad.',
  'server_learning_rate': 'The learning rate of --server_optimizer.',
  'server_learning_rate_schedule': 'How --server_learning_rate changes over '
  'rounds: constant, linear, cosine, exponential or cool_down, each with '
  'options such as warmup_rounds=50.',
  'server_momentum': 'The momentum of --server_optimizer=sgdm.',
  'clients_per_round': 'The cohort: how many clients train in a round.',
  'total_rounds': 'The number of rounds.',
  'client_epochs_per_round': 'The epochs that a client trains on its text in a '
  'round.',
  'client_batch_size': "The number of sentences in a client's step.",
  'max_elements_per_client': 'The most sentences a client uses in a round.',
  'sequence_length': 'Sentences are truncated to this many words or subwords; '
  'speeches of shakespeare are split into windows of this many characters, 80 '
  'by default.',
  'vocab_size': 'The number of words, the most frequent of the training '
  'clients, in the vocabulary (--vocabulary=sentencepiece has its own size).',
  'num_validation_examples': "The number of the held-out clients' sentences to "
  'evaluate on.',
  'rounds_per_eval': 'Rounds between evaluations.',
  'rounds_per_checkpoint': 'Rounds between checkpoints.',
  'stop_when_diverged': 'Whether to end the run, with an evaluation, a '
  'checkpoint and an error, after the first round whose weights or evaluation '
  'are not finite. May be changed when resuming.',
  'personalize_epochs': 'After the last round, validation clients fine-tune '
  'the model on half of their text for this many epochs and evaluate it on the '
  'other half. 0 disables it. This flag and the next two can be changed for a '
  'finished run.',
  'personalize_clients': 'The number of validation clients that fine-tune.',
  'personalize_learning_rate': 'The learning rate of their SGD; '
  '--client_learning_rate by default.',
  'participation': 'Which clients take part in a round: uniform, '
  'shuffled_epochs, fixed_cycles, min_separation (random check-in with a timer '
  'of --min_separation rounds), poisson (poisson:max_cohort_size=N truncates '
  'larger cohorts), cyclic_poisson, balls_in_bins (fixed cycles; each client '
  'draws its group) or b_min_sep (poisson, at least --min_separation rounds '
  'apart).',
  'clip_norm': "The largest L2 norm of a client's update; private aggregators "
  'scale longer ones down.',
  'clip_norm_from': 'Instead of --clip_norm, the folder of a finished run of '
  'adaptive_gaussian on the same clients: takes its last clip norm, and '
  'includes the privacy cost of that run.',
  'noise_multiplier': 'The standard deviation of the noise on the sum of '
  'updates, relative to --clip_norm; 0 for clipping alone.',
  'target_epsilon': 'Instead of --noise_multiplier: take the least noise that '
  'achieves this epsilon.',
  'delta': 'The delta of (epsilon, delta) differential privacy; by default the '
  'number of training clients to the power of -1.1.',
  'min_separation': 'The least number of rounds between two participations of '
  'a client (1 is the next round), which privacy assumes. By default that of '
  '--participation.',
  'max_participations': 'The most rounds in which a client takes part, which '
  'privacy assumes. By default that of --participation.',
  'noise_cohort_size': 'Simulate the noise of a cohort of this size: privacy '
  'is then reported for such a cohort, as simulated.',
  'noise_seed': 'Seed of the noise, for reproducible simulations; by default '
  'it is random and secret, as privacy requires.',
  'model_seed': 'Seed of the initial weights.',
  'client_seed': "Seed of the cohorts and of the order of clients' sentences.",
  'client_similarity': "The fraction of each training client's sentences that "
  'is replaced by sentences of all training clients: 0 keeps the clients, 1 '
  'makes them differ only in size. Privacy is then that of the mixed clients.',
  'diagnostics': 'Measure norms, learning rates, gates, attention and clients '
  'by layer, for diagnostics.csv and the report: at evaluations (the flag '
  'without a value) or, for example, rounds:every=10; none by default.',
}
