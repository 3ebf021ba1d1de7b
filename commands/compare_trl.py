"""Time a whole GRPO step on the miniature: TRL's GRPOTrainer and ours.

    python tinyr1.py compare_trl --steps 5

It needs TRL 1.16, in an environment of its own: python -m venv DIR && DIR/bin/pip install -r requirements.txt
"trl==1.16.*". Without TRL it says so and does nothing.

Both run in one process, with the same weights, prompts, rewards (tasks.countdown), temperature, maximum
length and optimizer, without KL, in fp32; ours also in the precision `auto`. Their steps take turns, after
one round to warm up; the figures are medians. The learning rate is almost zero, so that every step samples
from the base model. The objective is the same; ours leaves rows with advantage 0 out of the forward and
backward pass.
"""

import statistics
import tempfile
import time
from itertools import islice
from typing import Any

import torch

import tinyr1
from commands import make_parser
from runtime import cpu
from runtime.learner import Learner
from runtime.metrics import sample_records
from runtime.models import load_model, pick_attention, pick_precision
from runtime.problems import Problems
from runtime.runfolder import UserError
from tasks import countdown, rewards

LR = 1e-7


class Ours:
    """The loop of tinyr1.train without its logs, evaluations and checkpoints."""

    def __init__(self, precision: str, base: list[str]) -> None:
        arguments = "mini --rewards task --weight_decay 0 --kl 0".split()
        self.cfg, _ = tinyr1.parse([*arguments, *base, "--precision", precision, "--lr", str(LR)])
        self.name = f"tinyr1, {precision}"
        self.model, self.tokenizer = load_model(self.cfg.model, torch.device("cpu"))
        pick_attention(self.model, precision)
        self.learner = Learner(tinyr1.Policy(self.model, self.cfg.temperature, precision), LR)
        self.rows: list[dict[str, float]] = []

    def step(self, problems: list[tinyr1.Problem], number: int) -> None:
        """Train on the problems; adds a row of seconds and means to `rows`."""
        cfg, clock, begin = self.cfg, tinyr1.Clock(), time.perf_counter()
        with clock("sample"):
            roll, texts = tinyr1.sample(self.model, self.tokenizer, problems, cfg.group, cfg, seed=number)
        with clock("score"):
            verdicts = tinyr1.score(countdown, problems, texts, cfg.group)
            records = sample_records(problems, texts, verdicts, roll, cfg.group)
            samples = tinyr1.Samples(problems, roll, records, *rewards.total(records, cfg, number))
        with clock("update"):
            batch = tinyr1.make_batch(samples, cfg, number, 0.0)
            tinyr1.compute_advantages(batch, cfg)
            tinyr1.update(self.learner, batch, cfg)
        self.rows.append(
            {
                "step": time.perf_counter() - begin,
                **clock,
                "tokens": roll.length.float().mean().item(),
                "ended": roll.finished.float().mean().item(),
                "reward": float(samples.rewards.mean()),
            }
        )


def trl_settings(trl: Any, cfg: tinyr1.Train, steps: int, micro: int) -> Any:
    """TRL's settings for the same training."""
    return trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        beta=0.0,
        loss_type="grpo",
        num_generations=cfg.group,
        temperature=1.0,
        max_completion_length=cfg.max_new_tokens,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=cfg.prompts * cfg.group // micro,
        max_steps=steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=cfg.grad_clip,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def run_trl(
    trl: Any, transformers: Any, ours: list[Ours], batches: list[list[tinyr1.Problem]], micro: int
) -> list[dict[str, float]]:
    """Train with TRL, and let `ours` take a step after each of its own; returns rows like theirs."""
    from datasets import Dataset

    model, tokenizer = load_model("minibase", torch.device("cpu"))
    cfg, clock = ours[0].cfg, tinyr1.Clock()
    rows: list[dict[str, float]] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, example: Any, **_: Any) -> list[float]:
        assert example[:: cfg.group] == [problem.example for problem in batches[len(rows)]]
        with clock("score"):
            scores = [countdown.reward(c, e)["reward"] for c, e in zip(completions, example)]
        clock["tokens"] = statistics.mean(len(ids) for ids in completion_ids)
        clock["ended"] = statistics.mean(ids[-1] == tokenizer.eos_token_id for ids in completion_ids)
        clock["reward"] = statistics.mean(scores)
        return scores

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.clear()
            self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds = time.perf_counter() - self.begin
            rest = seconds - clock["sample"] - clock["score"]
            rows.append({"step": seconds, "update": rest, **clock})
            for side in ours:
                side.step(batches[state.global_step - 1], state.global_step)

    class Trainer(trl.GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with clock("sample"):
                return super()._generate_single_turn(*args, **kwargs)

    prompts = [{"prompt": p.prompt, "example": p.example} for batch in batches for p in batch]
    trainer = Trainer(
        model=model,
        reward_funcs=reward,
        args=trl_settings(trl, cfg, len(batches), micro),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return rows


def main(argv: list[str]) -> int:
    parser = make_parser("compare_trl", "[--option value ...]", __doc__)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each, after one to warm up")
    parser.add_argument("--prompts", type=int, default=16, help="prompts per step")
    parser.add_argument("--group", type=int, default=16, help="samples per prompt")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="maximum tokens per response")
    parser.add_argument("--micro", type=int, default=64, help="samples per micro-batch of TRL")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.micro < 1 or args.prompts * args.group % args.micro:
        raise UserError(
            "--steps and --micro must be at least 1, and --micro must divide --prompts x --group."
        )
    try:
        import transformers
        import trl
    except ImportError:
        print('TRL is not installed, so nothing was compared: python -m pip install "trl==1.16.*"')
        return 0
    cpu.prepare()
    torch.manual_seed(0)
    base = [f"--{name}={getattr(args, name)}" for name in ("prompts", "group", "max_new_tokens")]
    ours = [Ours("fp32", base)]
    if pick_precision("auto", torch.device("cpu")) != "fp32":
        ours.append(Ours("bf16", base))
    stream = Problems(countdown, "train", ours[0].cfg, ours[0].tokenizer)
    batches = [list(islice(stream, args.prompts)) for _ in range(args.steps + 1)]
    rows = run_trl(trl, transformers, ours, batches, args.micro)

    columns = ("step", "sample", "score", "update", "tokens", "ended", "reward")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    threads = torch.get_num_threads()
    print(f"{args.prompts} x {args.group}, medians of {args.steps}, {threads} threads, {versions}")
    print(f"{'seconds':24}" + "".join(f"{name:>9}" for name in columns) + "   times TRL's speed")
    medians: dict[str, list[float]] = {}
    for name, side in ((f"TRL {trl.__version__}, fp32", rows), *((o.name, o.rows) for o in ours)):
        medians[name] = [statistics.median(row[column] for row in side[1:]) for column in columns]
        ratio = next(iter(medians.values()))[0] / medians[name][0]
        print(f"{name:24}" + "".join(f"{value:9.3f}" for value in medians[name]) + f"   {ratio:.2f}")
    return 0
