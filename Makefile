# Everything runs in .venv, which `setup` makes. PYTHON names the interpreter to make it with: 3.11, for which
# constraints.txt was tested.
PYTHON ?= $(shell python3.11 -c "print('python3.11')" 2>/dev/null || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-browser check format bench soak fuzz audit clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	# torch first and by itself: pinned, so that nothing pulls in another build of it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup  ## Train and evaluate every stage on synthetic hands; goes on where it stopped.
	$(BIN)/handclip demo --out demo_out --resume

test: setup
	$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

# Reports opened in Chromium. Where there is none, it is installed by who may; for others the tests are skipped.
test-browser: setup
	@if [ -z "$$(which chromium chromium-browser google-chrome 2>/dev/null)" ] \
	    && [ "$$(id -u)" = 0 ] && [ -n "$$(which apt-get)" ]; then \
	  apt-get update -qq \
	    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; \
	fi
	$(BIN)/pytest -rs tests/browser

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Measure everything against its target; the table goes to bench_out/.
	$(BIN)/python benchmarks/run.py --out bench_out

soak: setup  ## Kill every kind of work at many moments, go on, and compare; takes minutes.
	$(BIN)/python reliability/soak.py --out soak_out

# What only fuzzing and auditing need is installed when it is asked for.
fuzz: setup  ## Give the readers 100,000 damaged and hostile inputs each; takes minutes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	$(BIN)/python fuzz/run.py --out fuzz_out

audit: setup  ## Look the pinned versions up in the advisories that PyPI publishes.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[audit]"
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

clean:
	rm -rf .venv demo_out bench_out soak_out fuzz_out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
