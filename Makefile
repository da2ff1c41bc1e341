# Every target works in a fresh checkout: it builds .venv first if needed.
# PYTHON=... names the Python 3.11 to build it with.

VENV_PYTHON := .venv/bin/python
TEST_WORKERS ?= 2
PYTEST := $(VENV_PYTHON) -m pytest -n $(TEST_WORKERS) --dist loadfile --durations=20
DEMO := runs/demo

# `make reproduce` runs the study: SCALE=laptop by default, SCALE=smoke to check
# that it works, SCALE=comments for thousands of rounds on the corpus of
# `make corpus` (a day; MODELS, AGGREGATORS, RATES and SEEDS choose rows of it),
# SCALE=paper for Stack Overflow on a larger machine (with
# SWEEP_FLAGS=--data_dir=FOLDER).
SCALE ?= laptop
TASK.smoke := synthetic
TASK.laptop := docstrings
TASK.comments := comments
TASK.paper := stackoverflow
MODELS ?= cifg si_cifg transformer si_transformer
AGGREGATORS ?= mean blt
RATES.smoke := 1
RATES.laptop := 0.1,0.3,1,3
RATES.comments := 0.1,0.3,1,3
RATES.paper := 0.1,0.3,1,3
SEEDS.smoke := 2
SEEDS.laptop := 3
SEEDS.comments := 3
SEEDS.paper := 3
RATES ?= $(RATES.$(SCALE))
SEEDS ?= $(SEEDS.$(SCALE))
STUDY := runs/reproduce
RECIPES := $(foreach model,$(MODELS),$(foreach aggregator,$(AGGREGATORS),\
  --recipes=experiments/configs/$(TASK.$(SCALE)).$(model).$(aggregator).flags))

# Quiet TensorFlow; each test worker uses about one core.
export TF_CPP_MIN_LOG_LEVEL ?= 3
test test-slow test-tensorflow coverage soak: export TF_NUM_INTRAOP_THREADS ?= 1
test test-slow test-tensorflow coverage soak: export TF_NUM_INTEROP_THREADS ?= 2
test test-slow test-tensorflow coverage soak: export OMP_NUM_THREADS ?= 1
test test-slow test-tensorflow coverage soak: export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo reproduce corpus test test-slow test-tensorflow \
  test-tensorflow-oldest test-tensorflow-newest soak coverage bench \
  bench-peers accelerator lint format lock environment clean

help:
	@echo 'make demo       train CIFG and SI-CIFG on real text, then a report'
	@echo 'make reproduce  measure four models with and without privacy, over rates'
	@echo '                and seeds (hours; SCALE=smoke takes minutes), then report'
	@echo 'make corpus     client data of the comments in Linux, in data/comments'
	@echo '                (CORPUS=FOLDER; needs apt, 2 GB for a while, 15 minutes)'
	@echo 'make test       run the tests'
	@echo 'make test-slow  run the tests that take minutes each'
	@echo 'make test-tensorflow  run what needs no TFF with the oldest and the'
	@echo '                newest TensorFlow (TENSORFLOWS=newest: with that one)'
	@echo 'make soak       kill runs at a hundred random moments (90 minutes), and'
	@echo '                compare their end with that of an unkilled run'
	@echo 'make coverage   run both and report the lines that they cover'
	@echo 'make bench      measure speed and memory (make bench-peers first, to'
	@echo '                compare with FedJAX and pfl-research as well)'
	@echo 'make accelerator  the newest JAX for a GPU or TPU, in .venv-jax'
	@echo '                (PLUGIN=cuda12, cuda13 or tpu)'
	@echo 'make lint       check style, format and types'
	@echo 'make format     format the code'
	@echo 'make lock       resolve requirements.lock again (needs uv)'
	@echo 'make clean      remove .venv and caches; runs/ stays'

demo: environment
	$(VENV_PYTHON) -m experiments.train \
	  --flagfile=experiments/configs/docstrings.cifg.mean.flags \
	  --root_output_dir=$(DEMO) --experiment_name=cifg
	$(VENV_PYTHON) -m experiments.train \
	  --flagfile=experiments/configs/docstrings.si_cifg.mean.flags \
	  --root_output_dir=$(DEMO) --experiment_name=si_cifg
	@echo 'Next words, as SI-CIFG suggests them:'
	@$(VENV_PYTHON) -m experiments.predict --run=$(DEMO)/si_cifg \
	  --text='returns the number of' --text='if the file does not'
	$(VENV_PYTHON) -m experiments.report --runs=$(DEMO) \
	  --output=$(DEMO)/report --title='CIFG and SI-CIFG on docstrings'
	@echo 'The report is $(DEMO)/report/report.html'

