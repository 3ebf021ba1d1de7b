"""Tokenizers that lose text, end a prompt, or name tokens that the model lacks; where a chat's turn ends."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaTokenizerFast, PreTrainedTokenizerFast

import tasks
import tinyr1
from engine import rollout
from runtime import models
from runtime.problems import Problems
from runtime.runfolder import UserError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(added=SPECIAL, normalizer=None, ends=False, **more):
    """A byte-level tokenizer as Qwen's; with `ends` its post-processor appends the EOS."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(BPE(vocab, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if normalizer:
        core.normalizer = normalizer
    core.add_special_tokens([AddedToken(t, special=True) if isinstance(t, str) else t for t in added])
    if ends:
        end = ("<|endoftext|>", core.token_to_id("<|endoftext|>"))
        core.post_processor = processors.TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>", **more
    )


@pytest.fixture(scope="module")
def model():
    from samples import small_model

    model = small_model()
    model.resize_token_embeddings(300)
    return model


def check(model, tokenizer, template="none", text="What is 2?"):
    prompt = tasks.render(template, text, tokenizer)
    problem = tinyr1.Problem({}, prompt, models.prompt_ids(tokenizer, prompt, template))
    models.check_tokenizer(model, tokenizer, template, [problem])


def test_a_byte_level_vocabulary_labelled_llama_is_refused(model, tmp_path):
    """As folders of DeepSeek-R1-Distill-Llama are: every space and line end disappears."""
    byte_level().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": "LlamaTokenizerFast"})
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    if " " in tokenizer.decode(tokenizer("a b").input_ids):
        pytest.skip("this transformers reads the folder rightly")
    with pytest.raises(UserError, match="comes back as 'Make24from3,8:") as refusal:
        check(model, tokenizer)
    assert "\n" not in str(refusal.value)


def test_the_miniature_and_its_tokenizer_pass(tiny):
    model, tokenizer = models.load_model(tiny, torch.device("cpu"))
    for template in ("none", "r1", "tinyzero", "qwen-math"):
        check(model, tokenizer, template, "Make 24 from 3, 8.\n\n  é")


def test_what_tokenizers_may_change_is_let_through(model):
    check(model, byte_level(normalizer=normalizers.NFKC()), text="x² ｆ e\u0301")
    check(model, byte_level(normalizer=normalizers.Lowercase()), text="WHAT?")
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)} | {"▁": 259}
    check(model, LlamaTokenizerFast(vocab=vocab, merges=[]), text="a  b\n é")  # adds a space at the start
    phi = AddedToken("<|end|>", special=True, rstrip=True)  # takes the line end after it
    template = "{% for m in messages %}{{ m['content'] }}<|end|>\n{% endfor %}x"
    check(model, byte_level([*SPECIAL, phi], chat_template=template), "chat")


def test_what_they_may_not_is_refused(model):
    for loss in (
        normalizers.Replace("\n", " "), normalizers.Replace("  ", " "), normalizers.Replace("0", "O"),
        normalizers.Replace("<think>", ""),
    ):  # fmt: skip
        with pytest.raises(UserError, match="does not give a text back: .* comes back as"):
            check(model, byte_level(normalizer=loss))
    with pytest.raises(UserError, match="does not give a text back: 'a\\\\tb"):  # in the task's own prompt
        check(model, byte_level(normalizer=normalizers.Replace("\t", "")), text="a\tb")
    with pytest.raises(UserError, match="turns .* into"):
        check(model, byte_level(normalizer=normalizers.Replace("é", "Ã©")))


def test_a_prompt_does_not_end_in_an_eos_of_a_post_processor():
    tokenizer = byte_level(ends=True)
    assert tokenizer("ab").input_ids[-1] == tokenizer.eos_token_id
    ids = models.prompt_ids(tokenizer, "ab", "none")
    assert ids == tokenizer("ab", add_special_tokens=False).input_ids
    cfg = tinyr1.Train()
    assert (
        tokenizer.eos_token_id
        not in next(Problems(tasks.load("countdown"), "test", cfg, tokenizer)).prompt_ids
    )
    own = models.prompt_ids(tokenizer, "ab<|endoftext|>", "none")  # its own stays
    assert own == [*ids, tokenizer.eos_token_id]


