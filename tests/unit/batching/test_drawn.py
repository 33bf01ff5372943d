"""Tokens that the policy was told: context in every tensor, and without a gradient."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from herl_megatron.algos.losses import importance_ratio, ppo_clip_loss
from herl_megatron.algos.reductions import LossAggregation, token_weights, weighted_sum
from herl_megatron.batching.context_parallel import ContextRank
from herl_megatron.batching.pack import MicroBatch, pack, unpack
from herl_megatron.batching.shards import Shard, make_shards
from herl_megatron.batching.token_values import policy_tokens
from herl_megatron.config.schema import MegatronConfig
from herl_megatron.types import TrainRow

# Every token of the two rows is another one, so that a token names its place.
TALK = TrainRow(
    prompt_id="talk",
    context_token_ids=np.array([1, 2], np.int32),
    response_token_ids=np.array([3, 4, 5, 6, 7, 8], np.int32),
    rollout_log_probs=np.array([-0.1, -0.2, -0.3], np.float32),
    reward=1.0,
    advantage=0.5,
    old_log_probs=np.array([-1, -2, -3], np.float32),
    drawn=np.array([True, True, False, False, False, True]),
)
PLAIN = TrainRow(
    prompt_id="plain",
    context_token_ids=np.array([11], np.int32),
    response_token_ids=np.array([12, 13], np.int32),
    rollout_log_probs=np.array([-0.4, -0.5], np.float32),
    reward=0.0,
    advantage=-2.0,
    old_log_probs=np.array([-4, -5], np.float32),
)
VOCAB = 16


def shard() -> Shard[TrainRow]:
    (only,) = make_shards([TALK, PLAIN], megatron=MegatronConfig(micro_batch_tokens=64))
    return only


def packed(shard: Shard[TrainRow], *, packing: bool, cp: tuple[int, int] = (0, 1)) -> MicroBatch:
    (places,) = shard.micro_batches
    return pack(
        shard, places, packing=packing, multiple=4, device=torch.device("cpu"),
        context=ContextRank(*cp),
    )  # fmt: skip


def test_denominators_count_what_was_drawn() -> None:
    assert (shard().loss_tokens, shard().loss_rows) == (3 + 2, 2)


@pytest.mark.parametrize("packing", [False, True])
def test_what_was_told_is_in_the_input_and_predicted_by_nobody(packing: bool) -> None:
    batch = packed(shard(), packing=packing)
    assert batch.row_tokens.tolist() == [3, 2]
    assert batch.targets.tolist() == [3, 4, 8, 12, 13]
    # Each target is read where the token before it stands, a told one before the last turn.
    assert batch.input_ids.T.flatten()[batch.logit_index].tolist() == [2, 3, 7, 11, 12]
    assert set(range(1, 9)) <= set(batch.input_ids.flatten().tolist())
    tokens = policy_tokens(shard(), batch)
    assert tokens.advantages.tolist() == [0.5] * 3 + [-2] * 2
    assert tokens.rollout_log_probs.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5])
    assert tokens.old_log_probs is not None
    assert tokens.old_log_probs.tolist() == [-1, -2, -3, -4, -5]
    values = batch.whole(torch.arange(5.0))
    assert [row.tolist() for row in unpack(batch, values)] == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize("packing", [False, True])
def test_context_parallel_ranks_share_what_was_drawn(packing: bool) -> None:
    ranks = [packed(shard(), packing=packing, cp=(rank, 2)) for rank in (0, 1)]
    places = sorted(place for rank in ranks for place in rank.token_place.tolist())
    assert places == [0, 1, 2, 3, 4]
    targets = {
        place: target
        for rank in ranks
        for place, target in zip(rank.token_place.tolist(), rank.targets.tolist(), strict=True)
    }
    assert [targets[place] for place in range(5)] == [3, 4, 8, 12, 13]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_told_tokens_have_no_gradient(packing: bool, aggregation: LossAggregation) -> None:
    """A model whose logits after token t are row t of a matrix: the row of a token that precedes
    told tokens alone must stay as it is, and a row before a drawn one moves by
    -A w (onehot(target) - softmax), by hand, with w = 1/5 or 1/(2 n)."""
    matrix = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0))
    matrix.requires_grad_()
    step = shard()
    batch = packed(step, packing=packing)
    logits = matrix[batch.input_ids.T.flatten()][batch.logit_index]
    log_probs = logits.log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    weights = batch.spread(
        token_weights(
            aggregation, row_tokens=batch.row_tokens, loss_tokens=step.loss_tokens,
            loss_rows=step.loss_rows,
        )
    )  # fmt: skip
    ratio = importance_ratio(log_probs, log_probs.detach())
    advantages = policy_tokens(step, batch).advantages
    values, _ = ppo_clip_loss(ratio, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    loss = weighted_sum(values, weights)
    loss.backward()
    mean = aggregation == "token_mean"
    wanted = torch.zeros(VOCAB, VOCAB)
    for before, target, advantage, weight in (
        (2, 3, 0.5, 1 / 5 if mean else 1 / 6),
        (3, 4, 0.5, 1 / 5 if mean else 1 / 6),
        (7, 8, 0.5, 1 / 5 if mean else 1 / 6),
        (11, 12, -2.0, 1 / 5 if mean else 1 / 4),
        (12, 13, -2.0, 1 / 5 if mean else 1 / 4),
    ):
        onehot = torch.eye(VOCAB)[target]
        wanted[before] = -advantage * weight * (onehot - matrix.detach()[before].softmax(-1))
    assert matrix.grad is not None
    torch.testing.assert_close(matrix.grad, wanted)
    # 4, 5 and 6 are read, but predict 5, 6 and 7, which the policy was told.
    assert matrix.grad[[4, 5, 6]].abs().max() == 0
    total = 3 * 0.5 / 5 - 2 * 2 / 5 if mean else 0.5 / 2 - 2 / 2
    assert loss.item() == pytest.approx(-total)


def test_rows_whose_log_probs_are_not_of_the_drawn_tokens_are_refused() -> None:
    config = MegatronConfig(micro_batch_tokens=64)
    whole = replace(TALK, rollout_log_probs=np.zeros(6, np.float32))
    with pytest.raises(ValueError, match=r"'talk' has 3 response tokens but log-probs of \[6, 3\]"):
        make_shards([whole], megatron=config)
    nothing = replace(TALK, drawn=np.zeros(6, bool))
    with pytest.raises(ValueError, match="'talk' has 2 context and 0 response tokens"):
        make_shards([nothing], megatron=config)
