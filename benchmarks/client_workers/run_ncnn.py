"""ncnn, after its converter pnnx: run_ncnn.py MODEL PIXELS.npy CLASSES OUT.npy.

pnnx 20261020 writes a text with three errors, which this worker corrects: ncnn has no operator for the cast
of the input (it takes float32) and none named ReduceMax, and the sums and means have lost their axis.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import ncnn
import numpy as np

AXIS = "1=0 -23303=1,0 4=1 5=1"  # not all axes, only axis 0: ncnn leaves out the batch
CORRECTIONS = (
    (r"^Tensor\.to ", "Noop "),
    (r"^ReduceMax (.+)$", rf"Reduction \1 0=4 {AXIS}"),
    (r"1=0 -23303=0 4=1 5=1$", AXIS),
)

model, pixels, _, out = sys.argv[1:]
pictures = np.load(pixels)
height, width = pictures.shape[1:3]
package = find_spec("pnnx")  # not imported: it loads PyTorch, for other models
if not package or not package.submodule_search_locations:
    sys.exit("pnnx is not installed")
pnnx = f"{package.submodule_search_locations[0]}/pnnx"
with tempfile.TemporaryDirectory() as folder:
    shutil.copy(model, Path(folder) / "model.onnx")
    command = [pnnx, "model.onnx", f"inputshape=[1,{height},{width},3]u8"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    parameters = Path(folder) / "model.ncnn.param"
    text = parameters.read_text()
    for wrong, right in CORRECTIONS:
        text = re.sub(wrong, right, text, flags=re.MULTILINE)
    parameters.write_text(text)
    net = ncnn.Net()
    if net.load_param(str(parameters)) or net.load_model(str(Path(folder) / "model.ncnn.bin")):
        sys.exit("ncnn does not load what pnnx wrote")
answers = []
for picture in pictures:
    extractor = net.create_extractor()
    # Named, because ncnn keeps a reference to it only.
    values = picture.reshape(height, -1).astype(np.float32)
    extractor.input("in0", ncnn.Mat(values))
    answers.append(np.array(extractor.extract("out0")[1]))
np.save(out, np.array(answers, np.float32))