def test_tokens_before_a_prompt_stay():
    tokenizer = byte_level()
    first = ("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))
    last = ("<|im_end|>", tokenizer.convert_tokens_to_ids("<|im_end|>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A {last[0]}", special_tokens=[first, last]
    )
    bare = tokenizer("ab", add_special_tokens=False).input_ids
    assert models.prompt_ids(tokenizer, "ab", "none") == [first[1], *bare]
    assert models.prompt_ids(tokenizer, "ab", "chat") == bare


def test_tokens_beyond_the_embedding_are_refused(model):
    tokenizer = byte_level([*SPECIAL, *(f"<|{i}|>" for i in range(60))])
    check(model, tokenizer)
    with pytest.raises(UserError, match="into the token 3[0-9]{2}, but .* only 300 rows"):
        check(model, tokenizer, text="a<|59|>b")
    with pytest.raises(ValueError, match="token 300, but .* only 300 rows"):
        rollout.generate(model, [[300]], 1, max_new_tokens=2)


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>", AddedToken("<end>", special=False)])
def test_a_chat_ends_where_its_template_ends_a_turn(model, tmp_path, end):
    """<|im_end|> is special in tokenizer.json, but not among all_special_ids, which lists named tokens."""
    text = end if isinstance(end, str) else end.content
    added = SPECIAL if isinstance(end, str) else [*SPECIAL, end]
    byte_level(added, chat_template=CHATML.replace("<|im_end|>", text)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(text), model.config.eos_token_id}
    assert models.stop_ids(model, tokenizer, "chat") == sorted(ends)
    assert models.stop_ids(model, tokenizer, "none") == sorted({tokenizer.eos_token_id, 0})
    check(model, tokenizer, "chat")


def test_a_template_that_drops_the_answer_adds_no_end(model):
    tokenizer = byte_level(chat_template="<|im_start|>{{ messages[0]['content'] }}")
    assert models.stop_ids(model, tokenizer, "chat") == sorted({tokenizer.eos_token_id, 0})


def test_a_padding_token_that_the_model_lacks_pads_nothing(model):
    """Many add [PAD] to a tokenizer and leave the embedding as it is."""
    tokenizer = byte_level([*SPECIAL, *(f"<|{i}|>" for i in range(60))])
    assert models.pad_id(model, tokenizer) == tokenizer.eos_token_id
    tokenizer.pad_token = "<|59|>"
    assert tokenizer.pad_token_id > 300 and models.pad_id(model, tokenizer) == 0
    asked = [tinyr1.Problem({}, "", ids) for ids in ([1, 2, 3], [4])]
    cfg = tinyr1.Train(max_new_tokens=4, precision="fp32")
    roll, _ = tinyr1.sample(model, tokenizer, asked, 2, cfg, 0)
    tinyr1.Policy(model, 1.0, "fp32")(roll.input_ids, roll.mask)


def test_a_turn_that_ends_in_plain_text_adds_no_end(model):
    tokenizer = byte_level(chat_template="{% for m in messages %}{{ m['content'] }}\nUser: {% endfor %}")
    assert models.stop_ids(model, tokenizer, "chat") == sorted({tokenizer.eos_token_id, 0})


def test_training_refuses_before_its_first_step(tiny, bandit, tmp_path):
    """A token was added to the tokenizer and not to the model, and the task uses it."""
    folder, task = tmp_path / "model", tmp_path / "task.py"
    task.write_text(Path(bandit).read_text().replace("What is 2?", "ZZZ"))
    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["ZZZ"])
    tokenizer.save_pretrained(folder)
    small = dict(steps=1, prompts=1, group=2, max_new_tokens=4, device="cpu", precision="fp32")
    cfg = tinyr1.Train(model=str(folder), task=str(task), out=str(tmp_path / "runs"), name="x", **small)
    with pytest.raises(UserError, match="into the token"):
        tinyr1.train(cfg)
    assert not (tmp_path / "runs" / "x" / "metrics.jsonl").exists()
