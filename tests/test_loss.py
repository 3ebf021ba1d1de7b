"""The objective: goldens worked out by hand, identities, and what the gradient must not depend on."""

import copy
import math

import pytest
import torch
from samples import Sgd, small_model

import tinyr1
from engine import rollout
from runtime.learner import Learner
from runtime.loop import lr_at
from tasks.rewards import Response, overlong
from tinyr1 import ADVANTAGE, KL, LOSS_NORM, Batch, Policy, Train, policy_loss

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])


def test_advantages_by_hand():
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
    std = math.sqrt(4 * 0.25 / 3)  # of 1 0 0 1, with n-1
    expected = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]])
    assert torch.allclose(ADVANTAGE["centred"](reward), expected)
    assert torch.allclose(ADVANTAGE["zscore"](reward), expected / std, atol=1e-5)


def test_weights_by_hand():
    assert torch.allclose(LOSS_NORM["sequence"](MASK, 10), MASK * torch.tensor([[1 / 4], [1 / 6]]))
    assert torch.allclose(LOSS_NORM["token"](MASK, 10), MASK / 5)
    assert torch.allclose(LOSS_NORM["constant"](MASK, 10), MASK / 20)


def test_policy_loss_by_hand():
    """Ratios 1.5, 0.5, advantages +1 and -1: clipped at 1.2 and 0.8; ratio 1.5 with advantage -1 is not."""
    old = torch.zeros(2, 3)
    logp = torch.log(torch.tensor([[1.5, 0.5, 1.0], [1.5, 0.5, 1.1]]))
    adv = torch.tensor([[1.0], [-1.0]])
    weight = LOSS_NORM["sequence"](MASK, 10)
    loss, sums = policy_loss(logp, old, adv, weight, Train(kl=0))
    row0, row1 = (1.2 + 0.5) / 4, (-1.5 - 0.8 - 1.1) / 6
    assert loss.item() == pytest.approx(-(row0 + row1), rel=1e-6)
    assert sums["clip_frac"].tolist() == [[1, 0, 0], [0, 1, 0]]
    wide, _ = policy_loss(logp, old, adv, weight, Train(kl=0, clip_low=0.6, clip_high=0.6))
    assert wide.item() == pytest.approx(-((1.5 + 0.5) / 4 + (-1.5 - 0.5 - 1.1) / 6), rel=1e-6)


def test_kl_estimators_by_hand():
    d = torch.tensor([0.0, 0.5, -0.5])
    assert KL["k1"](d).tolist() == [0.0, 0.5, -0.5]
    assert KL["k2"](d).tolist() == [0.0, 0.125, 0.125]
    assert torch.allclose(KL["k3"](d), torch.tensor([0, math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5]))
    logp, ref = torch.zeros(2, 3), torch.full((2, 3), -0.5)
    weight = LOSS_NORM["token"](MASK, 10)
    loss, sums = policy_loss(logp, logp, torch.zeros(2, 1), weight, Train(kl=0.1), 0.1, ref)
    assert loss.item() == pytest.approx(0.1 * (math.exp(-0.5) - 0.5), rel=1e-5)
    assert sums["kl"].shape == (2, 3)


@pytest.mark.parametrize("weight_name", LOSS_NORM)
def test_at_ratio_one_the_gradient_is_reinforce(weight_name):
    logp = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    adv, weight = torch.tensor([[0.7], [-1.3]], dtype=torch.float64), LOSS_NORM[weight_name](MASK, 8)
    policy_loss(logp, logp.detach(), adv, weight, Train(kl=0))[0].backward()
    assert torch.allclose(logp.grad, -adv * weight)


