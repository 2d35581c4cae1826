PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-lf094
VLLM := .venv-vllm
TRL := .venv-trl
HEAD := .venv-head
# Pythons beside 3.11 that `make test-worlds` tries where they are to be had; names or paths.
PYTHONS := python3.12 python3.13
FIND_LINKS := $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
UPSTREAM := $(patsubst %,.upstream/llamafactory-%.unpacked,0.9.4 0.9.5)
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode
# By file, in the order of their names: the files of few and long tests lie in the middle and leave no worker idle.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
SLOW := e2e demo engine/test_ray.py settings/test_newcomer.py report/test_browser.py grpo inference llamafactory models/rewards models/test_every_checkpoint.py online ppo trl vlmeval shared_prefix/test_forward.py shared_prefix/test_sharded.py
# All but trl, which no environment holds together with LlamaFactory.
EXTRAS := $(addprefix --extra ,train eval engine math dev)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup upstream oldest vllm trl head wheel demo test test-quick test-vllm test-trl test-head test-python test-worlds fuzz nightly check lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements/main.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(INSTALL) --python $(BIN)/python -r requirements/main.lock
	$(INSTALL) --python $(BIN)/python --no-deps -e .
	touch $@

# Source trees of LlamaFactory, for the tests of the overlay.
upstream: $(UPSTREAM)

.upstream/llamafactory-%.unpacked: | setup
	mkdir -p .upstream
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llamafactory --dest .upstream llamafactory==$*
	tar -xzf .upstream/llamafactory-$*.tar.gz -C .upstream
	touch $@

# What the oldest supported LlamaFactory needs, and nothing of ours.
oldest: $(OLDEST)/.installed

$(OLDEST)/.installed: requirements/lf094.lock | setup
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv --without-pip $(OLDEST)
	$(INSTALL) --python $(OLDEST)/bin/python -r requirements/lf094.lock
	touch $@

# vLLM on a CPU needs a CPU build of torch, from where pip is told to look for it (find-links); see docs/evaluate.md.
vllm: $(VLLM)/.installed

$(VLLM)/.installed: requirements/vllm.lock | setup
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv --without-pip $(VLLM)
	$(INSTALL) --no-deps $(addprefix --find-links ,$(FIND_LINKS)) --python $(VLLM)/bin/python -r requirements/vllm.lock
	info=$$($(VLLM)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0.dist-info; \
	mkdir -p $$info; printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$info/METADATA
	touch $@

# TRL 1.x and the newest transformers, without LlamaFactory.
trl: $(TRL)/.installed

$(TRL)/.installed: requirements/trl.lock pyproject.toml | setup
	test -x $(TRL)/bin/python || $(PYTHON) -m venv --without-pip $(TRL)
	$(INSTALL) --python $(TRL)/bin/python -r requirements/trl.lock
	$(INSTALL) --python $(TRL)/bin/python --no-deps -e .
	touch $@

# What LlamaFactory's main branch takes at most, around the newest release of LlamaFactory.
head: $(HEAD)/.installed

$(HEAD)/.installed: requirements/head.lock pyproject.toml | setup
	test -x $(HEAD)/bin/python || $(PYTHON) -m venv --without-pip $(HEAD)
	$(INSTALL) --no-deps --python $(HEAD)/bin/python -r requirements/head.lock
	$(INSTALL) --python $(HEAD)/bin/python --no-deps -e .
	touch $@

# The package as users install it, for the test that installs it into an empty environment.
wheel: setup
	rm -rf dist && $(BIN)/uv build --quiet --wheel --out-dir dist

demo: setup
	$(BIN)/uni-dpo demo outputs/demo
	$(BIN)/uni-dpo align examples/align/digits.yaml

test: setup upstream oldest wheel
	UNI_DPO_REQUIRE_UPSTREAM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

# The loop of daily work: everything that starts no training and no other process.
test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PARALLEL) -m "not slow" $(addprefix --ignore=tests/,$(SLOW))

test-vllm: vllm
	PYTHONPATH=tests/vllm_cpu:src VLLM_CPU_KVCACHE_SPACE=1 TORCH_COMPILE_DISABLE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
	$(VLLM)/bin/python -m pytest tests/vlmeval/test_vllm.py tests/models/backends/test_vllm.py

test-trl: trl
	OMP_NUM_THREADS=1 $(TRL)/bin/python -m pytest $(PARALLEL) tests/trl tests/grpo \
	tests/shared_prefix/test_linear_attention.py
	OMP_NUM_THREADS=1 $(TRL)/bin/python -m pytest -k minicpm tests/shared_prefix tests/ppo/test_policy.py \
	tests/models/backends/test_transformers.py

# With UNI_DPO_LLAMAFACTORY=CHECKOUT also that checkout, with the overlay in it; with UNI_DPO_VLMEVALKIT=CHECKOUT that one.
test-head: head
	DISABLE_VERSION_CHECK=1 OMP_NUM_THREADS=1 $(HEAD)/bin/python -m pytest $(PARALLEL) tests/llamafactory \
	tests/shared_prefix tests/models tests/vlmeval tests/e2e/test_eval_cli.py tests/benchmarks/test_count_families.py

# What starts no other process, by another Python: make test-python VENV=.venv-py313 PYTHON=python3.13
test-python: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(addprefix --ignore=tests/,$(SLOW))
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/llamafactory/test_trainer.py tests/trl/test_trainer.py

# Every world that is not the one of `make test`; docs/install.md says what is in each.
test-worlds: setup upstream oldest
	$(MAKE) test-trl
	$(MAKE) test-head
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/e2e/test_overlay_checkouts.py
	if $(MAKE) vllm; then $(MAKE) test-vllm; else echo "SKIPPED vLLM: its environment cannot be built here"; fi
	for python in $(PYTHONS); do \
	if name=$$($$python -c 'import sys; print("py%d%d" % sys.version_info[:2])' 2>/dev/null); then \
	$(MAKE) test-python PYTHON=$$python VENV=.venv-$$name || exit 1; \
	else echo "SKIPPED $$python: not installed"; fi; done

# Broken inputs by the ten thousand; each line that a fuzzer ends with names its seed and counts.
fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/files.py --count 7000
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/configs.py --count 2000
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/replies.py --count 1000

# What takes too long for every change: the first commands of README.md and of every page, as written, all fuzzers, the
# tests that are marked so, and twenty kills of one run of align.
nightly: setup upstream oldest fuzz
	$(BIN)/python tests/pages/first_commands.py
	UNI_DPO_NIGHTLY=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly
	UNI_DPO_KILLS=20 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/e2e/test_align_cli.py -k killed_at_random

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: setup
	$(BIN)/uv pip compile --quiet --python-version 3.11 $(EXTRAS) pyproject.toml -c requirements/constraints.txt \
	-c requirements/constraints-main.txt -o requirements/main.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 $(EXTRAS) pyproject.toml requirements/head.in -c requirements/constraints.txt \
	--override requirements/overrides-head.txt -o requirements/head.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 requirements/lf094.in -o requirements/lf094.lock
	$(BIN)/uv pip compile --quiet --python-version 3.11 requirements/trl.in -o requirements/trl.lock
	$(BIN)/uv pip compile --quiet --no-header --python-version 3.11 $(addprefix --find-links ,$(FIND_LINKS)) \
	--override requirements/overrides-vllm.txt requirements/vllm.in -o requirements/vllm.lock

clean:
	rm -rf $(VENV) $(OLDEST) $(VLLM) $(TRL) $(HEAD) .upstream build dist
