# make demo     a trained network made better on the embedded data, with a report, in runs/demo
# make test     the tests (make test-slow: those that need a browser, several processes or minutes)
# Both first make the environment .venv/ with pinned dependencies, once.

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
EXTRAS := timm,search,attack,export,tensorboard,bench,dev
OUT    ?= runs/demo
RUNS   ?= runs/ledger
THREADS ?= 1

python := $(VENV)/bin/python
stamp  := $(VENV)/.installed
pip    := $(python) -m pip install --quiet --disable-pip-version-check -c constraints-cpu.txt

# PyTorch's plain Linux wheels bring gigabytes of CUDA libraries; without an NVIDIA driver its own CPU index is better,
# if it can be reached.
cpu_index := https://download.pytorch.org/whl/cpu
find_cpu_index = if [ "$$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && [ ! -e /dev/nvidiactl ] \
	&& $(python) -c "import urllib.request as u; u.urlopen('$(cpu_index)/torch/', timeout=3)" 2>/dev/null; \
	then echo "--extra-index-url $(cpu_index)"; fi

.PHONY: demo install test test-slow lint bench ledger ledger-gradnet ledger-training ledger-growth docs

demo: $(stamp)
	$(python) -m postgrad.cli improve --out $(OUT)

install: $(stamp)

$(stamp): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "postgrad needs Python 3.11 or newer, but '$(PYTHON)' is not; install one, or name it: make install PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(python) || $(PYTHON) -m venv $(VENV) || { echo \
	  "'$(PYTHON)' cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing postgrad and its pinned dependencies into $(VENV) (some minutes the first time)"
	@index=$$($(find_cpu_index)); $(pip) $$index -e '.[$(EXTRAS)]'
	@touch $@

test: $(stamp)
	$(python) -m pytest -q -n 2 --dist loadfile

test-slow: $(stamp)
	$(python) -m pytest -q -m slow

lint: $(stamp)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

bench: $(stamp)
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(python) $$file; done

# Each recipe of a folder, its run and its ledger page named after it behind a prefix; one that was begun goes on.
studies = for recipe in $(1)/*.yaml; do name=$(2)$$(basename $$recipe .yaml); out=$(RUNS)/$$name; \
	if [ -e $$out/config.yaml ]; then how="--resume $$out"; else how="$$recipe --out $$out"; fi; \
	$(python) -m postgrad.cli study $$how --ledger docs/ledger/$$name || [ $$? = 1 ] || exit; done

# The runs behind the published tables: hours to a day. Each target goes on where it was interrupted.
ledger: ledger-gradnet ledger-training ledger-growth

ledger-gradnet: $(stamp)
	$(python) -m postgrad.studies.ledger docs/ledger/gradnet.yaml --runs $(RUNS) --run --threads $(THREADS)

ledger-training: $(stamp)
	test -e runs/mnist/manifest.json || $(python) -m postgrad.cli train --model seed-cnn --data mnist --limit 10000 --epochs 3 --out runs/mnist
	test -e runs/notmnist.npz || $(python) recipes/training/letters.py
	$(call studies,recipes/training,)

ledger-growth: $(stamp)
	$(call studies,recipes/growth,growth-)

docs: $(stamp)
	@$(pip) -e '.[docs]'
	$(python) -m mkdocs build --strict