# The same command resumes an interrupted study. Failed runs don't prevent the
# report of the others.
reproduce: environment
	$(VENV_PYTHON) -m experiments.sweep --experiment_name=$(SCALE) \
	  --root_output_dir=$(STUDY) $(RECIPES) --seeds=$(SEEDS) \
	  --grid=client_learning_rate=$(RATES) $(SWEEP_FLAGS); \
	status=$$?; [ $$status -le 1 ] || exit $$status; \
	$(VENV_PYTHON) -m experiments.report --runs=$(STUDY)/$(SCALE) \
	  --output=$(STUDY)/$(SCALE)/report \
	  --title='Scale-invariant and standard models' && exit $$status

# The recipes of `comments` expect it there.
CORPUS ?= data/comments
CORPUS_PACKAGE ?= linux-source-6.1
corpus: environment
	@.ci/make_corpus $(CORPUS) $(CORPUS_PACKAGE)

test: environment
	$(PYTEST) -m 'not slow'

test-slow: environment
	$(PYTEST) -m slow

# Layers, models and privacy. The oldest TensorFlow is that of .venv; the newest
# is tried with Keras 2 and 3, without TFF, in the versions of the file of constraints, or with
# TENSORFLOW_PIP_FLAGS=--upgrade in the newest that there are.
TENSORFLOWS ?= oldest newest
TENSORFLOW_TESTS := -m 'not slow' tests/layers tests/models tests/privacy
TENSORFLOW_PIP_FLAGS ?= --constraint tests/requirements.tensorflow.txt
test-tensorflow: $(TENSORFLOWS:%=test-tensorflow-%)

test-tensorflow-oldest: environment
	$(PYTEST) $(TENSORFLOW_TESTS)

test-tensorflow-newest: .venv-tensorflow/.complete
	$(subst $(VENV_PYTHON),.venv-tensorflow/bin/python,$(PYTEST)) \
	  $(TENSORFLOW_TESTS)
	TF_USE_LEGACY_KERAS=0 \
	$(subst $(VENV_PYTHON),.venv-tensorflow/bin/python,$(PYTEST)) \
	  -m 'not slow' tests/layers

.venv-tensorflow/.complete: tests/requirements.tensorflow.txt setup.cfg
	@$(MAKE) --no-print-directory environment
	$(VENV_PYTHON) -m venv --clear .venv-tensorflow
	.venv-tensorflow/bin/python -m pip install --quiet --only-binary :all: \
	  $(TENSORFLOW_PIP_FLAGS) --editable . \
	  hypothesis pytest pytest-timeout pytest-xdist
	touch $@

# ROUNDS and KILLS are of each of its two recipes.
ROUNDS ?= 200
KILLS ?= 100
soak: environment
	$(VENV_PYTHON) -m tests.soak --rounds=$(ROUNDS) --kills=$(KILLS)

# Python processes started by the tests are measured as well.
coverage: environment
	$(VENV_PYTHON) -m coverage erase
	$(VENV_PYTHON) -m coverage run -m pytest -n $(TEST_WORKERS) --dist loadfile
	$(VENV_PYTHON) -m coverage combine --quiet
	$(VENV_PYTHON) -m coverage report $(COVERAGE_FLAGS)

bench: environment
	$(VENV_PYTHON) -m experiments.benchmark $(BENCH_FLAGS)

# The libraries compared with pin other versions of our packages, so each gets
# an environment of its own. PyTorch's CPU build is intended: where pip finds
# another build first, PEER_PIP_FLAGS can name an index that has it.
bench-peers: environment .venv-fedjax/.complete .venv-pfl/.complete

.venv-%/.complete: experiments/peers/requirements.%.txt
	$(VENV_PYTHON) -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-deps \
	  --only-binary :all: $(PEER_PIP_FLAGS) -r $<
	touch $@

# The process that owns the device needs JAX and NumPy alone, in any version.
PLUGIN ?= cuda12
accelerator: environment
	$(VENV_PYTHON) -m venv --clear .venv-jax
	.venv-jax/bin/python -m pip install --quiet --upgrade 'jax[$(PLUGIN)]'
	@.venv-jax/bin/python -c 'import jax; print(jax.__version__, jax.devices())'
	@echo 'Now: python -m experiments.train \'
	@echo '  --runtime=jax:python=.venv-jax/bin/python ...'

lint: environment
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: environment
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

# Keeps locked versions where possible; LOCK_FLAGS=--upgrade takes the newest,
# LOCK_FLAGS='--upgrade-package NAME' the newest of one package.
lock:
	@command -v uv >/dev/null || { \
	  echo 'make lock needs uv (https://docs.astral.sh/uv).' >&2; exit 2; }
	uv pip compile --quiet setup.cfg --all-extras \
	  --overrides requirements.overrides \
	  --python-version 3.11 --python-platform x86_64-manylinux_2_31 \
	  --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command 'make lock' \
	  --output-file requirements.lock $(LOCK_FLAGS)

environment:
	@.ci/setup_environment

clean:
	rm -rf .venv .venv-fedjax .venv-jax .venv-pfl .venv-tensorflow build dist ./*.egg-info \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
