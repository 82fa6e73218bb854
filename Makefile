# promptgen: what there is to run. Every target installs what it needs into .venv first.
#   make serve    the service on 127.0.0.1:5005 (PROMPTGEN_PORT and other PROMPTGEN_* settings apply)
#   make test     the whole test suite
#   make check    ruff, mypy --strict, import contract, corpus tables
#   make bench    latency figures, kept in bench/results/
#   make model    vocabulary, data and model anew from data/, then its figures
#   make soak-train   kills a small training 200 times; fits 200 MB in flat memory
#   make soak-engine  ten thousand requests with cancellations; nothing is left over
#   make fuzz     every random test with many more cases, and the API fuzzed from its own description (half an hour)
#   make soak     the service under overload, vanishing callers, drains, streams and half an hour of everything (an hour)
#   make peers    environments of the engines that `python -m bench.peers` compares with
#   make clients  real clients of the OpenAI API, each in an environment of its own, into docs/clients.md
#   make install  .venv with everything the other targets need
#   make clean    removes .venv and everything built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORPUS := build/corpus
PREPARED := build/prepared
MODEL := model/final_model

.PHONY: serve test check bench model soak-train soak-engine fuzz soak peers clients install clean
.DELETE_ON_ERROR:

# Serving needs the package alone; the other targets need the extras. A changed setup.cfg installs anew.
$(VENV)/.serve: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("promptgen needs Python 3.11 or newer; name one: make PYTHON=python3.12 ... This is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { echo "no venv: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

# A few seconds of compiling and measuring now, so that the first start is fast at once. A machine without a compiler gets one into .venv
# (ziglang, a wheel of 100 MB, and one to three minutes); where that cannot be had either, torch does it all.
$(VENV)/.kernels: $(VENV)/.serve promptgen/generation/native/kernels.cpp
	command -v c++ >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[compiler]' || true
	$(BIN)/python -m promptgen.generation.upgrade
	touch $@

$(VENV)/.all: $(VENV)/.serve $(VENV)/.kernels
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,train,bench]'
	touch $@

install: $(VENV)/.all

serve: $(VENV)/.serve $(VENV)/.kernels
	exec $(BIN)/python web.py

# Two files at a time, the long ones of tests/service before the many short ones of tests/unit. One thread of torch for each: more would wait
# for one another while the other file's have the cores.
test: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/promptgen expand data --check

bench: $(VENV)/.all
	$(BIN)/python -m bench.latency --save

model: $(VENV)/.all
	$(BIN)/promptgen expand data --out $(CORPUS)
	$(BIN)/promptgen vocab $(CORPUS) --out vocab --size 10000
	$(BIN)/promptgen prepare $(CORPUS)/prompts.train.txt $(CORPUS)/dialogues.train.txt \
	  --valid-corpus $(CORPUS)/prompts.valid.txt $(CORPUS)/dialogues.valid.txt --vocab vocab --out $(PREPARED)
	$(BIN)/promptgen train $(PREPARED) --out $(MODEL) --shape 4x256x4 --budget 57m --resume $$(ls -d $(MODEL)/checkpoints/step-* >/dev/null 2>&1 && echo auto || echo never)

soak-engine: $(VENV)/.all
	$(BIN)/python tests/soak/engine_requests.py

fuzz: $(VENV)/.all
	HEAVY=1 $(BIN)/python -m pytest -m "hypothesis or heavy" -o timeout=3600
	$(BIN)/python tests/soak/fuzz_api.py --examples 1000

# nginx stands in front of the service in tests/service/test_deploy.py.
soak: $(VENV)/.all
	test -x /usr/sbin/nginx || apt-get install --yes nginx-light
	$(BIN)/python -m pytest tests/service/test_deploy.py
	$(BIN)/python tests/soak/overload.py
	$(BIN)/python tests/soak/loop_lag.py
	$(BIN)/python tests/soak/disconnects.py
	$(BIN)/python tests/soak/drains.py
	$(BIN)/python tests/soak/mixed_load.py

peers: $(VENV)/.all
	$(BIN)/python -m bench.peers --install

clients: $(VENV)/.all
	$(BIN)/python -m tests.clients.run --write

soak-train: $(VENV)/.all
	$(BIN)/python tests/soak/kill_training.py --runs 200
	$(BIN)/python tests/soak/large_corpus.py --megabytes 200

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
