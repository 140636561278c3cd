# `make` alone lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PY := $(BIN)/python
# A test file stays in one process, so its fixtures are made once. (The xdist_group marks of pytest-xdist 3.8
# have no effect under pytest 9.2.) A process that crashes ends the tests: with another in its place, they never end.
PYTEST := $(PY) -m pytest -n $(or $(PROCESSES),2) --dist loadfile --max-worker-restart 0
# A test may fail because the machine was busy. It is repeated alone, and must pass then. Its first failure stays in the output.
REPEAT_FAILED := || { [ $$? = 1 ] && echo 'Repeating the tests that failed. A test that passes now depends on the time: correct it.' && $(PY) -m pytest --last-failed --last-failed-no-failures none; }
export TF_CPP_MIN_LOG_LEVEL ?= 3

define FIRST_TEST_PHOTOS
import sys
from train.run import open_run
data = open_run(sys.argv[1]).dataset
first = {photo.label: str(data.root / photo.path) for photo in reversed(data.split("test"))}
print(*first.values(), sep="\0", end="")
endef
export FIRST_TEST_PHOTOS

define ABOUT_DEMO
make demo trains a small model, compresses it, exports it and classifies a test photo of each class.
It uses 40 photos of each class and no distillation: the commands in README.md give a more accurate model.
  Time: 8 to 12 minutes on 2 cores. The first run also installs .venv (3.4 GB).
  Quick path (2 minutes): pip install '.[litert]', then python -m runtime.classify PHOTO
  uses the flower model that this project includes.
endef
export ABOUT_DEMO

define AFTER_DEMO

Next:
  .venv/bin/python -m runtime.classify PHOTO --model demo/model
  .venv/bin/python -m runtime.serve --model demo/model      (web page)
  make demo PHOTOS=path/to/photos                           (one folder per class)
endef
export AFTER_DEMO

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: .venv/installed  ## install everything into .venv (3.4 GB)

# "compat" keeps the editable install a plain path: the default finder loses to any folder named train/ in the working directory.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("error: Python %d.%d found, but training needs 3.11 to 3.13; install python3.11 or run make PYTHON=/path/to/python3.11" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --config-settings editable_mode=compat -e '.[train,export,tflite,heic,test]'
	@touch $@

demo: about-demo setup  ## train, compress, export and classify into demo/ (8 to 12 minutes); PHOTOS=dir uses your photos
	$(PY) -m train $(if $(PHOTOS),"$(PHOTOS)") --limit 40 --out demo/run --overwrite
	$(PY) -m train.compress demo/run --epochs 0 --views 2 --out demo/compressed --overwrite
	$(PY) -m export demo/compressed --int8 --photos 50 --out demo/model
	@$(PY) -c "$$FIRST_TEST_PHOTOS" demo/run | xargs -0 $(PY) -m runtime.classify --model demo/model
	@echo "$$AFTER_DEMO"

about-demo:
	@echo "$$ABOUT_DEMO"

test: setup lint  ## lint, types and the quick tests (9 minutes on 2 cores); PROCESSES=2
	$(PYTEST) -m "not slow"

# With `make --keep-going` a failing part does not hide the results of the others.
test-all: lint test-suite fuzz test-arm64 $(if $(VGG_EDGE_PHOTOS),accuracy,no-photos)  ## everything that CI runs (at most 90 minutes)

test-suite: setup  ## the quick and the slow tests
	$(PYTEST) --durations=10 $(REPEAT_FAILED)

test-arm64: setup  ## the runtime on emulated 64-bit Arm, as on Raspberry Pi 3, 4 and 5 (4 minutes)
	$(PYTEST) --dist load tests/arm64 -rP

debian:  ## install the Debian packages that the tests need (as root)
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends python3-venv systemd systemd-container qemu-user-static shellcheck chromium chromium-driver mosquitto openssl g++
	@command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends npm

accuracy: photos setup  ## the accuracy and parity tests on real photos (VGG_EDGE_PHOTOS; 20 minutes)
	$(PYTEST) tests/accuracy --durations=10 --timeout 3000

test-image: setup  ## build and start the container image (as root, with podman, runc and mmdebstrap; not in CI; 20 minutes on a busy machine)
	$(PYTEST) tests/image

test-clients: photos setup  ## open the released files in other programs, each in its own environment (VGG_EDGE_PHOTOS; not in CI)
	$(PY) -m benchmarks.clients

no-photos:
	@echo 'The accuracy tests did not run: VGG_EDGE_PHOTOS is not set.'

fuzz: setup  ## fuzz the parsers of untrusted input, SECONDS=25 for each; the tests prove that the fuzzer finds bugs
	$(PYTEST) tests/fuzz
	$(PY) -m tests.fuzz --seconds $(or $(SECONDS),25)

soak: setup  ## run the camera loop on each engine for MINUTES=10 and check memory and frame age
	$(PY) -m benchmarks.soak --minutes $(or $(MINUTES),10)

release: photos setup  ## export models/flowers and models/flowers_small again from their runs
	$(PY) -m export models/flowers_compressed --all --keep int8.tflite int8.onnx --out models/flowers --photos-root "$$VGG_EDGE_PHOTOS"
	$(PY) -m export models/flowers_small_run --all --keep int8.tflite int8.onnx --out models/flowers_small --photos-root "$$VGG_EDGE_PHOTOS"

retrain: photos setup  ## train models/flowers_run again (about an hour on 2 cores)
	$(PY) -m train "$$VGG_EDGE_PHOTOS" --fine-tune block5 --out runs/flowers --overwrite --resume
	$(PY) -m train.pack_run runs/flowers models/flowers_run --overwrite

compress: photos setup  ## compress models/flowers_run into models/flowers_compressed again (about an hour on 2 cores)
	$(PY) -m train.compress models/flowers_run --views 8 --photos-root "$$VGG_EDGE_PHOTOS" --out runs/flowers_compressed --overwrite --resume
	$(PY) -m train.pack_run runs/flowers_compressed models/flowers_compressed --overwrite

compress-small: photos setup  ## compress models/flowers_compressed into models/flowers_small_run again (about 80 minutes on 2 cores)
	$(PY) -m train.compress models/flowers_compressed --reduce 30 --max-mb 1 --views 8 --epochs 80 --photos-root "$$VGG_EDGE_PHOTOS" --out runs/flowers_small --overwrite --resume
	$(PY) -m train.pack_run runs/flowers_small models/flowers_small_run --overwrite

refit: photos setup  ## fit the detectors of both released runs again (8 minutes on 2 cores)
	$(PY) -m train.refit models/flowers_compressed --photos-root "$$VGG_EDGE_PHOTOS" --out runs/flowers_refitted --overwrite
	$(PY) -m train.pack_run runs/flowers_refitted models/flowers_compressed --overwrite
	$(PY) -m train.refit models/flowers_small_run --photos-root "$$VGG_EDGE_PHOTOS" --out runs/flowers_small_refitted --overwrite
	$(PY) -m train.pack_run runs/flowers_small_refitted models/flowers_small_run --overwrite

photos:
	@test -n "$$VGG_EDGE_PHOTOS" || { echo 'error: VGG_EDGE_PHOTOS is not set; set it to a folder with train/ and test/ of real photos' >&2; exit 1; }

fmt: setup  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## ruff, mypy and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: help setup demo about-demo test test-all test-suite test-arm64 debian accuracy test-image test-clients no-photos fuzz soak release retrain compress refit photos fmt lint
