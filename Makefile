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

.PHONY: demo install test test-slow lint bench docs
.PHONY: ledger ledger-gradnet ledger-training ledger-growth ledger-distillation ledger-search ledger-jem ledger-mapper

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
	$(python) -m pytest -q -n 2 --dist loadfile -m slow

lint: $(stamp)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

bench: $(stamp)
	set -e; for file in benchmarks/*.py; do echo "== $$file"; $(python) $$file; done

# A study that was begun goes on: (recipe, its name as a run and as a ledger page, options of a new one).
study = recipe=$(1); out=$(RUNS)/$(2); \
	if [ -e $$out/config.yaml ]; then how="--resume $$out $(if $(3),,$$recipe)"; else how="$$recipe --out $$out $(3)"; fi; \
	$(python) -m postgrad.cli study $$how --ledger docs/ledger/$(2) || [ $$? = 1 ] || exit
# Recipes one after the other, each named after its file behind a prefix.
studies = for file in $(1); do name=$(2)$$(basename $$file .yaml); $(call study,$$file,$$name); done
training := $(filter-out recipes/training/powergrad-images.yaml,$(wildcard recipes/training/*.yaml))

# The runs behind the published tables: hours to a day. Each target goes on where it was interrupted.
ledger: ledger-gradnet ledger-training ledger-growth ledger-distillation ledger-search ledger-jem ledger-mapper

ledger-gradnet: $(stamp)
	$(python) -m postgrad.studies.ledger docs/ledger/gradnet.yaml --runs $(RUNS) --run --threads $(THREADS)

ledger-training: $(stamp)
	test -e runs/mnist/manifest.json || $(python) -m postgrad.cli train --model seed-cnn --data mnist --limit 10000 --epochs 3 --out runs/mnist
	test -e runs/notmnist.npz || $(python) recipes/training/letters.py
	$(call studies,$(training),)
	for images in 1000 2500 5000 10000; do \
		$(call study,recipes/training/powergrad-images.yaml,powergrad-$$images-images,--limit $$images); done
	$(python) recipes/training/language_model.py --out docs/ledger/raw/fixed-classifier-language.json

ledger-growth: $(stamp)
	$(call studies,recipes/growth/*.yaml,growth-)

ledger-distillation: $(stamp)
	test -e runs/teacher/manifest.json || $(python) -m postgrad.cli train --model resnet20 --data cifar10 --limit 5000 --epochs 20 --out runs/teacher
	test -e runs/cifar10-transfer.npz || $(python) recipes/distillation/transfer.py
	test -e runs/gradnet-teacher/results.json || $(python) -m postgrad.cli improve --model seed-cnn --data cifar10 --limit 5000 --epochs 15 \
		--method gradnet:epochs=3 --controls control-finetune --out runs/gradnet-teacher
	$(call studies,recipes/distillation/*.yaml,distillation-)

ledger-search: $(stamp)
	for name in mnist cifar10 cifar10-hour; do out=$(RUNS)/search-$$name; \
		if [ -e $$out/config.yaml ]; then how="--resume $$out"; else how="--recipe recipes/search/$$name.yaml --out $$out"; fi; \
		$(python) -m postgrad.cli search $$how --ledger docs/ledger/search-$$name || exit; done

ledger-jem: $(stamp)
	$(call studies,recipes/jem/*.yaml,jem-)
	set -e; for data in mnist cifar10; do features=$(RUNS)/features-$$data; \
		[ -e $$features/manifest.json ] || $(python) -m postgrad.cli train --model seed-cnn --data $$data --limit 20000 --epochs 10 --out $$features; \
		$(python) docs/energy_measures.py $(RUNS)/jem-$$data $$features --json docs/ledger/raw/jem-$$data-measures.json \
			--page docs/ledger/jem-$$data-measures.md --pictures docs/images; done

ledger-mapper: $(stamp)
	$(call studies,recipes/mapper/*.yaml,mapper-)
	$(python) docs/mapper_attacks.py $(RUNS)/mapper-mnist-10k --json docs/ledger/raw/mapper-attacks.json --page docs/ledger/mapper-attacks.md

docs: $(stamp)
	@$(pip) -e '.[docs]'
	$(python) -m mkdocs build --strict
