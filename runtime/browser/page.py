"""One HTML file that holds the page, the engine and a model, and needs neither a server nor the network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
from pathlib import Path
from string import Template

from PIL import Image

from runtime.browser.engine_package import NAME, VERSION, EnginePackage
from runtime.inference.model_proof import MAX_KNOWN_ERROR, MAX_PROBABILITY_ERROR, MAX_SUM_ERROR
from runtime.model_file.golden import golden_picture
from runtime.model_file.loader import ModelFile
from runtime.preprocess.picture import read_picture

STATIC = Path(__file__).parent / "static"
# The page of the service, whose styles, icon and these scripts this page uses too.
SERVER_STATIC = STATIC.parents[1] / "server" / "static"
SHARED_SCRIPTS = ("dom.js", "answers.js")
LICENCE = "licence.html"
# Mean difference of the pixels that a browser and Pillow read from the test picture: 0.0 in Chromium, and 60
# when the browser does not turn the picture upright. Protection against fingerprinting gives random pixels.
MAX_PIXEL_ERROR = 3.0

# Nothing may be requested: no source is listed but this file itself and what its scripts make of it.
POLICY = (
    "default-src 'none'; script-src {script} blob: 'wasm-unsafe-eval'; style-src {style}; "
    "img-src data: blob:; media-src blob:; worker-src blob:; base-uri 'none'; form-action 'none'"
)


def make_page(model: ModelFile, engine: EnginePackage) -> str:
    """Returns the page, for an ONNX file. About 8 MB with the released model.

    The page computes the model's expected answer, and the pixels of a test picture, before it answers.
    """
    height, width = model.contract.input_size
    proof = proof_picture(height, width)
    blocks = {
        "worker-script": _read_text(STATIC / "worker.js").encode(),
        "engine-script": engine.script,
        "engine-wasm": engine.wasm,
        "model-file": model.data,
        "golden-pixels": golden_picture(height, width).tobytes(),
        "proof-picture": proof,
        "proof-pixels": read_picture(proof, (height, width)).tobytes(),
    }
    style = _read_text(SERVER_STATIC / "page.css") + _read_text(STATIC / "page.css")
    # One script, because a module could not be imported: its imports would be requests.
    shared = "".join(_read_text(SERVER_STATIC / name) for name in SHARED_SCRIPTS)
    script = re.sub("^(export |import .*\n)", "", shared, flags=re.MULTILINE) + _read_text(STATIC / "page.js")
    return Template(_read_text(STATIC / "page.html")).substitute(
        policy=POLICY.format(script=_csp_hash(script), style=_csp_hash(style)),
        icon=base64.b64encode((SERVER_STATIC / "icon.svg").read_bytes()).decode(),
        style=style,
        script=script,
        engine=f"{NAME} {VERSION}",
        licence=_read_text(STATIC / LICENCE).strip(),
        data=_page_data(model),
        blocks="\n".join(_block(name, data) for name, data in blocks.items()),
    )


def proof_picture(height: int, width: int) -> bytes:
    """Returns a JPEG of the golden picture of another size, stored sideways, for an input of this size."""
    upright = Image.fromarray(golden_picture(2 * height, 3 * width // 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn it clockwise
    file = io.BytesIO()
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    sideways.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    return file.getvalue()


def _page_data(model: ModelFile) -> str:
    fields = {
        "contract": model.contract.to_fields(),
        "file": {"name": model.path.name, "bytes": len(model.data), "sha256": model.sha256},
        "engine": f"{NAME} {VERSION}",
        "limits": {
            "pixels": MAX_PIXEL_ERROR,
            "sum": MAX_SUM_ERROR,
            "probability": MAX_PROBABILITY_ERROR,
            "known": MAX_KNOWN_ERROR,
        },
    }
    return json.dumps(fields).replace("<", "\\u003c")  # a label cannot end the block


def _block(name: str, data: bytes) -> str:
    text = base64.b64encode(gzip.compress(data, mtime=0)).decode()
    return f'<script type="application/gzip;base64" id="{name}">{text}</script>'


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
