"""Log-probs and entropy against float64 log_softmax, values and gradients (one rank).

Where the output matrix is the identity, hidden states are the logits and have their gradients.
"""

from __future__ import annotations

import pytest
import torch

from herl_megatron.algos.log_probs import LogitBuffer, token_log_probs

TOKENS, VOCAB, PADDED = 37, 515, 640


def _reference(
    logits: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """float64 log-probs, entropy and d(sum of weighted both)/d logits, padding sliced away."""
    exact = logits.double().requires_grad_()
    log_p = torch.log_softmax(exact[..., :VOCAB] / temperature, dim=-1)
    log_probs = log_p.gather(-1, targets[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    weights = _weights(targets)
    (grad,) = torch.autograd.grad((log_probs * weights[0] + entropy * weights[1]).sum(), exact)
    return log_probs.detach(), entropy.detach(), grad


def _weights(targets: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, *targets.shape, generator=generator, dtype=torch.float64)


def _case(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(TOKENS, PADDED, generator=generator) * 6
    logits[5, 7] = 90.0  # one nearly certain token
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    targets[0], targets[1] = 0, VOCAB - 1
    return logits.to(dtype), targets


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 10, 1024])
def test_values_and_gradients_equal_float64(temperature: float, chunk_tokens: int) -> None:
    logits, targets = _case(torch.float32)
    want_log_probs, want_entropy, want_grad = _reference(logits, targets, temperature)
    before = logits.clone()
    logits.requires_grad_()
    log_probs, entropy = token_log_probs(
        logits,
        torch.eye(PADDED),
        targets,
        vocab_size=VOCAB,
        temperature=temperature,
        buffer=LogitBuffer(chunk_tokens),
    )
    weights = _weights(targets)
    assert entropy is not None
    (log_probs * weights[0] + entropy * weights[1]).sum().backward()
    assert (log_probs - want_log_probs).abs().max() < 1e-5
    assert (entropy - want_entropy).abs().max() < 1e-5
    assert logits.grad is not None
    assert (logits.grad - want_grad).abs().max() < 1e-5
    assert torch.equal(logits.detach(), before)
    assert (logits.grad[:, VOCAB:] == 0).all()


def test_log_probs_of_a_uniform_distribution() -> None:
    logits = torch.full((2, 3, 8), 4.0)
    log_probs, entropy = token_log_probs(
        logits, torch.eye(8), torch.zeros(2, 3, dtype=torch.long), vocab_size=5
    )
    assert torch.allclose(log_probs, torch.full((2, 3), -1.6094379), atol=1e-6)  # -log 5
    assert entropy is not None and torch.allclose(entropy, torch.full((2, 3), 1.6094379), atol=1e-6)


def test_without_entropy_the_gradient_is_that_of_the_log_probs() -> None:
    logits, targets = _case(torch.float64)
    logits.requires_grad_()
    log_probs, entropy = token_log_probs(
        logits, torch.eye(PADDED).double(), targets, vocab_size=VOCAB, with_entropy=False
    )
    assert entropy is None
    (grad,) = torch.autograd.grad(log_probs.sum(), logits)
    p = torch.softmax(logits.detach()[:, :VOCAB], dim=-1)
    want = torch.nn.functional.one_hot(targets, VOCAB) - p
    assert (grad[:, :VOCAB] - want).abs().max() < 1e-12


def test_bf16_logits_lose_nothing_in_the_sums() -> None:
    logits, targets = _case(torch.bfloat16)
    want_log_probs, want_entropy, want_grad = _reference(logits, targets, 1.0)
    logits.requires_grad_()
    log_probs, entropy = token_log_probs(
        logits, torch.eye(PADDED).bfloat16(), targets, vocab_size=VOCAB
    )
    assert log_probs.dtype is torch.float32
    assert (log_probs - want_log_probs).abs().max() < 1e-5
    assert entropy is not None and (entropy - want_entropy).abs().max() < 1e-5
    weights = _weights(targets)
    assert entropy is not None
    (log_probs * weights[0] + entropy * weights[1]).sum().backward()
    assert logits.grad is not None
    # Only the gradient itself is rounded to bf16: 8 bits of mantissa.
    assert ((logits.grad - want_grad).abs() <= want_grad.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("chunk_tokens", [10, 1024])
def test_fp32_logits_of_bf16_states_are_rounded_nowhere(chunk_tokens: int) -> None:
    """Products of bf16 numbers are exact in float32, so only its sums round; bf16 logits of up to
    some 20 are 1/16 apart."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, 64, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(PADDED, 64, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    z = (hidden.double() @ weight.double().t())[:, :VOCAB]
    want = z.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    p = z.softmax(-1)
    slopes = _weights(targets)[0]
    grad = slopes[:, None] * (torch.nn.functional.one_hot(targets, VOCAB) - p)
    want_hidden, want_weight = grad @ weight.double()[:VOCAB], grad.t() @ hidden.double()

    errors = {}
    for fp32_logits in (False, True):
        log_probs, _ = token_log_probs(
            hidden, weight, targets, vocab_size=VOCAB, with_entropy=False,
            buffer=LogitBuffer(chunk_tokens, fp32_logits),
        )  # fmt: skip
        errors[fp32_logits] = (log_probs - want).abs().mean()
    assert errors[True] < 1e-5 < 1e-3 < errors[False]
    got_hidden, got_weight = torch.autograd.grad((log_probs * slopes).sum(), (hidden, weight))
    assert got_hidden.dtype is got_weight.dtype is torch.bfloat16
    for got, expected in ((got_hidden, want_hidden), (got_weight[:VOCAB], want_weight)):
        assert (got - expected).abs().max() < 2**-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [5, 64])
def test_gradients_of_both_factors_equal_float64(dtype: torch.dtype, chunk_tokens: int) -> None:
    """With logits kept (64) and computed again (5), and padding rows that get no gradient."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(TOKENS, 24, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(PADDED, 24, generator=generator).to(dtype).requires_grad_()
    _, targets = _case(dtype)
    log_probs, entropy = token_log_probs(
        hidden, weight, targets, vocab_size=VOCAB, temperature=0.7, buffer=LogitBuffer(chunk_tokens)
    )
    weights = _weights(targets)
    assert entropy is not None
    (log_probs * weights[0] + entropy * weights[1]).sum().backward()
    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    log_p = torch.log_softmax(exact_hidden @ exact_weight[:VOCAB].t() / 0.7, dim=-1)
    want = log_p.gather(-1, targets[:, None])[:, 0]
    want_entropy = -(log_p.exp() * log_p).sum(-1)
    (want * weights[0] + want_entropy * weights[1]).sum().backward()
    limit = 1e-5 if dtype is torch.float32 else 2**-6  # bf16 rounds logits of 16 by up to 2^-5
    for got, expected in ((hidden.grad, exact_hidden.grad), (weight.grad, exact_weight.grad)):
        assert got is not None and expected is not None
        assert (got - expected).norm() < limit * expected.norm()
    assert weight.grad is not None and (weight.grad[VOCAB:] == 0).all()


def test_weight_gradient_is_summed_in_float32() -> None:
    """800 equal parts of 1/2: added up in bf16 they would stop growing at 128."""
    tokens = 800
    hidden = torch.ones(tokens, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    log_probs, _ = token_log_probs(hidden, weight, targets, vocab_size=2, buffer=LogitBuffer(1))
    log_probs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [400.0, -400.0]  # (1 - 1/2) a token


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 8\) do not fit targets \(3,\)"):
        token_log_probs(
            torch.zeros(2, 8), torch.eye(8), torch.zeros(3, dtype=torch.long), vocab_size=8
        )
    with pytest.raises(ValueError, match="temperature is 0"):
        token_log_probs(
            torch.zeros(2, 8),
            torch.eye(8),
            torch.zeros(2, dtype=torch.long),
            vocab_size=8,
            temperature=0.0,
        )
