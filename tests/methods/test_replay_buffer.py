"""The chains that are kept, and where new ones begin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from postgrad.errors import UserError
from postgrad.methods._replay_buffer import ClassGaussians, ReplayBuffer, UniformStarts


def at_its_class(labels: Tensor) -> Tensor:
    """Chains that begin at the number of their class, a tenth of it."""
    return (labels.float() / 10)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def buffer(size: int = 40, **options: object) -> ReplayBuffer:
    settings = {"classes": 4, "reinit": 0.0}
    return ReplayBuffer(size, at_its_class, **{**settings, **options})  # type: ignore[arg-type]


@given(st.integers(0, 10), st.integers(0, 1000))
def test_chains_of_a_class_are_drawn_once_each_and_put_back(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    chains = buffer(per_class=True)
    labels = torch.randint(4, (count,))
    drawn, where = chains.draw(labels)
    torch.testing.assert_close(drawn, at_its_class(labels), atol=1e-3, rtol=0)
    assert len(where.unique()) == count
    assert torch.equal(where // 10, labels)
    chains.put(where, drawn + 0.5)
    moved = chains.state_dict()["chains"].float() - at_its_class(torch.arange(40) // 10)
    assert torch.equal(torch.nonzero(moved.flatten(1).mean(1) > 0.4).flatten(), where.sort().values)


def test_without_classes_of_their_own_any_chain_is_drawn() -> None:
    torch.manual_seed(0)
    drawn, _ = buffer().draw(torch.zeros(40, dtype=torch.int64))
    torch.testing.assert_close(drawn[:, 0, 0, 0].unique(), torch.tensor([0.0, 0.1, 0.2, 0.3]), atol=1e-3, rtol=0)


def test_some_begin_anew_as_often_as_was_said() -> None:
    torch.manual_seed(0)
    chains = buffer(4000, reinit=0.05)
    chains.put(torch.arange(4000), torch.full((4000, 1, 2, 2), 0.9))
    drawn, _ = chains.draw(torch.full((4000,), 3))
    share = float((drawn[:, 0, 0, 0] < 0.5).float().mean())
    assert 0.035 < share < 0.065
    torch.testing.assert_close(drawn[drawn < 0.5].unique(), torch.tensor([0.3]), atol=1e-6, rtol=0)


def test_stored_as_pixels_they_are_rounded_to_a_level_and_cut_to_the_range() -> None:
    chains = buffer(storage="uint8")
    values = torch.linspace(-1.2, 1.2, 160).view(40, 1, 2, 2)
    chains.put(torch.arange(40), values)
    assert chains.state_dict()["chains"].dtype == torch.uint8
    drawn, where = chains.draw(torch.zeros(40, dtype=torch.int64))
    assert (drawn - values[where].clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6


def test_the_longest_chains_are_kept_for_later() -> None:
    chains = buffer()
    chains.put(torch.tensor([7, 9]), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2))
    chains.put(torch.tensor([9]), torch.full((1, 1, 2, 2), 1.0))
    assert chains.kept(2).flatten(1)[:, 0].tolist() == [255, 128]
    assert chains.kept(100).shape == (40, 1, 2, 2)


def test_state_goes_round() -> None:
    torch.manual_seed(0)
    chains, other = buffer(per_class=True), buffer(per_class=True)
    chains.put(torch.arange(3), torch.rand(3, 1, 2, 2))
    other.load_state_dict(chains.state_dict())
    assert all(torch.equal(other.state_dict()[name], value) for name, value in chains.state_dict().items())
    with pytest.raises(UserError, match="other chains"):
        buffer(44).load_state_dict(chains.state_dict())
    with pytest.raises(UserError, match="other chains"):
        buffer(storage="uint8").load_state_dict(chains.state_dict())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="do not divide into 4 classes"):
        buffer(42, per_class=True)
    with pytest.raises(UserError, match="11 chains were asked for at once, there are 10"):
        buffer(per_class=True).draw(torch.zeros(11, dtype=torch.int64))
    with pytest.raises(UserError, match="at least one chain"):
        buffer(0)


def test_gaussian_starts_have_mean_and_covariance_of_their_class() -> None:
    torch.manual_seed(0)
    mixing = torch.tensor([[0.2, 0.1, 0.0, 0.0], [0.0, 0.1, 0.0, 0.05], [0, 0, 0.1, 0], [0.1, 0, 0, 0.1]])
    rows = torch.randn(400, 4) @ mixing + torch.tensor([0.1, -0.2, 0.0, 0.3])
    images = torch.cat([rows, torch.zeros(10, 4)]).view(-1, 1, 2, 2)
    labels = torch.tensor([1] * 400 + [0] * 10)
    starts = ClassGaussians(images, labels, classes=2, bounds=(-9.0, 9.0))
    drawn = starts(torch.ones(20_000, dtype=torch.int64)).flatten(1)
    torch.testing.assert_close(drawn.mean(0), rows.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(rows.T) + 1e-4 * torch.eye(4), atol=2e-3, rtol=0)
    assert starts(torch.zeros(500, dtype=torch.int64)).std() < 0.02  # the other class is black all over
    with pytest.raises(UserError, match="no image has the label 2"):
        ClassGaussians(images, labels, classes=3, bounds=(-1, 1))


def test_uniform_starts_fill_the_range() -> None:
    drawn = UniformStarts((1, 2, 2), bounds=(-1, 1))(torch.zeros(2000, dtype=torch.int64))
    assert drawn.min() < -0.99
    assert drawn.max() > 0.99
    assert abs(float(drawn.std()) - 1 / 3**0.5) < 0.01