def test_the_policy_is_the_log_softmax_of_the_whole_vocabulary():
    model = small_model().double()
    ids = torch.randint(1, 31, (3, 9))
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, 2:5], mask[1, 0:8], mask[2, 7] = True, True, True
    logp, entropy = Policy(model, 0.5, "fp32")(ids, mask)
    full = torch.log_softmax(model(input_ids=ids).logits / 0.5, -1)[:, :-1]
    expected = full.gather(-1, ids[:, 1:, None])[..., 0]
    assert torch.allclose(logp, torch.where(mask, expected, 0.0), atol=1e-5)
    assert torch.allclose(entropy[mask], -(full.exp() * full).sum(-1)[mask], atol=1e-5)


def test_chunks_of_the_vocabulary_do_not_change_logprobs_or_gradient(monkeypatch):
    grads = []
    for limit in (2**25, 31 * 3):  # one chunk; three tokens a chunk
        model = small_model()
        ids = torch.arange(1, 19).view(2, 9)
        monkeypatch.setattr(tinyr1, "LOGITS", limit)
        logp, _ = Policy(model, 1.0, "fp32")(ids, torch.ones(2, 8, dtype=torch.bool))
        logp.sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads))


def fake_rollout(model, seed=0, extra=0):
    """Rows of prompt length 3 and different completion lengths; `extra` columns of padding."""
    g = torch.Generator().manual_seed(seed)
    length = torch.tensor([4, 9, 1, 6, 9, 2, 7, 5])
    ids = torch.randint(1, 31, (8, 12), generator=g)
    ids[torch.arange(12) >= (3 + length)[:, None]] = 0
    ids = torch.nn.functional.pad(ids, (0, extra))
    roll = rollout.Rollout(ids, torch.full((8,), 3), length, torch.zeros(8, 11 + extra), length < 9)
    with torch.no_grad():
        roll.logprobs = Policy(model, 1.0, "fp32")(ids, roll.mask)[0]
    return roll


def gradient(cfg, extra=0, order=None, engine_gap=0.0):
    """The parameters after one SGD step, which are the gradient except for sign and start."""
    model, ref = small_model(), small_model(seed=1) if cfg.kl else None
    roll = fake_rollout(small_model(), extra=extra)
    roll.logprobs = roll.logprobs + engine_gap * roll.mask
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    keep = roll.finished | torch.tensor(not cfg.mask_truncated)
    if order is not None:  # of the rows within their groups, which share a number of rows
        roll = rollout.Rollout(*(getattr(roll, f)[order] for f in roll.__dataclass_fields__ if f != "steps"))
        keep, reward = keep[order], reward.flatten()[order].view(2, 4)
    counted = (reward != reward[:, :1]).any(1).repeat_interleave(4) | torch.tensor(not cfg.filter_groups)
    batch = Batch(cfg, 0, cfg.kl, roll, reward, reward == 1, counted, keep)
    policy, reference = (Policy(m, 1.0, "fp32") if m else None for m in (model, ref))
    tinyr1.compute_logprobs(batch, policy, reference, cfg)
    tinyr1.compute_advantages(batch, cfg)
    before = [p.detach().clone() for p in model.parameters()]
    learner = Sgd(policy)
    metrics = tinyr1.update(learner, batch, cfg) | {"skipped": learner.skipped}
    return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters())]), metrics


