"""A client that is generated from the service's OpenAPI file uploads pictures: URL FOLDER OUT.json."""

import importlib
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path

url, folder, out = sys.argv[1:]
answers = []
with tempfile.TemporaryDirectory() as generated:
    program = str(Path(sys.executable).with_name("openapi-python-client"))
    command = [
        program,
        "generate",
        "--url",
        f"{url}/openapi.json",
        "--output-path",
        f"{generated}/client",
        "--meta",
        "none",
    ]
    subprocess.run(command, capture_output=True, check=True)
    sys.path.insert(0, generated)
    client = importlib.import_module("client").Client(base_url=url)
    endpoint = importlib.import_module("client.api.default.classify")
    models, types = importlib.import_module("client.models"), importlib.import_module("client.types")
    for path in sorted(Path(folder).iterdir()):
        file = types.File(io.BytesIO(path.read_bytes()), path.name, "image/png")
        answer = endpoint.sync(client=client, body=models.ClassifyFilesBody(file=file))
        answers.append(answer.to_dict())
Path(out).write_text(json.dumps(answers))
