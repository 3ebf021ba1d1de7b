"""Every row of ALGORITHMS against an independent, slow implementation in float64, written from the paper's
equation with loops over tokens; and what its gradient must not depend on.
"""

import copy
import math
import statistics

import numpy as np
import pytest
import torch
from samples import CAP, LENGTH, REWARD, START, G, Sgd, config, flat, make, make_models, step

import tinyr1
from critic import Critic, gae, process_advantages, value_loss
from engine import rollout
from runtime.loop import State
from tasks import TaskError, rewards
from tinyr1 import ADVANTAGE, ALGORITHMS, LOSS_NORM, SURROGATE, Policy, Train, policy_loss


@pytest.fixture(scope="module")
def models():
    return make_models()


# ---------------------------------------------------------------- the slow implementation


def log_probs(model, ids, n):
    """The n tokens' log-probabilities, as a list of scalars."""
    logits = model(input_ids=ids[None, : START + n]).logits[0]
    return [logits[START + t - 1].log_softmax(-1)[ids[START + t]] for t in range(n)]


def ppo_clip(ratio, A, low, high):
    return min(ratio * A, min(max(ratio, 1 - low), 1 + high) * A)


def zscore(rewards, i):
    group = rewards[i // G * G : i // G * G + G]
    spread = statistics.stdev(group)
    return (rewards[i] - statistics.mean(group)) / (spread + 1e-6) if spread else 0.0


def leave_one_out(rewards, i):
    others = [rewards[j] for j in range(i // G * G, i // G * G + G) if j != i]
    return rewards[i] - sum(others) / len(others)


def whitened(adv):
    flat = [float(a) for row in adv for a in row]
    mean, std = statistics.fmean(flat), statistics.pstdev(flat)
    return [[(float(a) - mean) / std for a in row] for row in adv]


class Slow:
    """The samples as lists, and each algorithm's objective (to be maximised) as a sum over tokens."""

    def __init__(self, name, models, batch, aux_before):
        policy, old, ref, prm = models
        self.policy = copy.deepcopy(policy)
        ids, self.n = batch.rollout.input_ids, batch.rollout.length.tolist()
        self.pi = [log_probs(self.policy, ids[i], n) for i, n in enumerate(self.n)]
        with torch.no_grad():
            self.old = [log_probs(old[name], ids[i], n) for i, n in enumerate(self.n)]
            self.ref = [log_probs(ref, ids[i], n) for i, n in enumerate(self.n)]
        self.R, self.cfg, self.batch, self.ids = [float(r) for r in REWARD], batch.cfg, batch, ids
        self.N, self.aux = 12, aux_before

    def ratio(self, i, t):
        return torch.exp(self.pi[i][t] - self.old[i][t])

    def k1(self, i):  # of the policy that sampled
        return [float(a - b) for a, b in zip(self.old[i], self.ref[i])]

    def mean_of_sequences(self, term):
        return sum(term(i, t) / self.n[i] for i in range(self.N) for t in range(self.n[i])) / self.N

    def mean_of_tokens(self, term, rows):
        return sum(term(i, t) for i in rows for t in range(self.n[i])) / sum(self.n[i] for i in rows)

    def grpo(self):  # 2402.03300, eq. 3 and 4
        def term(i, t):
            d = self.ref[i][t] - self.pi[i][t]
            return ppo_clip(self.ratio(i, t), zscore(self.R, i), 0.2, 0.2) - 0.04 * (d.exp() - d - 1)

        return self.mean_of_sequences(term)

    def drgrpo(self):  # 2503.20783: no 1/|o|, no std
        def term(i, t):
            A = self.R[i] - statistics.mean(self.R[i // G * G : i // G * G + G])
            return ppo_clip(self.ratio(i, t), A, 0.2, 0.2)

        return sum(term(i, t) for i in range(self.N) for t in range(self.n[i])) / (self.N * CAP)

    def dapo(self):  # 2503.14476, eq. 8, 11 and 13
        rows = [i for i in range(self.N) if 0 < sum(self.R[i // G * G : i // G * G + G]) < G]
        R = [r - min(1, max(0, (n - (CAP - 4)) / 4)) for r, n in zip(self.R, self.n)]
        return self.mean_of_tokens(lambda i, t: ppo_clip(self.ratio(i, t), zscore(R, i), 0.2, 0.28), rows)

    def rloo(self):  # 2402.14740
        R = [r - 0.03 * sum(self.k1(i)) for i, r in enumerate(self.R)]
        term = lambda i, t: ppo_clip(self.ratio(i, t), leave_one_out(R, i), 0.2, 0.2)
        return sum(term(i, t) for i in range(self.N) for t in range(self.n[i])) / self.N

    def token_rewards(self, i, kl):
        rewards = [-kl * k for k in self.k1(i)]
        rewards[-1] += self.R[i]
        return rewards

    def reinforce_plus_plus(self):  # 2501.03262: return to go, whitened over the batch
        A = whitened([[sum(self.token_rewards(i, 0.01)[t:]) for t in range(n)] for i, n in enumerate(self.n)])
        return self.mean_of_tokens(lambda i, t: ppo_clip(self.ratio(i, t), A[i][t], 0.2, 0.2), range(self.N))

    def gspo(self):  # 2507.18071, eq. 5 and 7
        total = 0
        for i in range(self.N):
            s = torch.exp(sum(a - b for a, b in zip(self.pi[i], self.old[i])) / self.n[i])
            total = total + ppo_clip(s, zscore(self.R, i), 3e-4, 4e-4) / self.N
        return total

    def cispo(self):  # 2506.13585
        def term(i, t):
            weight = min(self.ratio(i, t).item(), 1.15)
            return weight * zscore(self.R, i) * self.pi[i][t]

        return self.mean_of_tokens(term, range(self.N))

    def maxrl(self):  # 2602.02710, algorithm 1; the code of the paper takes the mean over tokens
        def term(i, t):
            mean = statistics.mean(self.R[i // G * G : i // G * G + G])
            return ppo_clip(self.ratio(i, t), (self.R[i] - mean) / mean if mean else 0.0, 0.2, 0.2)

        return self.mean_of_tokens(term, range(self.N))

    def values(self, i):
        head, backbone = self.aux.head, self.aux.backbone
        hidden = backbone(input_ids=self.ids[i, None, : START + self.n[i]]).last_hidden_state[0]
        return [head(hidden[START + t - 1])[0] for t in range(self.n[i])]

    def gae(self):  # 1506.02438, eq. 16: the sum of (gamma lam)^l delta_{t+l}
        out = []
        for i, n in enumerate(self.n):
            v, r = [x.item() for x in self.values(i)] + [0.0], self.token_rewards(i, 0.05)
            delta = [r[t] + 0.9 * v[t + 1] - v[t] for t in range(n)]
            out.append([sum((0.9 * 0.8) ** k * delta[t + k] for k in range(n - t)) for t in range(n)])
        return out

    def ppo(self):
        A = whitened(self.gae())
        return self.mean_of_tokens(lambda i, t: ppo_clip(self.ratio(i, t), A[i][t], 0.2, 0.2), range(self.N))

    def prime(self):  # 2502.01456; the PRM is the one from before the step
        rows = [i for i in range(self.N) if 0.2 <= sum(self.R[i // G * G : i // G * G + G]) / G <= 0.8]
        with torch.no_grad():
            prm = [log_probs(self.batch.prm, self.ids[i], n) for i, n in enumerate(self.n)]
        r = [[0.7 * float(a - b) for a, b in zip(prm[i], self.ref[i])] for i in range(self.N)]
        mean = [statistics.fmean(x) for x in r]

        def term(i, t):
            others = statistics.fmean(mean[j] for j in range(i // G * G, i // G * G + G) if j != i)
            A = sum(0.9 ** (s - t) * (r[i][s] - others) for s in range(t, self.n[i]))
            return ppo_clip(self.ratio(i, t), A + leave_one_out(self.R, i), 0.2, 0.2)

        return self.mean_of_tokens(term, rows)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss_and_gradient_are_those_of_the_paper(name, models):
    policy, batch, aux = make(name, models)
    batch.prm = models[3]
    slow = Slow(name, models, batch, aux)
    objective = getattr(slow, name.replace("++", "_plus_plus"))()
    (-objective).backward()
    expected = torch.cat([p.grad.flatten() for p in slow.policy.parameters()])
    loss, gradient = step(policy, batch)
    assert loss == pytest.approx(-objective.item(), abs=1e-7)  # the rest is what whitening adds to std
    assert expected.norm() > 1e-2 and torch.allclose(gradient, expected, atol=1e-7)
    ratios = torch.cat([torch.stack([slow.ratio(i, t) for t in range(n)]) for i, n in enumerate(slow.n)])
    assert (ratios != 1).all()  # off-policy: the ratio matters


def test_the_clip_matters_here(models):
    for name in ("grpo", "gspo", "cispo"):
        policy, batch, _ = make(name, models)
        metrics = tinyr1.update(Sgd(policy, lr=0.0), batch, batch.cfg)
        assert 0 < metrics["clip_frac"] < 1


def test_the_critics_loss_and_gradient(models):
    """Squared error, with the clip of PPO's code; values from before the step, returns = GAE + value."""
    policy, batch, critic = make("ppo", models, value_clip=0.1)
    slow = Slow("ppo", models, batch, copy.deepcopy(critic))
    total, count, advantages = 0.0, sum(LENGTH), slow.gae()
    torch.manual_seed(9)
    for p in slow.aux.learner.module.parameters():
        p.data += 0.02 * torch.randn_like(p)  # so that the values have moved since the samples were judged
    critic.learner.module.load_state_dict(slow.aux.learner.module.state_dict())
    for i in range(12):
        for t, v in enumerate(slow.values(i)):
            old = float(batch.values[i, START + t - 1])
            ret = advantages[i][t] + old
            clipped = old + (v - old).clamp(-0.1, 0.1)
            total = total + 0.5 * torch.maximum((v - ret) ** 2, (clipped - ret) ** 2) / count
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in slow.aux.learner.module.parameters()])
    before = flat(critic.learner.module)
    metrics = critic.update(batch)
    assert metrics["value_loss"] == pytest.approx(total.item(), abs=1e-9)
    assert (
        torch.allclose(before - flat(critic.learner.module), expected, atol=1e-9) and expected.norm() > 1e-2
    )


def test_the_prms_loss_and_gradient(models):
    """2502.01456: cross-entropy of the outcome under sigma(sum of beta log(PRM / reference))."""
    prm, rows = copy.deepcopy(models[3]), [0, 1, 2, 3, 8, 9, 10, 11]
    _, batch, aux = make("prime", models)  # its PRM has made its step
    total = 0.0
    for i in rows:
        ids, n = batch.rollout.input_ids[i], LENGTH[i]
        with torch.no_grad():
            ref = log_probs(models[2], ids, n)
        odds = sum(0.7 * (a - b) for a, b in zip(log_probs(prm, ids, n), ref))
        p = torch.sigmoid(odds)
        total = total - (torch.log(p) if REWARD[i] else torch.log(1 - p)) / len(rows)
    total.backward()
    expected = torch.cat([p.grad.flatten() for p in prm.parameters()])
    assert (
        torch.allclose(flat(models[3]) - flat(aux.learner.module), expected, atol=1e-9)
        and expected.norm() > 1e-2
    )


# ---------------------------------------------------------------- what a gradient must not depend on


@pytest.mark.parametrize("name", ALGORITHMS)
def test_micro_batches_padding_order_and_ranks(name, models):
    policy, batch, aux = make(name, models, micro_tokens=10**6)
    learned = flat(aux.learner.module) if aux else torch.zeros(1)
    if aux:
        aux.update(batch)
        learned = flat(aux.learner.module)
    start, (loss, whole) = copy.deepcopy(policy), step(policy, batch)
    order = [9, 8, 11, 10, 2, 0, 3, 1, 6, 7, 4, 5]  # of the groups and of the rows within
    for more in (dict(micro_tokens=13), dict(micro_tokens=30, extra=7), dict(order=order)):
        policy, other, aux = make(name, models, **{"micro_tokens": 10**6} | more)
        if aux:
            aux.update(other)
            assert torch.allclose(flat(aux.learner.module), learned, atol=1e-12)
        again, gradient = step(policy, other)
        assert again == pytest.approx(loss, abs=1e-12) and torch.allclose(gradient, whole, atol=1e-12)
    weight = torch.zeros_like(batch.rollout.logprobs)  # ranks: rows are split, advantages and weights are not
    weight[batch.rows] = LOSS_NORM[batch.cfg.loss_norm](batch.loss_mask[batch.rows].double(), CAP)
    parts = [
        tinyr1.backward(start, batch, rows, weight, batch.cfg)[0]
        for rows in batch.rows[[*range(0, 8, 3)]].split(1)
    ]
    rest = torch.tensor([i for i in batch.rows.tolist() if i not in batch.rows[[*range(0, 8, 3)]].tolist()])
    parts.append(tinyr1.backward(start, batch, rest, weight, batch.cfg)[0])
    gradient = torch.cat([p.grad.flatten() for p in start.parameters()])
    assert sum(parts) == pytest.approx(loss, abs=1e-12) and torch.allclose(gradient, whole, atol=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_at_ratio_one_the_gradient_is_reinforce(name):
    cfg, mask = config(name), torch.tensor([[1.0, 1, 0], [1, 1, 1]], dtype=torch.float64)
    logp = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    adv = torch.tensor([[0.7], [-1.3]], dtype=torch.float64).expand(2, 3)
    if cfg.ratio == "token":
        adv = torch.randn(2, 3, dtype=torch.float64)
    weight = LOSS_NORM[cfg.loss_norm](mask, 8)
    policy_loss(logp, logp.detach(), adv, weight, cfg)[0].backward()
    assert torch.allclose(logp.grad, -adv * weight)


# ---------------------------------------------------------------- the pieces


def test_gae_against_its_extremes():
    torch.manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool)
    reward, value = torch.randn(2, 3, 5, dtype=torch.float64) * mask
    ahead = torch.cat([(value * mask)[:, 1:], torch.zeros(3, 1)], 1)
    error = (reward + 0.9 * ahead - value) * mask
    assert torch.allclose(gae(reward, value, mask, 0.9, 0.0), error)  # lambda 0: the one-step error
    out = gae(reward, value, mask, 0.9, 1.0)  # lambda 1: the return less the value
    for i, row in enumerate(mask.tolist()):
        for t in range(5):
            ret = sum(0.9 ** (s - t) * reward[i, s] for s in range(t, 5) if row[s])
            assert out[i, t].item() == pytest.approx(float(ret - value[i, t]) if row[t] else 0.0)
    assert torch.equal(gae(reward, 0 * value, mask, 1.0, 1.0)[1], reward[1].flip(0).cumsum(0).flip(0))


def test_leave_one_out_whitening_and_process_advantages_by_hand():
    assert ADVANTAGE["loo"](torch.tensor([[1.0, 0.0, 0.0]])).tolist() == [[1.0, -0.5, -0.5]]
    process = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    # means a token 2 and 2: less the other's mean, then summed from each token on
    assert process_advantages(process, mask, 2, 1.0).tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    mask = torch.ones(1, 4, dtype=torch.bool)
    values = [torch.tensor([[x]]) for x in (0.5, 0.9, 0.2)]
    assert value_loss(*values, mask[:, :1], 0.0).item() == pytest.approx(0.045)
    assert value_loss(*values, mask[:, :1], 0.1).item() == pytest.approx(0.5 * 0.6**2)  # clipped: 0.8


def test_maxrl_divides_by_the_probability_of_success():
    """One success of G weighs G-1, whatever a small mean may be; without a success there is no advantage."""
    rewards = torch.tensor([
        [1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, -0.5, -1, -1], [-0.5, -1, -1, -1], [1e-6, 0, -1, 0],
    ])  # fmt: skip
    one_in_four, none = [3.0, -1.0, -1.0, -1.0], [0.0] * 4
    expected = [one_in_four, [1 / 3, 1 / 3, 1 / 3, -1.0], none, one_in_four, none, one_in_four]
    assert torch.allclose(ADVANTAGE["relative"](rewards), torch.tensor(expected))
    random = ADVANTAGE["relative"](torch.rand(50, 8) - 0.3)
    assert random.sum(1).abs().max() < 1e-5 and random.min() >= -1 and random.max() <= 7


def test_dual_clip_and_entropy_bonus():
    logp, zero, one = torch.log(torch.tensor([[9.0, 0.5]])), torch.zeros(1, 2), torch.ones(1, 2)
    bounded, _ = policy_loss(logp, zero, -one, one, Train(clip_dual=3.0))
    assert bounded.item() == pytest.approx(3.0 + 0.8)  # instead of 9
    entropy = torch.tensor([[2.0, 1.0]], requires_grad=True)
    policy_loss(logp, logp, 0 * one, one, Train(entropy=0.1), entropy=entropy)[0].backward()
    assert torch.allclose(entropy.grad, torch.tensor([[-0.1, -0.1]]))


def test_entropy_bonus_reaches_the_weights(models):
    policy, batch, _ = make("drgrpo", models, entropy=0.5)
    with_bonus = step(policy, batch)[1]
    policy, batch, _ = make("drgrpo", models)
    weight = LOSS_NORM["constant"](batch.loss_mask.double(), CAP)
    bonus, other = 0.0, copy.deepcopy(models[0])
    for i, n in enumerate(LENGTH):
        logits = other(input_ids=batch.rollout.input_ids[i : i + 1]).logits[0].log_softmax(-1)
        for t in range(START - 1, START + n - 1):
            bonus = bonus - weight[i, t] * (logits[t].exp() * logits[t]).sum()
    bonus.backward()
    expected = step(policy, batch)[1] - 0.5 * torch.cat([p.grad.flatten() for p in other.parameters()])
    assert torch.allclose(with_bonus, expected, atol=1e-9)


def test_adaptive_kl_moves_towards_its_target():
    def after(nats_per_response):
        state = State(kl_coef=0.1)
        cfg = Train(kl=0.1, kl_target=2.0)
        metrics = {"kl": nats_per_response / 10, "tokens": 10.0}
        assert tinyr1.steer_kl(state, cfg, metrics) == {"kl_coefficient": 0.1}
        return state.kl_coef

    assert after(2.0) == pytest.approx(0.1) and after(2.2) == pytest.approx(0.101)
    # by at most 2 % per step
    assert after(99.0) == pytest.approx(0.102) and after(0.0) == pytest.approx(0.098)


def test_kl_in_the_reward_of_grpo_enters_the_z_score(models):
    _, batch, _ = make("grpo", models, kl_in="reward", kl_estimator="k1", kl=0.5)
    penalty = ((batch.old_logprobs - batch.ref_logprobs) * batch.mask).sum(1)
    R = (torch.tensor(REWARD) - 0.5 * penalty).tolist()
    for i, n in enumerate(LENGTH):
        assert torch.allclose(batch.advantages[i, 2 : 2 + n], torch.tensor(zscore(R, i)).double(), atol=1e-6)
        assert batch.advantages[i].count_nonzero() == n


def test_equal_rewards_have_no_advantage_whatever_the_rounding(models):
    for name in ("grpo", "rloo", "reinforce++"):
        _, batch, _ = make(name, models, kl=0.0)
        batch.rewards = torch.full((3, 4), 0.1)
        tinyr1.compute_advantages(batch, batch.cfg)
        assert batch.advantages.abs().max() < 1e-6


def test_metrics_are_means_over_the_tokens_of_the_loss(models):
    """With an entropy bonus every row is computed, also one without a loss: it must not count."""
    policy, batch, _ = make("grpo", models, mask_truncated=True, entropy=0.01)
    assert 0 < int(batch.loss_mask.sum()) < int(batch.mask.sum())
    entropy = batch.map(lambda *x: policy(*x)[1])[batch.loss_mask].mean().item()
    metrics = tinyr1.update(Sgd(policy), batch, batch.cfg)
    assert metrics["updated_tokens"] == int(batch.loss_mask.sum())
    assert metrics["entropy"] == pytest.approx(entropy, rel=1e-9)


def test_a_masked_row_changes_nothing(models):
    """--mask_truncated: rows cut at the cap have neither loss nor value, nor a part in the whitening."""
    _, batch, critic = make("ppo", models, mask_truncated=True)
    assert batch.loss_mask[1].sum() == 0 and batch.advantages[1].abs().sum() == 0
    adv = batch.advantages[batch.loss_mask]
    assert adv.mean().abs() < 1e-12 and adv.std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_a_head_on_shared_features_leaves_the_policy_alone(models):
    policy = Policy(copy.deepcopy(models[0]), 1.0, "fp32")
    critic = Critic(policy, config("ppo", critic="head"))
    assert critic.backbone is policy.model.base_model and len([*critic.learner.module.parameters()]) == 2
    _, batch, _ = make("ppo", models)
    before = flat(policy)
    critic.prepare(batch)
    critic.update(batch)
    assert torch.equal(flat(policy), before) and critic.head.bias.item() != 0
    assert all(p.grad is None for p in policy.parameters())


def test_a_new_algorithm_is_a_row_and_a_function(models, monkeypatch):
    """SAPO (2511.20347): a soft gate instead of the clip; nothing else changes."""

    def sapo(ratio, clipped, adv, logp):
        heat = torch.where(adv > 0, 1.0, 1.05)
        return torch.sigmoid(heat * (ratio - 1)) * 4 / heat * adv

    monkeypatch.setitem(SURROGATE, "sapo", sapo)
    monkeypatch.setitem(ALGORITHMS, "sapo", dict(adv="zscore", loss_norm="sequence", surrogate="sapo"))
    assert tinyr1.parse(["mini", "--algo", "sapo"])[0].surrogate == "sapo"
    policy, old, ref, prm = models
    gradient = step(*make("sapo", (policy, old | {"sapo": old["grpo"]}, ref, prm))[:2])[1]
    assert gradient.norm() > 1e-2


# ---------------------------------------------------------------- controls and filters


def records():
    """A right answer, a wrong one, none, and a failed verdict."""
    right = {"reward": 0.9, "correct": True}
    wrong = {"reward": 0.1, "correct": False}
    texts = ["<answer>1</answer>", "<answer>2</answer>", "1", "raise"]
    verdicts = [right, wrong, wrong, {"reward": 0.0, "correct": False}]
    return [{"completion": text, "tokens": 10, **v} for text, v in zip(texts, verdicts)]


def test_controls_replace_the_reward_and_nothing_else():
    def rewards_of(spec, rows, seed=0):
        total, _ = rewards.total(rows, Train(rewards=spec), seed)
        assert [r["correct"] for r in rows[:4]] == [True, False, False, False]
        return total.tolist()

    plain = records()
    assert rewards_of("task", plain) == pytest.approx([0.9, 0.1, 0.1, 0.0])
    assert all("task_reward" not in r for r in plain)
    assert rewards_of("format", records()) == [1, 1, 0, 0] and rewards_of("inverted", records()) == [
        0,
        1,
        1,
        1,
    ]
    many = [dict(r) for r in records() + records()[1:2] * 500]
    first, again, other = (rewards_of("random", [dict(r) for r in many], seed) for seed in (0, 0, 1))
    assert first == again != other and 0.4 < np.mean(first) < 0.6
    control = records()
    rewards_of("inverted", control)
    assert control[1]["task_reward"] == 0.1 and control[1]["reward"] == 1.0
    # what a PRM would learn from
    assert [rewards.is_correct(r) for r in control] == [False, True, True, True]


def test_rewards_add_up():
    cfg = Train(rewards="task,format:0.5,tags:0.1,overlong", max_new_tokens=20, overlong_buffer=20)
    total, components = rewards.total(records(), cfg, 0)
    assert list(components) == ["task", "format", "tags", "overlong"]
    assert components["overlong"].tolist() == pytest.approx([-0.5] * 4)
    assert components["tags"].tolist() == [0.5, 0.5, 0.0, 0.0]
    assert total.tolist() == pytest.approx([0.9 + 0.5 + 0.05 - 0.5, 0.1 + 0.5 + 0.05 - 0.5, -0.4, -0.5])


@pytest.mark.parametrize("spec", ["nothing", "task:x", "task,task", "task:nan", "task:0", ""])
def test_a_bad_sum_of_rewards_is_refused(spec):
    with pytest.raises(TaskError):
        rewards.parse(spec)


def test_filters_of_groups():
    results = [{"reward": r, "correct": r == 1} for r in (1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0.1, 0, 0, 0)]
    kept = lambda **options: tinyr1.passes_filters(results, Train(group=4, **options)).tolist()
    assert kept() == [True] * 4 and kept(filter_groups=True) == [True, False, False, True]
    assert kept(min_pass_rate=0.2) == [True, False, True, False]
    assert kept(min_pass_rate=0.2, max_pass_rate=0.8) == [True, False, False, False]
    assert tinyr1.dead_groups(results, 4).tolist() == [False, True, True, False]


def test_join_pads_to_the_longest():
    def part(n, width):
        ids = torch.arange(n * width).view(n, width)
        return rollout.Rollout(
            ids,
            torch.full((n,), 2),
            torch.full((n,), width - 2),
            torch.ones(n, width - 1),
            torch.ones(n, dtype=torch.bool),
            3,
        )

    joined = rollout.join([part(2, 5), part(1, 7)])
    assert joined.input_ids.shape == (3, 7) and joined.logprobs.shape == (3, 6) and joined.steps == 6
    assert joined.mask.sum(1).tolist() == [3, 3, 5] and joined.input_ids[2].tolist() == list(range(7))
    assert math.isclose(joined.logprobs.sum(), 8 + 6)
