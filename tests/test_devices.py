"""Devices by name."""

from __future__ import annotations

import pytest
import torch

from postgrad.devices import pick_device
from postgrad.errors import UserError


def test_auto_is_a_device_of_this_machine():
    assert torch.zeros(1, device=pick_device("auto")).device.type == pick_device().type
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu0", "", "cuda:x", "meta", "vulkan"])
def test_unknown_devices(name):
    with pytest.raises(UserError, match=f"unknown device '{name}'; write auto, cpu, cuda, cuda:1 or mps"):
        pick_device(name)


def test_devices_that_are_not_here():
    with pytest.raises(UserError, match="device 'cuda:99' is not on this machine"):
        pick_device("cuda:99")
