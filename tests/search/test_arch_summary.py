"""The summary of the paper's own architecture is the paper's."""

import json
from dataclasses import asdict

import pytest

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig, uniform_blocks
from glocal.models.glit import NAMED_CONFIGS
from glocal.search.arch_summary import summarize_architecture


def test_the_released_architecture_is_summarized_as_in_the_paper():
    summary = summarize_architecture(NAMED_CONFIGS["glit-tiny"].blocks, kernel_sizes=[17, 31, 45])
    assert summary.global_heads == (3, 0, 1, 3, 0, 1, 3, 1, 0, 3, 0, 3)
    assert summary.mixed_share == 0.25
    assert summary.kernel_sizes == {17: 0, 31: 5, 45: 2}
    assert summary.alternation == 1.0
    assert summary.global_share_by_half == (pytest.approx(8 / 18), pytest.approx(10 / 18))
    said = summary.sentences()
    assert "25% are mixed" in said[0]
    assert said[0].endswith("mixed 3, all global 5, all local 4.")
    assert "17 in none, 31 in 5, 45 in 2" in said[1]
    assert "11 of 11 pairs" in said[2]
    assert said[4] == "The first block with only global heads is block 0, the last block 11."
    assert json.loads(json.dumps(asdict(summary)))["kinds"][:3] == ["global", "local", "mixed"]


def test_a_standard_transformer_has_no_kernels_and_no_turns():
    summary = summarize_architecture(uniform_blocks(4, embed_dim=12, num_heads=3))
    assert summary.kernel_sizes == {}
    assert summary.alternation == 0.0
    assert summary.global_share_by_half == (1.0, 1.0)
    assert not any("ernel" in sentence for sentence in summary.sentences())


def test_one_block_has_no_neighbours():
    summary = summarize_architecture([BlockConfig(embed_dim=12, num_heads=3, local_heads=3)])
    assert summary.alternation is None
    assert summary.global_share_by_half == (0.0, 0.0)
    assert len(summary.sentences()) == 3


def test_an_odd_block_belongs_to_both_halves():
    found = [BlockConfig(embed_dim=8, num_heads=2, local_heads=n) for n in (0, 1, 2)]
    assert summarize_architecture(found).global_share_by_half == (0.75, 0.25)


def test_no_blocks_are_an_error():
    with pytest.raises(GlocalError, match="no blocks"):
        summarize_architecture([])
