"""Stages over several networks: what they read, how they are trained, and that they are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from postgrad.controls.features import penultimate
from postgrad.data.datasets import Images
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.gradients.api import per_sample_gradients
from postgrad.studies.worth_recipe import StageConfig
from postgrad.studies.worth_stage import CentredLogits, Source, Stage, _Reader
from postgrad.training import make_fabric

CLASSES = 3
RAW = StageConfig(select=None, normalise="none", hidden=(3, 2))


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, CLASSES)).eval()


def pictures(count: int, seed: int = 0) -> Images:
    """Images whose class is where they are bright, so that something can be learnt."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 4, 4), generator=generator)
    images[torch.arange(count), 0, labels] += 150
    return Images(images.to(torch.uint8), labels)


def stage(config: StageConfig, base: nn.Module) -> Stage:
    return Stage(config, base, Preprocessing(), Augmentation(), example=pictures(3).images, memory="1GB")


def plain(base: nn.Module, images: Tensor, labels: Tensor | str) -> Tensor:
    """The per-sample gradients of the weights, side by side, one at a time by autograd."""
    weights = [p for p in base.parameters() if p.dim() == 2]
    inputs = Preprocessing()(images)
    wanted = [[label] for label in labels.tolist()] if isinstance(labels, Tensor) else [range(CLASSES)] * len(images)
    rows = []
    for image, candidates in zip(inputs, wanted, strict=True):
        for label in candidates:
            loss = F.cross_entropy(base(image[None]), torch.tensor([label]))
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows)


def test_centred_logits_take_the_mean_over_labels_away() -> None:
    base = network(0).double()
    x = Preprocessing()(pictures(5).images).double()
    every = per_sample_gradients(base, x, "all")
    centred = per_sample_gradients(CentredLogits(base), x, "all")
    for name, rows in every.items():
        torch.testing.assert_close(centred[f"network.{name}"], rows - rows.mean(1, keepdim=True))
        assert not torch.allclose(centred[f"network.{name}"], rows), "the mean is not zero, so something must change"


@given(chosen=st.lists(st.integers(0, 19), min_size=1, max_size=12), every=st.booleans())
@settings(max_examples=20)
def test_each_image_is_read_through_its_own_network(chosen: list[int], every: bool) -> None:
    networks = [network(1), network(2)]
    folds = [pictures(10, seed=1), pictures(10, seed=2)]
    made = stage(RAW.model_copy(update={"labels": "all" if every else "random"}), network(0))
    reader = _Reader(made, [Source(n, images) for n, images in zip(networks, folds, strict=True)])
    (blocks, offset), truth = reader.batch(torch.tensor(chosen), torch.Generator().manual_seed(0))
    rows = torch.cat(blocks, 1)
    each = CLASSES if every else 1
    in_order = sorted(chosen, key=lambda index: index >= 10)  # a batch comes network by network
    assert rows.shape[0] == truth.shape[0] == offset.shape[0] == each * len(chosen)
    assert not offset.any()
    for position, index in enumerate(in_order):
        fold, place = divmod(index, 10)
        image = folds[fold].images[place : place + 1]
        mine, other = (plain(networks[k], image, "all") for k in (fold, 1 - fold))
        for row in rows[each * position : each * (position + 1)]:
            assert (mine - row).norm(dim=1).min() < 1e-5
            assert (other - row).norm(dim=1).min() > 1e-3
        assert truth[each * position] == folds[fold].labels[place]


@pytest.mark.parametrize(("wanted", "each"), [(None, [150, 30]), (10, [5, 5]), (500, [150, 30])])
def test_statistics_are_gathered_over_as_many_images_as_asked(wanted: int | None, each: list[int]) -> None:
    made = stage(RAW.model_copy(update={"statistics_images": wanted}), network(0))
    networks = [network(1), network(2)]
    reader = _Reader(made, [Source(n, pictures(k)) for n, k in zip(networks, (150, 30), strict=True)])
    seen = [0, 0]
    for inputs, labels in reader.statistics_batches(0):
        assert len(inputs) == len(labels)
        now = made.network.state_dict()["1.weight"]
        owner = [k for k in (0, 1) if torch.equal(now, networks[k].state_dict()["1.weight"])]
        seen[owner[0]] += len(inputs)
    assert seen == each


