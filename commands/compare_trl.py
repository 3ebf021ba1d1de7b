"""A whole GRPO step of 16 prompts x 16 samples on the miniature: TRL's GRPOTrainer against ours.

    python tinyr1.py compare_trl --steps 5            skips with a line where TRL 1.16 is not installed

TRL needs its own environment: python -m venv DIR && DIR/bin/pip install -r requirements.txt trl==1.16.*

One process, the same weights, prompts, rewards (tasks.countdown), temperature, cap and optimizer, no KL,
fp32; ours in the precision `auto` as well. The steps take turns after a round that warms up; the figures
are medians. The learning rate is almost zero, so that every step samples from the base. The objective is the
same; ours leaves rows whose advantage is 0 out of the forward and backward pass, TRL does not.
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice

import torch

import tinyr1
from runtime import cpu
from runtime.learner import Learner
from runtime.metrics import sample_records
from runtime.models import load_model, pick_attention, pick_precision
from runtime.problems import Problems
from tasks import countdown, rewards

LR = 1e-7


class Ours:
    """The loop of tinyr1.train without its logs, evaluations and checkpoints."""

    def __init__(self, precision, base):
        arguments = "mini --rewards task --weight_decay 0 --kl 0".split()
        self.cfg, _ = tinyr1.parse([*arguments, *base, "--precision", precision, "--lr", str(LR)])
        self.name = f"tinyr1, {precision}"
        self.model, self.tokenizer = load_model(self.cfg.model, torch.device("cpu"))
        pick_attention(self.model, precision)
        self.learner = Learner(tinyr1.Policy(self.model, self.cfg.temperature, precision), LR)
        self.rows = []

    def step(self, batch, number):
        cfg, clock, begin = self.cfg, tinyr1.Clock(), time.perf_counter()
        with clock("sample"):
            roll, texts = tinyr1.sample(self.model, self.tokenizer, batch, cfg.group, cfg, seed=number)
        with clock("score"):
            verdicts = tinyr1.score(countdown, batch, texts, cfg.group)
            records = sample_records(batch, texts, verdicts, roll, cfg.group)
            samples = tinyr1.Samples(batch, roll, records, *rewards.total(records, cfg, number))
        with clock("update"):
            batch = tinyr1.make_batch(samples, cfg, number, 0.0)
            tinyr1.compute_advantages(batch, cfg)
            tinyr1.update(self.learner, batch, cfg)
        self.rows.append({
            "step": time.perf_counter() - begin, **clock, "tokens": roll.length.float().mean().item(),
            "ended": roll.finished.float().mean().item(), "reward": float(samples.rewards.mean()),
        })  # fmt: skip


def trl_settings(cfg, micro: int, cap: int, steps: int) -> dict:
    """Those of TRL that are the same as ours, and nothing that takes time beside the steps."""
    return dict(
        use_cpu=True, bf16=False, gradient_checkpointing=False, beta=0.0, loss_type="grpo",
        num_generations=cfg.group, temperature=1.0, max_completion_length=cap,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=cfg.prompts * cfg.group // micro, max_steps=steps, learning_rate=LR,
        lr_scheduler_type="constant", adam_beta2=0.95, weight_decay=0.0, max_grad_norm=cfg.grad_clip,
        shuffle_dataset=False, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip


def run_trl(trl, transformers, ours, batches, micro, cap):
    """Train with TRL and let `ours` take a step after each of its own; returns its rows, as Ours has them."""
    from datasets import Dataset

    model, tokenizer = load_model("minibase", torch.device("cpu"))
    cfg, rows, clock = ours[0].cfg, [], tinyr1.Clock()

    def reward(prompts, completions, completion_ids, example, **_):
        assert example[:: cfg.group] == [problem.example for problem in batches[len(rows)]]
        with clock("score"):
            scores = [countdown.reward(c, e)["reward"] for c, e in zip(completions, example)]
        lengths = [len(ids) for ids in completion_ids]
        clock["tokens"] = statistics.mean(lengths)
        clock["ended"] = statistics.mean(ids[-1] == tokenizer.eos_token_id for ids in completion_ids)
        clock["reward"] = statistics.mean(scores)
        return scores

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_, **__):
            clock.clear()
            self.begin = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            seconds = time.perf_counter() - self.begin
            rest = seconds - clock["sample"] - clock["score"]
            rows.append({"step": seconds, "update": rest, **clock})
            for side in ours:
                side.step(batches[state.global_step - 1], state.global_step)

    class Trainer(trl.GRPOTrainer):
        def _generate_single_turn(self, *args, **kwargs):
            with clock("sample"):
                return super()._generate_single_turn(*args, **kwargs)

    prompts = [{"prompt": p.prompt, "example": p.example} for batch in batches for p in batch]
    args = trl.GRPOConfig(output_dir=tempfile.mkdtemp(), **trl_settings(cfg, micro, cap, len(batches)))
    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each, after one to warm up")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--micro", type=int, default=64, help="samples of TRL's micro-batch")
    a = parser.parse_args(argv)
    try:
        import transformers
        import trl
    except ImportError:
        print("skipped: TRL is not installed (pip install trl==1.16.*)")
        return
    cpu.prepare()
    torch.manual_seed(0)
    base = [f"--{name}={getattr(a, name)}" for name in ("prompts", "group", "max_new_tokens")]
    ours = [Ours("fp32", base)]
    if pick_precision("auto", torch.device("cpu")) != "fp32":
        ours.append(Ours("bf16", base))  # what `auto` takes here
    stream = Problems(countdown, "train", ours[0].cfg, ours[0].tokenizer)
    batches = [list(islice(stream, a.prompts)) for _ in range(a.steps + 1)]
    rows = run_trl(trl, transformers, ours, batches, a.micro, a.max_new_tokens)

    columns = ("step", "sample", "score", "update", "tokens", "ended", "reward")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{a.prompts} x {a.group}, medians of {a.steps}, {torch.get_num_threads()} threads, {versions}")
    print(f"{'seconds':24}" + "".join(f"{name:>9}" for name in columns) + "   times TRL's speed")
    medians = {}
    for name, side in ((f"TRL {trl.__version__}, fp32", rows), *((o.name, o.rows) for o in ours)):
        medians[name] = [statistics.median(row[column] for row in side[1:]) for column in columns]
        ratio = next(iter(medians.values()))[0] / medians[name][0]
        print(f"{name:24}" + "".join(f"{value:9.3f}" for value in medians[name]) + f"   {ratio:.2f}")
