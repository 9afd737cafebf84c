"""Tokens from logits: the distribution function inverted whatever the width, and the nucleus without sorting."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from evals.engines import Sampling
from evals.engines.sampling import CACHED_ELEMENTS, gumbels, invert, nucleus, sample, uniforms


def test_uniforms_of_a_row_depend_on_its_seed_only():
    assert (uniforms([1, 2, 3], 5)[2] == uniforms([3], 9)[0, :5]).all()


@pytest.mark.parametrize("width", [1, 5, 512, 513, 2000, 49_152])
def test_inverting_by_blocks_is_inverting_the_whole_distribution_function(width):
    weight = torch.from_numpy(np.random.default_rng(width).random(width) ** 8).float().expand(200, -1)
    uniform = torch.from_numpy(np.random.default_rng(0).random(200))
    cdf = weight[0].double().cumsum(0)
    wanted = torch.searchsorted(cdf, uniform * cdf[-1], right=True)
    got = invert(weight, uniform)
    # float32 block sums may move an edge by 1e-6 of the mass: a neighbour then, and only at an edge
    assert ((got - wanted).abs() <= 1).all()
    assert (got == wanted).float().mean() > 0.98


@pytest.mark.parametrize("width", [300, 49_152])
def test_an_index_without_weight_is_never_drawn(width):
    weight = torch.zeros(4, width)
    weight[:, [7, 250]] = torch.tensor([1e-30, 1.0])
    edges = torch.tensor(
        [0.0, 1e-31, 0.5, 1.0], dtype=torch.float64
    )  # 1 is what rounding can make of the largest number
    assert invert(weight, edges).tolist() == [7, 7, 250, 250]


def test_draws_from_a_large_vocabulary_follow_the_softmax():
    """Chi-square over 20,000 draws of one row, 3,000 tokens, in bins of about equal mass."""
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=3000) * 3).float()
    uniform = torch.from_numpy(uniforms(range(20_000), 1)[:, 0])
    drawn, logp, entropy = sample(logits.expand(20_000, -1), Sampling(1, 0.8), uniform)
    exact = (logits.double() / 0.8).log_softmax(-1)
    assert torch.allclose(logp, exact[drawn].float(), atol=1e-5)
    assert torch.allclose(entropy.double(), -(exact.exp() * exact).sum(), atol=1e-4)
    bins = (exact.exp().cumsum(0) * 50).long().clamp(max=49)
    expected = torch.zeros(50, dtype=torch.float64).index_add_(0, bins, exact.exp())
    observed = torch.bincount(bins[drawn], minlength=50).double()
    some = expected > 1e-3
    share = observed[some] / observed[some].sum()
    assert chisquare(share * 20_000, expected[some] / expected[some].sum() * 20_000).pvalue > 1e-3


def test_entropy_with_tokens_that_cannot_be_drawn():
    logits = torch.tensor([[0.0, 0.0, -torch.inf, 0.0, 0.0], [-torch.inf, 7e4, -torch.inf, 0.0, 1.0]])
    _, _, entropy = sample(logits, Sampling(1, 0.0), None)
    assert entropy.tolist() == pytest.approx([np.log(4), 0.0], abs=1e-6)


def test_a_row_is_drawn_alike_in_any_company():
    width = 3000
    logits = torch.randn(2 * CACHED_ELEMENTS // width + 3, width, generator=torch.Generator().manual_seed(0)) * 4
    uniform = torch.from_numpy(uniforms(range(len(logits)), 1)[:, 0])
    for sampling in (Sampling(1), Sampling(1, 0.7), Sampling(1, 1.0, 0.9)):
        tokens, logps, _ = sample(logits, sampling, uniform)
        for row in (0, 1, len(logits) // 2, len(logits) - 1):
            token, logp, _ = sample(logits[row : row + 1], sampling, uniform[row : row + 1])
            assert token[0] == tokens[row]
            assert torch.allclose(logp[0], logps[row], atol=1e-5)


def test_greedy_is_the_argmax_and_half_precision_is_read_as_float():
    logits = torch.randn(3, 700, generator=torch.Generator().manual_seed(0)).bfloat16()
    token, logp, _ = sample(logits, Sampling(1, 0.0), None)
    assert torch.equal(token, logits.argmax(-1))
    assert torch.allclose(logp, logits.float().log_softmax(-1).amax(-1), atol=1e-6)


def test_nucleus_keeps_the_smallest_set_that_reaches_the_mass():
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    assert nucleus(p, 0.7).tolist() == [[0.0, 0.5, 0.0, 0.25]]
    assert nucleus(4 * p, 0.5).tolist() == [[0.0, 2.0, 0.0, 0.0]]
    uniform = torch.tensor([0.0, 0.4, 0.6, 0.7, 0.999], dtype=torch.float64)
    tokens, logp, _ = sample(p.log().expand(5, -1), Sampling(1, 1.0, 0.7), uniform)
    assert set(tokens.tolist()) == {1, 3}
    assert torch.allclose(logp.exp(), p[0, tokens])  # of the distribution before the cut
    for k, kept in ((1, {1}), (3, {1, 2, 3}), (4, {0, 1, 2, 3}), (9, {0, 1, 2, 3})):
        tokens, logp, _ = sample(p.log().expand(5, -1), Sampling(1, top_k=k), uniform)
        assert set(tokens.tolist()) == {t for t in kept if t != 0 or k > 3}
        assert torch.allclose(logp.exp(), p[0, tokens])


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
def test_nucleus_is_what_sorting_finds(top_p, spread):
    weight = (torch.randn(20, 1000, generator=torch.Generator().manual_seed(3)) * spread).exp()
    ordered, order = weight.double().sort(-1, descending=True)
    needed = ordered.cumsum(-1) - ordered < top_p * ordered.sum(-1, keepdim=True)
    wanted = torch.zeros_like(weight).scatter(1, order, (ordered * needed).float())
    differing = (nucleus(weight, top_p) != wanted).sum(-1)
    assert differing.max() <= 1  # a token exactly at the edge, by float32 rounding
    assert (differing == 0).float().mean() >= 0.9
    assert nucleus(torch.tensor([[0.0, 1.0, 0.0]]), 0.5).tolist() == [[0.0, 1.0, 0.0]]


def test_nucleus_tells_weights_apart_that_differ_in_their_last_bit():
    weight = (1 + torch.randperm(100, generator=torch.Generator().manual_seed(0)) * 2.0**-23)[None]
    assert (nucleus(weight, 0.5) > 0).sum() == 50
    assert (nucleus(torch.ones(1, 10), 0.3) > 0).all()  # none of them is more probable than the others


@pytest.mark.parametrize("width", [20, 50_000])
def test_logits_that_are_no_numbers_give_a_token_whose_log_probability_is_none_either(width):
    token_B, logp_B, _ = sample(torch.full((2, width), float("nan")), Sampling(1), torch.tensor([0.1, 0.9]).double())
    assert all(0 <= token < width for token in token_B.tolist())
    assert logp_B.isnan().all()


def test_a_gumbel_number_depends_on_seed_position_and_token_alone():
    whole = gumbels([1, 2, 3], 7, 500)
    assert (whole[2, :40] == gumbels([3], 7, 40)[0]).all()
    assert not (whole[2] == gumbels([3], 8, 500)[0]).any()
    assert not (np.exp(-np.exp(-whole[0, :4])) == uniforms([1], 4)[0]).any()


def test_two_models_with_the_same_gumbel_numbers_part_only_as_far_as_they_differ():
    """Each draws from its own distribution; the same token in at least (1 - TV) / (1 + TV) of the draws."""
    rng, draws = np.random.default_rng(0), 20_000
    logits = torch.from_numpy(rng.normal(size=(2, 30)))
    logits[1] = logits[0] + 0.3 * logits[1]
    noise = torch.from_numpy(gumbels(range(draws), 0, 30))
    tokens = [sample(one.expand(draws, -1), Sampling(1), noise)[0] for one in logits]
    for one, drawn in zip(logits, tokens, strict=True):
        assert chisquare(np.bincount(drawn, minlength=30), one.softmax(-1).numpy() * draws).pvalue > 1e-3
    p, q = logits.softmax(-1)
    apart = float((p - q).abs().sum() / 2)
    agree = float((tokens[0] == tokens[1]).double().mean())
    assert (1 - apart) / (1 + apart) - 0.01 < agree < 1 - apart + 0.01
    cut, _, _ = sample(logits[:1].expand(draws, -1), Sampling(1, top_k=3), noise)
    assert set(cut.tolist()) == set(logits[0].topk(3).indices.tolist())