def test_weights_that_take_turns_are_as_good_as_a_stage_of_their_own() -> None:
    first, second, images = network(1), network(2), pictures(6).images
    made, own = stage(RAW, first), stage(RAW, second)
    own.head.load_state_dict(made.head.state_dict())
    before = made.log_probabilities(first, images)
    torch.testing.assert_close(made.log_probabilities(second, images), own.log_probabilities(second, images))
    torch.testing.assert_close(made.log_probabilities(first, images), before)
    assert not torch.allclose(made.log_probabilities(second, images), before)


def test_prediction_is_the_mean_of_the_logits_under_all_labels() -> None:
    base, images = network(0), pictures(4).images
    made = stage(RAW, base)
    gradients = plain(base, images, "all").split([96, 18], dim=1)
    expected = made.head.body(gradients).view(4, CLASSES, CLASSES).mean(1).log_softmax(1)
    torch.testing.assert_close(made.log_probabilities(base, images), expected)


@pytest.mark.parametrize("reads", ["gradients", "features"])
def test_a_silent_head_over_an_offset_answers_as_the_network_does(reads: str) -> None:
    base, images = network(0), pictures(7).images
    made = stage(StageConfig(reads=reads, offset=True, normalise="none", hidden=(3, 2)), base)
    for parameter in made.head.parameters():
        nn.init.zeros_(parameter)
    expected = base(Preprocessing()(images)).log_softmax(1)
    torch.testing.assert_close(made.log_probabilities(base, images), expected)


def test_features_are_the_last_activations_and_cost_one_pass() -> None:
    base, images = network(0), pictures(5).images
    made = stage(StageConfig(reads="features"), base)
    [rows] = made.read(Preprocessing()(images), "all")
    torch.testing.assert_close(rows, penultimate(base, "3", Preprocessing()(images)))
    assert made.inference_passes == 1
    gradients = stage(StageConfig(), base)
    assert abs(made.num_parameters / gradients.num_parameters - 1) < 0.05


def fitted(config: StageConfig, directory: Path, seconds: float = 0.8) -> tuple[Stage, list[dict[str, object]]]:
    base = network(0)
    made = stage(config, base)
    half = pictures(60, seed=3)
    make_fabric("cpu")
    made.rehearse(half.images[:3])
    result = made.fit(
        [Source(base, half)], seconds=seconds, seed=0, directory=directory, judge=Source(base, pictures(40, seed=4))
    )
    return made, result.trials


def test_a_fit_learns_and_is_loaded_with_the_same_answers(tmp_path: Path) -> None:
    config = StageConfig(hidden=(8, 8), rates=(0.05,), optimizer_options={"momentum": 0.9})
    made, trials = fitted(config, tmp_path / "stage" / "training")
    unseen = pictures(80, seed=5)
    answer = made.log_probabilities(network(0), unseen.images)
    assert (answer.argmax(1) == unseen.labels).double().mean() > 0.8
    assert trials == []
    made.save(tmp_path)
    again = stage(config, network(0))
    again.load(tmp_path)
    assert torch.equal(again.log_probabilities(network(0), unseen.images), answer)


def test_a_rate_that_diverges_is_left_out(tmp_path: Path) -> None:
    _, trials = fitted(StageConfig(hidden=(3, 2), rates=(1e30, 0.01)), tmp_path / "stage" / "training")
    assert [trial.get("diverged", False) for trial in trials] == [True, False]
    with pytest.raises(UserError, match="infinite at every learning rate"):
        fitted(StageConfig(hidden=(3, 2), rates=(1e30, 1e31)), tmp_path / "other" / "training")


def test_too_little_time_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its statistics alone take"):
        fitted(StageConfig(hidden=(3, 2)), tmp_path / "stage" / "training", seconds=1e-6)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (StageConfig(normalise="whiten"), "unknown normalisation 'whiten'"),
        (StageConfig(layers=("9",)), "unknown layer '9'"),
        (StageConfig(hidden=(1, 2, 3)), "3 sizes given"),
        (StageConfig(select=2.0), "select"),
        (StageConfig(optimizer="sdg"), "did you mean 'SGD'"),
        (StageConfig(schedule="cosin"), "cosin"),
    ],
)
def test_what_does_not_fit_is_said_when_the_stage_is_made(config: StageConfig, said: str) -> None:
    with pytest.raises(UserError) as caught:
        stage(config, network(0))
    assert said in str(caught.value)
