# Everything runs in .venv; the stamp file says that it holds what the lock says.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# A file runs in one process, as tests that share a fixture need it.
SIDE_BY_SIDE := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
export DSS_MNIST_DIR
# Some container images set it: assertions would be off, and with them checks and tests.
unexport PYTHONOPTIMIZE

.PHONY: env figures test check lint torture lab site pdf classroom bench clean

env: $(STAMP)

# uv installs in seconds; where it cannot be had, pip does the same in minutes.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	if $(BIN)/python -m pip install --quiet uv; then \
		$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock; \
	else \
		$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	fi
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

figures: env
	$(BIN)/dss data
	$(BIN)/dss reproduce --size quick

# Everything.  Notebooks that run under nbval write to build/, not over the committed figures, and
# start without the user's IPython files.
test: env lint
	$(BIN)/dss data
	DSS_OUT=$(CURDIR)/build/nbval IPYTHONDIR=$(CURDIR)/build/ipython $(SIDE_BY_SIDE) --nbval-lax --nbval-current-env \
		--nbval-cell-timeout=300 tests notebooks

# Between two edits: style, import rules and the tests of the library; the course has its own.
check: env lint
	$(BIN)/dss data
	$(SIDE_BY_SIDE) -m "not slow" --ignore-glob='tests/test_classroom*' tests

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Kills processes at random moments for a quarter of an hour, and looks at what comes out.
torture: env
	$(BIN)/python tests/torture.py

lab: env
	$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks

# The read-along page from the committed notebooks, without running them: build/site/index.html
site: env
	$(BIN)/python -m sphinx -W --keep-going -q -b html notebooks build/site
	@echo "open build/site/index.html"

# All pages of the site bound in one, where a Chromium is at hand to print it.
pdf: site
	$(BIN)/python notebooks/pdf.py build/site build/pdf/dss-companion.pdf

bench: env
	$(BIN)/python tests/benchmarks/bench.py

# Releases the assignments, grades the bundled sample submissions, and checks what each loses.
classroom: env
	$(BIN)/python notebooks/assignments/classroom.py demonstrate build/classroom

clean:
	rm -rf .venv build runs .pytest_cache .ruff_cache .hypothesis *.egg-info
