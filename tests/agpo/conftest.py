"""A model of the shipped architecture with random weights."""

import pytest
import torch
from groups import VOCABULARY

from tools.tiny_model import make_model


@pytest.fixture(scope="module")
def start():
    torch.manual_seed(0)
    return make_model(VOCABULARY).eval()