SETTINGS = [
    dict(tinyr1.ALGORITHMS["grpo"]),
    dict(tinyr1.ALGORITHMS["drgrpo"]),
    dict(loss_norm="token", kl=0.1, kl_estimator="k2"),
    dict(loss_norm="sequence", filter_groups=True, mask_truncated=True),
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradient_depends_on_nothing_it_must_not(setting):
    cfg = Train(precision="fp32", grad_clip=1e9, max_new_tokens=9, micro_tokens=10**6, **setting)
    whole, metrics = gradient(cfg)
    assert whole.norm() > 1e-3 and metrics["grad_norm"] == pytest.approx(whole.norm().item(), rel=1e-4)
    cfg.micro_tokens = 13  # a row or two at a time
    assert torch.allclose(gradient(cfg)[0], whole, atol=1e-6)
    assert torch.allclose(gradient(cfg, extra=7)[0], whole, atol=1e-6)
    assert torch.allclose(gradient(cfg, order=torch.tensor([3, 1, 0, 2, 7, 4, 6, 5]))[0], whole, atol=1e-6)


def test_update_equals_the_formula_written_out():
    """GRPO's gradient from whole tensors, without micro-batches or weights: 2402.03300, eq. 3 and 4."""
    cfg = Train(precision="fp32", grad_clip=1e9, max_new_tokens=9, **tinyr1.ALGORITHMS["grpo"])
    model, ref, roll = small_model(), small_model(seed=1), fake_rollout(small_model())
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]])
    objective = 0.0
    for i in range(8):
        group = reward[i // 4]
        adv = (reward.flatten()[i] - group.mean()) / (group.std() + 1e-6)
        n = int(roll.length[i])
        logits = [
            torch.log_softmax(m(input_ids=roll.input_ids[i : i + 1]).logits[0], -1) for m in (model, ref)
        ]
        for t in range(3, 3 + n):
            logp, ref_logp = (x[t - 1, roll.input_ids[i, t]] for x in logits)
            ratio, d = torch.exp(logp - logp.detach()), ref_logp.detach() - logp
            objective = objective + (ratio * adv - cfg.kl * (d.exp() - d - 1)) / n / 8
    (-objective).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert torch.allclose(gradient(cfg)[0], expected, atol=1e-6)


def test_truncated_importance_correction():
    """Every token was e^0.5 times less likely to the engine: it counts so much more, up to the cap."""
    kw = dict(precision="fp32", grad_clip=1e9, max_new_tokens=9)
    plain, metrics = gradient(Train(**kw), engine_gap=-0.5)
    assert metrics["rollout_kl"] == pytest.approx(-0.5, abs=1e-5)
    for cap, factor in ((2.0, math.exp(0.5)), (1.2, 1.2)):
        assert torch.allclose(
            gradient(Train(tis_cap=cap, **kw), engine_gap=-0.5)[0], plain * factor, atol=1e-5
        )


def test_minibatches_and_epochs_leave_ratio_one():
    cfg = Train(precision="fp32", max_new_tokens=9, epochs=3, minibatches=2, kl=0.0)
    _, metrics = gradient(cfg)
    assert (
        metrics["skipped"] == 0 and metrics["clip_frac"] > 0
    )  # SGD with lr 1 moves far enough to be clipped


def test_nan_never_reaches_the_weights():
    cfg = Train(precision="fp32", max_new_tokens=9)
    model, roll = small_model(), fake_rollout(small_model())
    before = copy.deepcopy(model.state_dict())
    reward = torch.tensor([[1.0, -1, float("nan"), 1], [1, -1, 1, 1]])
    learner, every = Learner(Policy(model, 1.0, "fp32"), lr=0.1), torch.ones(8, dtype=torch.bool)
    batch = Batch(cfg, 0, 0.0, roll, reward, reward == 1, every, every)
    tinyr1.compute_advantages(batch, cfg)
    tinyr1.update(learner, batch, cfg)
    assert learner.take_skipped() == 1 and learner.take_skipped() == 0 and not learner.optimizer.state
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_overlong_responses_are_penalised_softly():
    penalty = [overlong(Response("", {}, n, cap=100, buffer=50, chance=0.0)) for n in (10, 50, 75, 100)]
    assert penalty == [0.0, 0.0, -0.5, -1.0]


def test_schedule():
    cfg = Train(lr=1.0, warmup=3, steps=13)
    assert [lr_at(s, cfg) for s in (0, 1, 3, 12)] == [0.25, 0.5, 1.0, 1.0]
    cfg.schedule = "cosine"
    assert lr_at(3, cfg) == 1.0 and lr_at(13, cfg) == pytest.approx(0.1)
