# make setup · demo · test · test-arm64 · debian · accuracy · soak · fuzz · fmt · lint · release · retrain · compress; `make` alone lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PY := $(BIN)/python
export TF_CPP_MIN_LOG_LEVEL ?= 3

define ONE_A_CLASS
import sys
from train.run import open_run
data = open_run(sys.argv[1]).dataset
first = {photo.label: str(data.root / photo.path) for photo in reversed(data.split("test"))}
print(*first.values(), sep="\0", end="")
endef
export ONE_A_CLASS

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/installed  ## everything, installed in .venv

# "compat" keeps the editable install a plain path: the default finder loses to any folder named train/ in the working directory.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 10) <= v < (3, 14) or sys.exit("error: Python %d.%d found, TensorFlow has wheels for 3.10 to 3.13; install python3.11 or run make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --config-settings editable_mode=compat -e '.[train,export,tflite,heic,test]'
	@touch $@

demo: setup  ## photos → trained model → proven files → labels; PHOTOS=dir takes your own photos
	$(PY) -m train $(if $(PHOTOS),"$(PHOTOS)") --limit 40 --out runs/demo --overwrite
	$(PY) -m export runs/demo --int8 --photos 50 --out models/demo
	@$(PY) -c "$$ONE_A_CLASS" runs/demo | xargs -0 $(PY) -m runtime.classify --model models/demo

test: setup lint  ## lint, types, import arrows, and the suite in PROCESSES=2
	$(PY) -m pytest -n $(or $(PROCESSES),2) --no-loadscope-reorder

test-arm64: setup  ## the runtime on emulated 64-bit Arm, every engine, as on Raspberry Pi 3, 4 and 5: about 5 minutes
	$(PY) -m pytest tests/arm64 -rP

debian:  ## the Debian packages that the tests of deploy, of the page, and test-arm64 need, as root
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends python3-venv systemd systemd-container qemu-user-static shellcheck chromium chromium-driver

accuracy: photos setup  ## the gates on real photos (VGG_EDGE_PHOTOS)
	$(PY) -m pytest tests/accuracy

soak: setup  ## the camera's loop on each engine for MINUTES=10: is its memory flat, are its frames fresh
	$(PY) -m benchmarks.soak --minutes $(or $(MINUTES),10)

fuzz: setup  ## the parsers of what strangers write, each for SECONDS (600); tests/fuzz shows that it finds what is planted
	$(PY) -m pytest tests/fuzz
	$(PY) -m tests.fuzz --seconds $(or $(SECONDS),600)

release: photos setup  ## models/flowers from the kept compressed run, through every gate on the photos of VGG_EDGE_PHOTOS
	$(PY) -m export models/flowers_compressed --all --keep int8.tflite int8.onnx --out models/flowers --photos-root "$$VGG_EDGE_PHOTOS"

retrain: photos setup  ## the kept run itself, from VGG_EDGE_PHOTOS: about an hour on 2 cores
	$(PY) -m train "$$VGG_EDGE_PHOTOS" --fine-tune block5 --out runs/flowers --overwrite --resume
	$(PY) -m train.pack_run runs/flowers models/flowers_run

compress: photos setup  ## the kept compressed run, from the kept run and VGG_EDGE_PHOTOS: about an hour on 2 cores
	$(PY) -m train.compress models/flowers_run --photos-root "$$VGG_EDGE_PHOTOS" --out runs/flowers_compressed --overwrite --resume
	$(PY) -m train.pack_run runs/flowers_compressed models/flowers_compressed

photos:
	@test -n "$$VGG_EDGE_PHOTOS" || { echo 'error: VGG_EDGE_PHOTOS is not set; point it at a folder with train/ and test/ of real photos' >&2; exit 1; }

fmt: setup  ## format in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## ruff, mypy, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: help setup demo test test-arm64 debian accuracy soak fuzz release retrain compress photos fmt lint
