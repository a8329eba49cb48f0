# make demo | test | check | bench | docs; the rest for developers: faults, slow, acceptance, evaluate, golden.
PYTHON ?= python3
PHOTOS ?= demo/photos
OUT ?= demo/protected
DLADIFF_ASSETS ?= ../shared/assets
export DLADIFF_ASSETS
export RAY_USAGE_STATS_ENABLED = 0
export NO_MKDOCS_2_WARNING = 1
# Else each of the tests' processes, and each Ray worker, would compile all of the code and the tests anew.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
STAMP := .venv/.installed
ACCEPTANCE := demo/acceptance
EVALUATION := demo/evaluation$(if $(QUICK),-quick)

.PHONY: demo test check bench docs faults slow acceptance evaluate golden clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m pipeline.demo $(PHOTOS)
	$(BIN)/dladiff protect --input $(PHOTOS) --output $(OUT) --profile tiny
	@echo "originals:        $(PHOTOS)/<identity>/"
	@echo "protected photos: $(OUT)/photos/<identity>/"
	@echo "manifest:         $(OUT)/manifest/photos.parquet, $(OUT)/manifest/identities.parquet"

# Each line ends with its ten slowest tests. One process a core holds torch (1 GB), two have a Ray of their own (2 GB);
# one that is done takes over work of another.
PYTEST := $(BIN)/python -m pytest -q --durations=10
CORES := -n logical --maxprocesses 8 --dist worksteal

test: $(STAMP)
	$(PYTEST) $(CORES)
	$(PYTEST) $(CORES) -m networks
	$(PYTEST) $(CORES) --maxprocesses 2 -m ray

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(STAMP)
	$(BIN)/python -m tests.bench.stages
	$(BIN)/python -m tests.bench.speed --only tiny
	@test -d "$(DLADIFF_ASSETS)/photos" || { echo "no $(DLADIFF_ASSETS)/photos: set DLADIFF_ASSETS for tests.bench.peers"; exit 2; }
	$(BIN)/python -m tests.bench.peers

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict
	@echo "open site/index.html, or for the search: $(BIN)/python -m mkdocs serve"

# Minutes with real processes that are killed; prints the table of docs/operations.md.
faults: $(STAMP)
	$(BIN)/python -m pytest -q -s -m slow tests/faults

slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# Real portraits, two insightface packs as optimised encoders; checked by a script of its own. Once within the
# visibility budget, once (VISIBILITY=0) within the bounds of two layers of sign steps.
VISIBILITY ?= 75
acceptance: $(STAMP)
	@test -d "$(DLADIFF_ASSETS)/photos" || { echo "no $(DLADIFF_ASSETS)/photos: set DLADIFF_ASSETS"; exit 2; }
	rm -rf $(ACCEPTANCE) && mkdir -p $(ACCEPTANCE)/photos
	echo 'method: {visibility: $(VISIBILITY)}' > $(ACCEPTANCE)/run.yaml
	cp -r $(DLADIFF_ASSETS)/photos/celebahq_103 $(DLADIFF_ASSETS)/photos/vggface2_n000050 $(ACCEPTANCE)/photos/
	$(BIN)/dladiff protect --input $(ACCEPTANCE)/photos --output $(ACCEPTANCE)/protected --config $(ACCEPTANCE)/run.yaml \
	  --faces $(DLADIFF_ASSETS)/insightface_pack/mini_y1 --faces $(DLADIFF_ASSETS)/insightface_pack/mini_relu6
	$(BIN)/python tests/acceptance/check_output.py --originals $(ACCEPTANCE)/photos --output $(ACCEPTANCE)/protected \
	  --packs $(DLADIFF_ASSETS)/insightface_pack/mini_y1 $(DLADIFF_ASSETS)/insightface_pack/mini_relu6 \
	  --held-out dladiff/profiles/tiny/encoders/residual.onnx --visibility $(VISIBILITY)

# Every method against every attack of the tiny model: hours on two cores, and goes on where it stopped.
# GPUS=0.0625: each attack takes that share of a GPU.
# QUICK=1: three people, dladiff, strong, aspl, random noise of the same PSNR and the clean photos, one attack of each kind.
ifdef QUICK
PEOPLE := --people 2 --sets 1
METHODS := aspl
STRENGTHS := strong
HOW := --attack dreambooth --attack ip_adapter_faceid --prompt "a photo of sks person" --count 8
else
PEOPLE := --people 8 --sets 2
METHODS = $(shell $(BIN)/python -m dladiff.settings.schedules)
STRENGTHS := faint strong
HOW := --attack dreambooth --attack lora --attack ip_adapter_faceid --count 8 --seed 0 --seed 1
endif

evaluate: $(STAMP)
	@test -d "$(DLADIFF_ASSETS)/faces" || { echo "no $(DLADIFF_ASSETS)/faces: set DLADIFF_ASSETS"; exit 2; }
	$(BIN)/python -m tests.acceptance.evaluation_people --assets $(DLADIFF_ASSETS) --out $(EVALUATION)/photos $(PEOPLE)
	$(BIN)/dladiff protect --input $(EVALUATION)/photos --output $(EVALUATION)/dladiff
	for name in $(METHODS); do \
	  $(BIN)/dladiff protect --input $(EVALUATION)/photos --output $(EVALUATION)/$$name --method $$name \
	    --config tests/acceptance/equal_visibility.yaml || exit $$?; done
	for name in $(STRENGTHS); do \
	  $(BIN)/dladiff protect --input $(EVALUATION)/photos --output $(EVALUATION)/$$name --strength $$name || exit $$?; done
	$(BIN)/dladiff evaluate --output $(EVALUATION)/dladiff --results $(EVALUATION)/results $(HOW) $(if $(GPUS),--gpus $(GPUS)) \
	  $(foreach name,$(METHODS) $(STRENGTHS),--compare $(name)=$(EVALUATION)/$(name)) \
	  --evaluator embedded:mobile --evaluator $(DLADIFF_ASSETS)/insightface_pack/mini_y1 --evaluator embedded:residual

golden: $(STAMP)
	$(BIN)/python tests/golden/make_tiny.py

clean:
	rm -rf .venv demo site
