"""HTTPie uploads pictures to the service: run_httpie.py URL FOLDER OUT.json."""

import json
import subprocess
import sys
from pathlib import Path

url, folder, out = sys.argv[1:]
program = str(Path(sys.executable).with_name("http"))
answers = []
for path in sorted(Path(folder).iterdir()):
    command = [program, "--ignore-stdin", "--body", "--form", f"{url}/classify", f"file@{path}"]
    answers.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
Path(out).write_text(json.dumps(answers))
