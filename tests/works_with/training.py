"""Rows to train a tiny classifier on, and what the Trainer warns of on a CPU."""

import pytest
import torch
from torch.utils.data import Dataset


OF_THE_TRAINER = [
    # It pins memory where there is an accelerator to pin it for, and says that here there is none.
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true"),
    # It has another name from some 5.x on; the old one serves both ends of the range.
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing.* is deprecated:FutureWarning"),
]


class Rows(Dataset):
    """16 rows of 3 to 8 real tokens, two labels that the first token tells."""

    def __len__(self):
        return 16

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        ids = torch.randint(5, 99, (8,), generator=generator)
        mask = torch.arange(8) < 3 + i % 6
        return {"input_ids": ids * mask, "attention_mask": mask.long(), "labels": int(ids[0] > 50)}
