"""Which samples share a row, where they stand in it, and whether a model lets them."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlreason.forward import packable, read, token_entropy, token_logprobs
from rlreason.packing import OWN, area, cut_packed, cut_padded, deal, dearer, layout, pack, width
from rlreason.types import micro_batches

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)
VOCABULARY = 11


@pytest.mark.parametrize(
    ("count", "expected"),  # lengths 3, 8, 5, 4, 4
    [
        (1, [[1, 2, 3, 4, 0]]),
        (2, [[1, 4], [2, 3, 0]]),  # 8 + 4, and 5 + 4 + 3
        (3, [[1], [2, 0], [3, 4]]),  # 8, 5 + 3, 4 + 4
        (5, [[1], [2], [3], [4], [0]]),
    ],
)
def test_the_longest_goes_first_and_into_the_emptiest_row(count, expected):
    assert deal([3, 8, 5, 4, 4], count) == expected


def test_where_tokens_stand_by_hand():
    """Rows of five: samples of 3 and 2; and one of 4, with one of padding."""
    positions, cells = layout([[0, 2], [1]], [3, 4, 2])
    assert positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]
    assert cells.tolist() == [[0, 1, 2, 10], [5, 6, 7, 8], [3, 4, 10, 10]]


@pytest.mark.parametrize(
    ("lengths", "hidden", "expected"),
    [
        ([8, 5, 4, 4, 3], 64, 3),  # 3 rows of 8 are full; 2 rows of 12 are no smaller, and dearer
        ([50, 40, 30, 20], 4096, 2),  # 2 rows of 70 are full; 3 of 50 are larger
        ([50, 40, 30, 20], 4, 3),  # where attention is nearly all, rows stay narrow
        ([30, 30, 30], 4096, 3),  # nothing to gain
    ],
)
def test_rows_are_full_but_no_wider_than_pays(lengths, hidden, expected):
    assert len(pack(lengths, hidden)) == expected


def test_attention_costs_as_much_as_all_else_in_rows_of_six_hidden_sizes():
    assert dearer(768, 128) == 1


@given(lengths=LENGTHS, hidden=st.sampled_from([4, 64, 4096]))
def test_every_sample_stands_in_one_row_and_no_row_is_overfull(lengths, hidden):
    rows = pack(lengths, hidden)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= width(rows, lengths) for row in rows)
    assert sum(lengths) <= area(rows, lengths) <= max(lengths) * len(lengths) * (1 + dearer(max(lengths), hidden))
    positions, cells = layout(rows, lengths)
    assert positions.size == area(rows, lengths)
    for i, length in enumerate(lengths):
        assert positions.flat[cells[i, :length]].tolist() == list(range(length))
        assert (cells[i, length:] == positions.size).all()
    used = [cell for i, length in enumerate(lengths) for cell in cells[i, :length]]
    assert len({*used}) == len(used), "no two tokens in one cell"


def test_a_cut_pays_when_it_saves_more_than_a_micro_batch_costs():
    budget = 10 * OWN  # so a micro-batch costs ten tokens of its own
    assert cut_padded([20, 20, 19, 9, 9], budget) == [3, 2]
    assert cut_padded([20, 20, 19, 16, 16], budget) == [5], "two rows of four tokens of padding are cheaper"
    assert sorted(cut_padded([500, 500, 500, 2], budget)) == [1, 1, 2], "three of 500 are more than the budget"
    assert cut_padded([900, 1], budget) == [1, 1]
    assert cut_padded([], budget) == []


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8), budget=st.integers(1, 300))
def test_no_other_cut_of_padded_micro_batches_is_cheaper(lengths, budget):
    lengths = sorted(lengths, reverse=True)

    def cost(sizes):
        total, start = 0.0, 0
        for size in sizes:
            area = lengths[start] * size
            total += float("inf") if size > 1 and area > budget else area + budget / OWN
            start += size
        return total

    def cuts(count):
        return [[first, *rest] for first in range(1, count + 1) for rest in cuts(count - first)] if count else [[]]

    assert cost(cut_padded(lengths, budget)) == pytest.approx(min(map(cost, cuts(len(lengths)))))


@given(lengths=LENGTHS, ranks=st.integers(1, 4), budget=st.integers(1, 300), hidden=st.sampled_from([4, 64, 4096]))
def test_packed_micro_batches_keep_to_the_budget_on_every_rank(lengths, ranks, budget, hidden):
    plan = micro_batches(lengths, ranks, budget, partial(cut_packed, hidden=hidden))
    assert sorted(i for rank in plan for rows in rank for i in rows) == list(range(len(lengths)))
    assert len({len(rank) for rank in plan}) == 1, "under ZeRO-3 every rank makes as many forward passes"
    for rows in (rows for rank in plan for rows in rank if len(rows) > 1):
        own = [lengths[i] for i in rows]
        assert area(pack(own, hidden), own) <= budget


@pytest.mark.parametrize(("shortest", "longest"), [(25, 50), (40, 48), (200, 2000)])
def test_packing_leaves_little_padding_and_fewer_micro_batches(shortest, longest):
    lengths = torch.randint(shortest, longest + 1, (256,), generator=torch.Generator().manual_seed(0)).tolist()
    budget = 4 * longest * 10
    padded, packed = (micro_batches(lengths, 1, budget, *how)[0] for how in ([], [partial(cut_packed, hidden=4096)]))
    wide = sum(max(lengths[i] for i in rows) * len(rows) for rows in padded)
    full = sum(area(pack(own, 4096), own) for own in ([lengths[i] for i in rows] for rows in packed))
    assert len(packed) < len(padded)
    assert sum(lengths) < full < 1.01 * wide
    assert 1 - sum(lengths) / full < 0.05


def causal(tokens, positions, blind=True, look=1.0):
    """Logits that go by the mean of all tokens before, of the sample alone if `blind`; else `look` of the last one too."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))
    rows, length = tokens.shape
    plain = torch.arange(length).expand(rows, length)
    positions = plain if positions is None else positions
    start = plain - positions
    seen = (start[:, :, None] == start[:, None, :]) & torch.ones(length, length).tril().bool()
    weights = seen / seen.sum(-1, keepdim=True)
    if not blind:  # the first token of a sample sees the last of the one before
        edge = torch.zeros(rows, length, length)
        edge[:, 1:, :-1] = torch.diag_embed((positions[:, 1:] == 0).float())
        weights = weights + look * edge
    return weights @ table[tokens]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (causal, True),
        (lambda tokens, positions: causal(tokens, None), False),  # does not know of positions
        (lambda tokens, positions: causal(tokens, None if positions is None else 0 * tokens), False),  # gets wrong ones
        (partial(causal, blind=False), False),
        (partial(causal, blind=False, look=0.01), False),  # a token looks at one neighbour, and hardly
    ],
)
def test_a_model_that_lets_packed_samples_see_each_other_is_told(model, expected):
    about = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))
    assert packable(model, about, 1e-3, torch.device("cpu")) is expected


@pytest.mark.parametrize("kind", ["conv", "linear_attention", "chunked_attention"])
def test_layers_that_go_by_more_than_positions_are_told_by_their_name(kind):
    about = SimpleNamespace(vocab_size=VOCABULARY, layer_types=["full_attention", kind])
    assert not packable(causal, SimpleNamespace(get_text_config=lambda: about), 1e-3, torch.device("cpu"))


def test_what_is_read_of_packed_samples_is_what_is_read_of_each_alone():
    lengths, temperature = [9, 4, 5, 1, 7], 0.7
    tokens = torch.zeros(5, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(row))
    logp, entropy, size = read(causal, tokens, lengths, temperature, hidden=64, entropy=True)
    assert size == 26, "two rows of 13: 9 + 4, and 7 + 5 + 1"
    for row, length in enumerate(lengths):
        own = tokens[row : row + 1, :length]
        alone = causal(own, None)
        assert logp[row, :length].tolist() == pytest.approx(token_logprobs(alone, own, temperature)[0].tolist(), abs=1e-5)
        assert entropy[row, :length].tolist() == pytest.approx(token_entropy(alone, temperature)[0].tolist(), abs=1e-5)
        assert not logp[row, length:].any()
        assert not entropy[row, length:].any()
