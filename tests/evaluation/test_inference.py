"""Between pixels and token cells."""

import torch

from tokencutseg.evaluation.inference import downsample_mask, upsample_nearest


def test_cells_are_the_same_there_and_back():
    cells = torch.randint(2, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    pixels = upsample_nearest(cells, 32)
    assert pixels.shape == (3, 32, 32) and pixels.dtype == cells.dtype
    assert torch.equal(downsample_mask(pixels, (4, 4)), cells.float())
    assert torch.equal(pixels[:, 8:16, 24:], cells[:, 1, 3, None, None].expand(3, 8, 8))
