"""A teacher of any kind answers as it would by itself, and one that does not fit is told in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from postgrad import GradNet, create_model
from postgrad.controls.same_price import Ensemble
from postgrad.data.preprocessing import Augmentation, Preprocessing
from postgrad.errors import UserError
from postgrad.methods._teacher import Teacher

IMAGES = torch.randint(0, 256, (12, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.arange(12) % 3
HALVED = Preprocessing(mean=(0.5,), std=(0.5,))


def network(seed: int = 0, classes: int = 3) -> Any:
    torch.manual_seed(seed)
    model: Any = create_model("mlp", num_classes=classes, in_channels=1, image_size=8)
    model.preprocess = HALVED
    return model.train()


@pytest.fixture(scope="module")
def gradnet() -> GradNet:
    return GradNet(network(), steps=2, batch_size=4, random_state=0).fit(IMAGES, LABELS)


def test_a_network_says_its_logits_and_stays_as_it_is() -> None:
    model = network()
    answer = Teacher([model], num_classes=3).logits(IMAGES)
    expected = model.eval()(HALVED(IMAGES))
    assert torch.equal(answer, expected.detach())
    assert not answer.requires_grad
    model.train()
    Teacher([model], num_classes=3).logits(IMAGES)
    assert model.training
    assert Teacher([model.double()], num_classes=3).logits(IMAGES).dtype == torch.float64


def test_a_second_stage_classifier_says_log_probabilities(gradnet: GradNet) -> None:
    answer = Teacher([gradnet], num_classes=3).logits(IMAGES)
    np.testing.assert_allclose(answer.exp().numpy(), gradnet.predict_proba(IMAGES), rtol=1e-5)


def test_a_classifier_that_knows_probabilities_only_never_says_minus_infinity() -> None:
    class Certain:
        def predict_proba(self, images: Any) -> np.ndarray:
            return np.tile(np.array([[1.0, 0.0, 0.0]], dtype=np.float32), (len(images), 1))

    answer = Teacher([Certain()], num_classes=3).logits(IMAGES)
    assert answer.isfinite().all()
    assert float(answer.softmax(1)[0, 0]) == 1


def test_several_are_the_mean_of_their_log_probabilities(gradnet: GradNet) -> None:
    members = [network(0), network(1)]
    answer = Teacher(members, num_classes=3).logits(IMAGES)
    each = [member.eval()(HALVED(IMAGES)).detach() for member in members]
    for temperature in (1, 4):  # the same probabilities as the mean of logits, at every temperature
        mean = ((each[0] + each[1]) / 2 / temperature).softmax(1)
        torch.testing.assert_close((answer / temperature).softmax(1), mean)
    mixed = Teacher([members[0], gradnet], num_classes=3).logits(IMAGES)
    logs = torch.from_numpy(gradnet.decision_function(IMAGES)).log_softmax(1)
    torch.testing.assert_close(mixed, (each[0].log_softmax(1) + logs) / 2)
    of_control = Ensemble(members, views=1, augmentation=Augmentation(), preprocess=HALVED, class_names=("0", "1", "2"))
    assert Teacher([of_control], num_classes=3).logits(IMAGES).shape == (12, 3)


def test_a_feature_is_what_the_layer_gives() -> None:
    model = network()
    teacher = Teacher([model], num_classes=3)
    first = teacher.feature(IMAGES, "l0")
    assert torch.equal(first, model.l0(HALVED(IMAGES).flatten(1)).detach())
    with pytest.raises(UserError, match="give one network"):
        Teacher([model, network(1)], num_classes=3).feature(IMAGES, "l0")
    with pytest.raises(UserError, match="unknown layer 'l7'"):
        teacher.feature(IMAGES, "l7")
    model.unused = nn.Linear(1, 1)
    with pytest.raises(UserError, match="has no part in its answer"):
        teacher.feature(IMAGES, "unused")


def test_who_cannot_be_a_teacher_is_told_why() -> None:
    with pytest.raises(UserError, match="the teacher knows 4 classes, the student's data have 3"):
        Teacher([network(classes=4)], num_classes=3).logits(IMAGES)
    named = network()
    named.class_names = ("b", "a", "c")
    with pytest.raises(UserError, match="the same classes in another order"):
        Teacher([named], num_classes=3, class_names=("a", "b", "c"))
    Teacher([named], num_classes=3, class_names=("0", "1", "2"))
    named.class_names = ("a", "b")
    with pytest.raises(UserError, match="knows 2 classes"):
        Teacher([named], num_classes=3)
    with pytest.raises(UserError, match="got a str"):
        Teacher(["runs/teacher"], num_classes=3)
    with pytest.raises(UserError, match="there is no teacher"):
        Teacher([], num_classes=3)
    broken = network()
    broken.l2.bias.data.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN or infinite"):
        Teacher([broken], num_classes=3).logits(IMAGES)
    with pytest.raises(UserError, match="cannot take these images"):
        Teacher([network()], num_classes=3).logits(torch.zeros(2, 1, 9, 9, dtype=torch.uint8))


def test_a_student_that_resizes_needs_a_teacher_that_does() -> None:
    teacher = Teacher([network()], num_classes=3)
    teacher.check_pictures(Preprocessing(crop=6))
    with pytest.raises(UserError, match="the student sees images resized to 16 pixels"):
        teacher.check_pictures(Preprocessing(size=16))
    resizing = network()
    resizing.preprocess = Preprocessing(size=8)
    Teacher([resizing], num_classes=3).check_pictures(Preprocessing(size=16))


def test_a_teacher_is_known_by_its_answers() -> None:
    first = Teacher([network()], num_classes=3).fingerprint(IMAGES)
    assert Teacher([network()], num_classes=3).fingerprint(IMAGES) == first
    assert Teacher([network(1)], num_classes=3).fingerprint(IMAGES) != first
